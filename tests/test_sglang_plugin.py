"""The SGLang plug-in without an engine: its hooks on stand-ins, and on SGLang's own code where that is at hand.

SGLANG_SOURCE names a folder with the unpacked wheel of SGLang 0.5 (`pip download --no-deps sglang`, then unzip). Its
hook registry and the functions that are hooked then run as they were released; the rest of the engine does not.
"""

import ast
import asyncio
import importlib.util
import inspect
import os
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vtkernels import methods
from vtkernels.integrations import sglang as plugin
from vtkernels.integrations.sglang import _hooks

ROOT = Path(__file__).parents[1]
SOURCE = os.environ.get("SGLANG_SOURCE")
WIDTH = 16


def config(entry=None, **other):
    """An InternVL of tiles of 8 x 8 = 64 tokens after the pixel shuffle."""
    values = {"architectures": ["InternVLChatModel"], "force_image_size": None, "downsample_ratio": 0.5,
              "vision_config": SimpleNamespace(image_size=224, patch_size=14),
              "llm_config": SimpleNamespace(hidden_size=WIDTH, architectures=["Qwen2ForCausalLM"]), **other}
    return SimpleNamespace(**values, **({} if entry is None else {"vtkernels": entry}))


ENTRY = {"method": "divprune", "keep": 0.25}


def test_counts_are_exact_and_known_before_any_image():
    pruner = plugin.read(config(ENTRY))
    assert (pruner.tokens, pruner.count, pruner.grid) == (64, 16, (1, 8, 8))
    assert plugin.read(config({"method": "divprune", "keep": 5})).count == 5
    assert plugin.read(config()) is None


def test_tiles_are_pruned_each_by_itself():
    features = torch.randn(3, 64, WIDTH, generator=torch.Generator().manual_seed(0))
    got = plugin.read(config(ENTRY))(features)
    assert got.shape == (3, 16, WIDTH)
    method = methods.get("divprune", keep=0.25)
    for tile, kept in zip(features, got, strict=True):
        assert torch.equal(method(methods.Inputs(hidden=tile[None], grid=(1, 8, 8))).hidden[0], kept)


@pytest.mark.parametrize(("entry", "other", "message"), [
    ("divprune", {}, "`json_model_override_args` has 'divprune'"),
    ({"keep": 0.5}, {}, "`json_model_override_args` has"),
    ({"method": "nothing"}, {}, "`method` is 'nothing', allowed: "),
    ({"method": "fastv"}, {}, "`method` is 'fastv', which needs"),
    ({"method": "divprune", "keep": 0.0}, {}, "`keep` is 0.0"),
    ({"method": "divprune", "keep": 1.5}, {}, "`keep` is 1.5"),
    ({"method": "divprune", "share": 1}, {}, "`method` is 'divprune', which has no share"),
    (ENTRY, {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "of architecture Qwen2_5_VL"),
])
def test_what_cannot_work_is_refused_before_the_model_is_built(entry, other, message):
    built = []
    for hook in (_hooks.build_model, _hooks.build_processor):
        with pytest.raises(ValueError, match=message):
            hook(lambda *args, **kwargs: built.append(args), SimpleNamespace(), config(entry, **other))
    assert not built


def processor(entry):
    made = SimpleNamespace()

    def init(self, hf_config, server_args):
        self.num_image_token = 64

    _hooks.build_processor(init, made, config(entry), None)
    return made


def test_placeholders_and_features_agree():
    model = SimpleNamespace()
    _hooks.build_model(lambda self, config: None, model, config(ENTRY))
    features = torch.randn(2, 64, WIDTH)
    pruned = _hooks.extract_feature(lambda self, pixels: features, model, torch.zeros(2, 3, 224, 224))
    assert processor(ENTRY).num_image_token == pruned.shape[1] == 16


def test_an_engine_that_asks_for_nothing_is_untouched():
    model = SimpleNamespace()
    _hooks.build_model(lambda self, config: None, model, config())
    features = torch.randn(2, 64, WIDTH)
    assert _hooks.extract_feature(lambda self, pixels: features, model, features) is features
    plain = processor(None)
    assert plain.num_image_token == 64
    item = [{"format": "processor_output"}]
    assert _hooks.special_format(lambda *args, **kwargs: "ran", plain, item, None) == "ran"


def test_pixels_that_were_processed_elsewhere_are_refused():
    for images, videos in (([{"format": "processor_output"}], None), (None, [{"format": "processor_output"}])):
        with pytest.raises(ValueError, match="'processor_output'"):
            _hooks.special_format(lambda *args, **kwargs: "ran", processor(ENTRY), images, videos)
    embedded = [{"format": "precomputed_embedding"}]
    assert _hooks.special_format(lambda *args, **kwargs: "ran", processor(ENTRY), embedded, None) == "ran"


def test_features_of_another_count_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 63, 16\), allowed: \[tiles, 64, D\]"):
        plugin.read(config(ENTRY))(torch.randn(1, 63, WIDTH))


def test_the_entry_point_is_the_function():
    groups = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    value = groups["sglang.srt.plugins"]["vtkernels"]
    assert EntryPoint("vtkernels", value, "sglang.srt.plugins").load() is plugin.register


@pytest.fixture(scope="module")
def released():
    if not SOURCE:
        pytest.skip("SGLANG_SOURCE does not name the unpacked wheel of SGLang")
    return Path(SOURCE)


def functions(released, target):
    """The class of a hook's target as it is in the released source, by `ast`: nothing is imported."""
    module, name, function = target.rsplit(".", 2)
    tree = ast.parse((released / f"{module.replace('.', '/')}.py").read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {node.name: node for node in found.body if hasattr(node, "args")}, function


@pytest.mark.parametrize("target", plugin.HOOKS)
def test_the_targets_exist_and_take_what_the_hooks_take(released, target):
    found, name = functions(released, target)
    names = [argument.arg for argument in found[name].args.args]
    ours = [p for p in inspect.signature(plugin.HOOKS[target]).parameters.values()
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][2:]
    assert names[1:1 + len(ours)] == [p.name for p in ours]


def test_the_released_registry_applies_the_hooks_to_the_released_functions(released, monkeypatch):
    found = importlib.util.spec_from_file_location("sglang.srt.plugins.hook_registry",
                                                   released / "sglang/srt/plugins/hook_registry.py")
    registry = importlib.util.module_from_spec(found)
    stand_ins = {"sglang.srt.plugins.hook_registry": registry}
    for target in plugin.HOOKS:
        methods_of, _ = functions(released, target)
        module, name, _ = target.rsplit(".", 2)
        stand_ins.setdefault(module, types.ModuleType(module))
        if hasattr(stand_ins[module], name):
            continue
        wanted = {"extract_feature", "pixel_shuffle", "get_image_feature", "_process_special_format",
                  "_has_special_format"}
        body = [methods_of[m] for m in methods_of if m in wanted]
        space = {"torch": torch, "List": list, "MultimodalDataItem": object, "int": int}
        exec(compile(ast.fix_missing_locations(ast.Module(body, [])), module, "exec"), space)
        own = {m: space[m] for m in methods_of if m in wanted}
        setattr(stand_ins[module], name, type(name, (torch.nn.Module if "models" in module else object,), own))
    for name in list(stand_ins):
        while "." in name:
            name = name.rpartition(".")[0]
            stand_ins.setdefault(name, types.ModuleType(name))
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stand_ins[parent], child, module)
    found.loader.exec_module(registry)

    model_class = stand_ins["sglang.srt.models.internvl"].InternVLChatModel
    processor_class = stand_ins["sglang.srt.multimodal.processors.internvl"].InternVLProcessor

    def build_model(self, config):
        torch.nn.Module.__init__(self)
        self.select_layer, self.downsample_ratio, self.ps_version = -1, config.downsample_ratio, "v2"
        self.vision_model = lambda pixel_values, **_: SimpleNamespace(last_hidden_state=pixel_values.flatten(1).view(
            len(pixel_values), 257, -1))
        self.mlp1 = torch.nn.Linear(4 * 12, WIDTH)

    def build_processor(self, hf_config, server_args):
        self.num_image_token = 64

    model_class.__init__, processor_class.__init__ = build_model, build_processor
    plugin.register()
    registry.HookRegistry.apply_hooks()
    model, made = model_class(config(ENTRY)), processor_class(config(ENTRY), None)
    items = [SimpleNamespace(feature=torch.randn(2, 3, 257, 4)), SimpleNamespace(feature=torch.randn(1, 3, 257, 4))]
    out = model.get_image_feature(items)
    assert out.shape == (3, made.num_image_token, WIDTH)
    assert made.num_image_token == 16
    plain = model_class(config())
    plain.mlp1 = model.mlp1
    assert torch.equal(out, plugin.read(config(ENTRY))(plain.get_image_feature(items)))
    special = [{"format": "processor_output"}]
    assert made._has_special_format(special, None)
    with pytest.raises(ValueError, match="'processor_output'"):
        asyncio.run(made._process_special_format(special, None, "text", None))
