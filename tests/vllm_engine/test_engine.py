"""Pruned models in vLLM against transformers pruned the same way, and against vLLM unpruned."""

from types import SimpleNamespace

import engines
import pytest
import tiny
from vllm import LLM
from vllm.exceptions import VLLMValidationError

from vtkernels import methods, prototypes
from vtkernels.integrations.vllm import prune

DIVPRUNE = {"method": "divprune", "keep": 0.5}
EVS = {"method": "evs", "pruning_rate": 0.5}


def prompts(family):
    """Of different lengths, with images of different sizes where the model has them, one and two in a prompt."""
    sizes = [(56, 56), (56, 56), (56, 56)] if family == "llava" else [(168, 168), (112, 56), (56, 112)]
    pictures = [tiny.picture(seed, size) for seed, size in enumerate(sizes)]
    return [{"text": tiny.text(family, 10, (40, 5)), "image": [pictures[0]]},
            {"text": tiny.text(family, 20, (3, 4, 2)), "image": [pictures[1], pictures[2]]}]


def video_prompt():
    return {"text": tiny.text("qwen2_5_vl", 30, (4, 6), "video"), "video": tiny.clip(7)}


def pruned(engine, family):
    return engine(family, hf_overrides=prune(image=DIVPRUNE, video=EVS) if family == "qwen2_5_vl" else
                  prune("divprune", keep=0.5))


def test_two_requests_side_by_side_are_transformers_pruned_the_same_way(engine, folders, family):
    both = prompts(family)
    outputs = engines.generate(pruned(engine, family), both)
    want = engines.transformers_tokens(folders[family], family, both, methods.get("divprune", keep=0.5))
    assert engines.tokens(outputs) == want
    assert want != engines.transformers_tokens(folders[family], family, both)
    mark = tiny.IMAGE if family == "llava" else tiny.IMAGE_PAD
    kept = [8, 16] if family == "llava" else [18, 4 + 4]
    assert [output.prompt_token_ids.count(mark) for output in outputs] == kept


def test_a_prefix_that_ends_within_an_image_is_reused(engine, family):
    llm, block = pruned(engine, family), 32
    prompt = {"text": tiny.text(family, 40, (27, 8)), "image": [tiny.picture(9, (168, 168))]}
    (first,) = engines.generate(llm, [prompt])
    (again,) = engines.generate(llm, [prompt])
    mark = tiny.IMAGE if family == "llava" else tiny.IMAGE_PAD
    columns = [i for i, token in enumerate(again.prompt_token_ids) if token == mark]
    assert columns[0] < block <= columns[-1]
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, block)
    assert engines.tokens([again]) == engines.tokens([first])


def test_video_is_transformers_pruned_the_same_way(engine, folders):
    (output,) = engines.generate(pruned(engine, "qwen2_5_vl"), [video_prompt()])
    want = engines.transformers_tokens(folders["qwen2_5_vl"], "qwen2_5_vl", [video_prompt()],
                                       methods.get("evs", pruning_rate=0.5))
    assert engines.tokens([output]) == want
    assert want != engines.transformers_tokens(folders["qwen2_5_vl"], "qwen2_5_vl", [video_prompt()])
    assert output.prompt_token_ids.count(tiny.VIDEO_PAD) == 8


def test_a_prefill_in_chunks_that_split_images(engine, folders, family):
    llm = engine(family, hf_overrides=prune("divprune", keep=0.5), max_num_batched_tokens=47)
    want = engines.transformers_tokens(folders[family], family, prompts(family), methods.get("divprune", keep=0.5))
    assert engines.tokens(engines.generate(llm, prompts(family))) == want


def test_keep_everything_is_the_engine_without_the_plugin(engine, family):
    ours = prompts(family) + ([video_prompt()] if family == "qwen2_5_vl" else [])
    whole = engines.tokens(engines.generate(engine(family, hf_overrides=prune("divprune", keep=1.0)), ours))
    assert whole == engines.tokens(engines.generate(engine(family), ours))


def test_positions_survive_16_bits(engine):
    ours = [*prompts("qwen2_5_vl"), video_prompt()]
    whole = engine("qwen2_5_vl", dtype="bfloat16", hf_overrides=prune("divprune", keep=1.0))
    whole = engines.tokens(engines.generate(whole, ours))
    assert whole == engines.tokens(engines.generate(engine("qwen2_5_vl", dtype="bfloat16"), ours))


def test_a_codebook_from_a_file(engine, folders, codebook):
    config = {"variant": "fix_num", "keep": 0.25}
    llm = engine("llava", hf_overrides=prune("redundancy_codebook", prototypes=codebook, **config))
    method = methods.get("redundancy_codebook", prototypes=prototypes.load(codebook).prototypes, **config)
    want = engines.transformers_tokens(folders["llava"], "llava", prompts("llava"), method)
    assert engines.tokens(engines.generate(llm, prompts("llava"))) == want


def test_the_command_line_s_way_and_a_request_that_fails_beside_others(engine, folders):
    entry = {"architectures": ["VtkernelsLlavaForConditionalGeneration"], "vtkernels": DIVPRUNE}
    llm = engine("llava", hf_overrides=entry)
    one, _ = prompts("llava")
    with pytest.raises(VLLMValidationError, match="At most 2"):
        engines.generate(llm, [one, {"text": tiny.text("llava", 1, (2, 2, 2, 2)), "image": one["image"] * 3}])
    want = engines.transformers_tokens(folders["llava"], "llava", [one], methods.get("divprune", keep=0.5))
    assert engines.tokens(engines.generate(llm, [one])) == want


@pytest.mark.parametrize(("family", "overrides", "message"), [
    ("llava", {"method": "fastv"}, "needs decoder"),
    ("llava", {"method": "nothing"}, "allowed: .*divprune"),
    ("llava", {"method": "divprune", "keep": 0.0}, "`keep` is 0.0"),
    ("llava", {"method": "divprune", "keep": 1.5}, "`keep` is 1.5"),
    ("llava", {"method": "timechat_online"}, "counts depend on the image"),
    ("llava", {"method": "divprune", "kept": 0.5}, "has no kept, allowed: keep"),
    ("llava", {"video": {"method": "evs"}}, "has video under 'vtkernels'"),
    ("qwen2_5_vl", {"method": "pt_dit"}, "does not say where its tokens stood|cannot run"),
    ("qwen2_5_vl", {}, "has {} under 'vtkernels'"),
])
def test_refused_before_any_work(folders, family, overrides, message):
    names = {"llava": "VtkernelsLlavaForConditionalGeneration",
             "qwen2_5_vl": "VtkernelsQwen2_5_VLForConditionalGeneration"}
    with pytest.raises(ValueError, match=message):
        engines.start(folders[family], family, hf_overrides={"architectures": [names[family]], "vtkernels": overrides})


def test_vllm_s_own_pruning_beside_ours_is_refused(folders):
    with pytest.raises(ValueError, match="`video_pruning_rate` is set"):
        engines.start(folders["qwen2_5_vl"], "qwen2_5_vl", hf_overrides=prune("evs"), video_pruning_rate=0.5)


@pytest.mark.parametrize("used", [None, "pipeline_parallel_size", "enable_dbo", "prefill_context_parallel_size",
                                  "speculative_config"])
def test_features_that_would_lose_positions_are_refused(used):
    from vtkernels.integrations.vllm._qwen2_5_vl import _refuse

    parallel = {"pipeline_parallel_size": 1, "enable_dbo": False, "prefill_context_parallel_size": 1}
    parallel = SimpleNamespace(**{name: 2 if name == used else value for name, value in parallel.items()})
    config = SimpleNamespace(parallel_config=parallel, speculative_config={} if used == "speculative_config" else None,
                             model_config=SimpleNamespace(multimodal_config=SimpleNamespace(video_pruning_rate=None)))
    if used is None:
        return _refuse(config)
    with pytest.raises(ValueError, match=f"`{used}` is set"):
        _refuse(config)


def test_a_pixtral_tower_is_refused():
    from vtkernels.integrations.vllm._llava import _read

    with pytest.raises(ValueError, match="type 'pixtral'"):
        _read(SimpleNamespace(vision_config=SimpleNamespace(model_type="pixtral")))


def test_another_architecture_is_refused(folders):
    with pytest.raises(ValueError, match="allowed: LlavaForConditionalGeneration"):
        LLM(str(folders["llava"]), hf_overrides=Renamed())


class Renamed:
    def __call__(self, config):
        if config.model_type.startswith("dummy_"):
            return config
        config.architectures = ["LlavaNextForConditionalGeneration"]
        return prune("divprune")(config)
