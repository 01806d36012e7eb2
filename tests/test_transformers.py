"""Methods in transformers models: pruned runs against full runs in which the dropped tokens are masked."""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.0")

from tiny_models import FAMILIES, IMAGE, model, prompt, video  # noqa: E402

from vtkernels import methods  # noqa: E402
from vtkernels.integrations import transformers as integration  # noqa: E402

ALL = pytest.mark.parametrize("family", FAMILIES)
TOLERANCE = 1e-5  # of float32 logits of about 1


def positions_of(family, inputs):
    """Of the whole prompt, as the model itself counts them: [B, S], or [4, B, S] with M-RoPE."""
    mask = inputs["attention_mask"]
    text = (mask.cumsum(-1) - 1).clamp(min=0)
    if not family.startswith("qwen"):
        return text
    names = ("image_grid_thw", "video_grid_thw", "attention_mask", "mm_token_type_ids")
    axes, _ = model(family).model.get_rope_index(inputs["input_ids"], **{n: inputs.get(n) for n in names})
    return torch.cat([text[None], axes])


def masked(family, inputs, kept):
    """The inputs of a full run that does not see what is not kept."""
    seen = torch.zeros_like(inputs["attention_mask"])
    for row, columns in enumerate(kept):
        seen[row, columns[columns >= 0]] = 1
    return {**inputs, "attention_mask": seen, "position_ids": positions_of(family, inputs)}


def at(logits, kept):
    """Rows of the full run at the kept columns."""
    return torch.cat([logits[row, columns[columns >= 0]] for row, columns in enumerate(kept)])


def rows(logits, kept):
    return torch.cat([logits[row, columns >= 0] for row, columns in enumerate(kept)])


def assert_near(got, want):
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= TOLERANCE * max(1.0, float(want.abs().max()))


@torch.no_grad()
def generate(family, inputs, **options):
    made = model(family).generate(**inputs, max_new_tokens=5, do_sample=False, **options)
    return made[:, inputs["input_ids"].shape[1]:]


@ALL
@torch.no_grad()
def test_pruned_is_the_masked_full_run(family):
    inputs = prompt(family, images=2, batch=2, unequal=True)
    with integration.apply(model(family), "divprune", keep=0.5) as handle:
        pruned = model(family)(**inputs).logits
    (kept,) = handle.kept
    assert kept.shape[1] < inputs["input_ids"].shape[1]
    full = model(family)(**masked(family, inputs, kept)).logits
    assert_near(rows(pruned, kept), at(full, kept))


@ALL
@torch.no_grad()
def test_keep_all_is_the_plain_model_bit_for_bit_and_so_is_the_model_afterwards(family):
    inputs = prompt(family, images=2, batch=2, unequal=True)
    plain = model(family)(**inputs).logits
    with integration.apply(model(family), "divprune", keep=1.0):
        everything = model(family)(**inputs).logits
    with integration.apply(model(family), "divprune", keep=0.25):
        assert model(family)(**inputs).logits.shape != plain.shape
    mask = inputs["attention_mask"].bool()
    assert torch.equal(everything[mask], plain[mask])
    assert torch.equal(model(family)(**inputs).logits[mask], plain[mask])


@ALL
def test_greedy_generation_is_that_of_the_masked_full_run(family):
    inputs = prompt(family, images=2, batch=1)
    with integration.apply(model(family), "divprune", keep=0.5) as handle:
        tokens = generate(family, inputs)
    assert tokens.tolist() == generate(family, masked(family, inputs, handle.kept[0])).tolist()
    assert tokens.tolist() == generate(family, integration.prune_inputs(model(family), inputs, "divprune",
                                                                        keep=0.5)).tolist()


@ALL
@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_a_batch_is_its_rows(family, name):
    inputs = prompt(family, images=1, batch=2, unequal=True)
    config = {"keep": 0.5, **({"layer": 2} if name == "fastv" else {})}
    with integration.apply(model(family), name, **config):
        together = generate(family, inputs).tolist()
        for row in range(2):
            assert generate(family, _row(inputs, row)).tolist() == [together[row]]


def _row(inputs, row):
    """One row of a batch, without its padding."""
    start = int(inputs["attention_mask"][row].argmax())
    out = {}
    images = inputs.get("image_grid_thw")
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            out[name] = value[row:row + 1, start:]
        elif name == "pixel_values" and images is not None:
            ends = images.prod(-1).cumsum(0).tolist()
            out[name] = value[(0, *ends)[row]:ends[row]]
        else:
            out[name] = value[row:row + 1]
    return out


INNER = {"fastv": ({"keep": 0.25, "layer": 2}, (2,)),
         "pyramiddrop": ({"layers": (1, 3), "keep": (0.75, 0.25)}, (1, 3))}


@ALL
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@torch.no_grad()
def test_inner_pruning_is_the_run_that_is_masked_from_that_layer_on(family, name):
    config, layers = INNER[name]
    inputs = prompt(family, images=2, batch=2, unequal=True)
    with integration.apply(model(family), name, **config) as handle:
        pruned = model(family)(**inputs).logits
    assert len(handle.kept) == len(layers)
    kept = handle.kept[-1]
    language = model(family).model.language_model
    seen = [inputs["attention_mask"].bool(),
            *(masked(family, inputs, k)["attention_mask"].bool() for k in handle.kept)]
    width = seen[0].shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()

    def hide(module, args, kwargs):
        stage = sum(layer <= module.self_attn.layer_idx for layer in layers)
        allowed = causal & seen[stage][:, None, None, :] | torch.eye(width, dtype=torch.bool)
        return args, {**kwargs, "attention_mask": allowed}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in language.layers]
    try:
        full = model(family)(**inputs, position_ids=positions_of(family, inputs)).logits
    finally:
        for hook in hooks:
            hook.remove()
    assert_near(rows(pruned, kept), at(full, kept))


@pytest.mark.parametrize(("family", "base"), [
    ("qwen2_5_vl", "eager"), ("qwen2_5_vl", "sdpa"),
    pytest.param("llava", "flex_attention", marks=pytest.mark.long)])  # compiled, for minutes
@torch.no_grad()
def test_scores_beside_each_attention(family, base):
    """The attention function that looks on passes everything to the one that was set, and gives it back at the end."""
    language = model(family).model.language_model
    before, inputs = language.config._attn_implementation, prompt(family, batch=2, unequal=True)
    language.set_attn_implementation(base)
    try:
        with integration.apply(model(family), "fastv", keep=0.25, layer=2) as handle:
            assert language.config._attn_implementation == f"vtkernels_{base}"
            logits = model(family)(**inputs).logits
        assert language.config._attn_implementation == base
    finally:
        language.set_attn_implementation(before)
    with integration.apply(model(family), "fastv", keep=0.25, layer=2) as other:
        want = model(family)(**inputs).logits
    assert_near(rows(logits, handle.kept[0]), rows(want, other.kept[0]))
    assert torch.equal(handle.kept[0], other.kept[0])


@ALL
@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_static_cache(family, name):
    inputs = prompt(family, images=1, batch=2, unequal=True)
    with integration.apply(model(family), name, keep=0.5):
        dynamic = generate(family, inputs).tolist()
        assert generate(family, inputs, cache_implementation="static", disable_compile=True).tolist() == dynamic


@ALL
@torch.no_grad()
def test_decoding_by_hand_goes_on_at_the_right_position(family):
    """A loop that passes neither mask nor positions, as engines write it."""
    inputs = prompt(family)
    with integration.apply(model(family), "divprune", keep=0.5):
        want = generate(family, inputs)
        out = model(family)(**inputs, use_cache=True)
        tokens = [int(out.logits[0, -1].argmax())]
        for _ in range(4):
            out = model(family)(input_ids=torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values,
                                use_cache=True)
            tokens.append(int(out.logits[0, -1].argmax()))
    assert tokens == want[0].tolist()


@torch.no_grad()
def test_the_scores_of_pyramiddrop_are_those_of_the_layer_that_follows():
    inputs, layer = prompt("llava"), 2
    language = model("llava").model.language_model
    with integration.apply(model("llava"), "pyramiddrop", layers=(layer,), keep=(6,)) as handle:
        model("llava")(**inputs)
    implementation = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        attentions = model("llava")(**inputs, output_attentions=True).attentions
    finally:
        language.set_attn_implementation(implementation)
    images = torch.nonzero(inputs["input_ids"][0] == IMAGE)[:, 0]
    best = attentions[layer][0].mean(0)[-1, images].topk(6).indices
    dropped = set(images.tolist()) - set(images[best].tolist())
    assert set(range(inputs["input_ids"].shape[1])) - set(handle.kept[0][0].tolist()) == dropped


TOWER = {"vtc_cls": {"keep": 5}, "fopru": {"keep": 0.5},
         "visionzip": {"dominant": 5, "contextual": 2, "appended": False},
         "tome": {"r": 4}, "redundancy_codebook": {"prototypes": torch.ones(2, 64), "threshold": 0.01},
         "llavolta": {"layer": 2}, "cdpruner": {"keep": 6},
         "sparsevlm": {"layers": (1, 2), "keep": (10, 5)},
         "catp": {"schedule": (methods.Stage(0, 0.75), methods.Stage(2, 0.25))},
         "holitom_inner": {"keep": 0.5, "layer": 2}}


@pytest.mark.parametrize("name", TOWER)
@torch.no_grad()
def test_methods_that_look_at_tower_or_text_merge_or_keep_ragged_counts(name):
    inputs = prompt("llava", images=2, batch=2, unequal=True)
    with integration.apply(model("llava"), name, **TOWER[name]) as handle:
        out = model("llava")(**inputs)
        assert 0 < handle.kept[0].shape[1] < inputs["input_ids"].shape[1]
        assert out.logits.shape[1] == handle.kept[-1].shape[1]
        assert bool(out.logits.isfinite().all())
        together = generate("llava", inputs).tolist()
        for row in range(2):
            start = int(inputs["attention_mask"][row].argmax())
            alone = {"input_ids": inputs["input_ids"][row:row + 1, start:],
                     "attention_mask": inputs["attention_mask"][row:row + 1, start:],
                     "pixel_values": inputs["pixel_values"][2 * row:2 * row + 2]}
            assert generate("llava", alone).tolist() == [together[row]]


@torch.no_grad()
def test_the_tower_is_seen_as_its_own_probabilities():
    inputs = prompt("llava", images=2)
    tower = model("llava").model.vision_tower
    with integration.apply(model("llava"), "vtc_cls", keep=5) as handle:
        model("llava")(**inputs)
    implementation = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        attentions = tower(inputs["pixel_values"], output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(implementation)
    scores = sum(a.mean(1)[:, 0, 1:] for a in attentions[:-1])
    columns = torch.nonzero(inputs["input_ids"][0] == IMAGE)[:, 0].view(2, 16)
    best = torch.cat([c[s.topk(5).indices] for c, s in zip(columns, scores, strict=True)])
    gone = set(columns.flatten().tolist()) - set(best.tolist())
    assert set(range(inputs["input_ids"].shape[1])) - set(handle.kept[0][0].tolist()) == gone


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_video(family):
    inputs = video(family)
    with integration.apply(model(family), "divprune", keep=0.5) as handle:
        pruned = model(family)(**inputs).logits
        tokens = generate(family, inputs).tolist()
    (kept,) = handle.kept
    full = masked(family, inputs, kept)
    assert kept.shape[1] < inputs["input_ids"].shape[1]
    assert_near(rows(pruned, kept), at(model(family)(**full).logits, kept))
    assert tokens == generate(family, full).tolist()
    assert tokens == generate(family, integration.prune_inputs(model(family), inputs, "divprune", keep=0.5)).tolist()


@torch.no_grad()
def test_the_frames_of_a_video_are_known():
    inputs = video("qwen2_5_vl")
    with integration.apply(model("qwen2_5_vl"), "evs", pruning_rate=0.25) as handle:
        model("qwen2_5_vl")(**inputs)
    first = inputs["input_ids"][0].tolist().index(121)
    assert set(range(first, first + 4)) <= set(handle.kept[0][0].tolist())  # the first frame stays whole
    assert handle.kept[0].shape[1] == inputs["input_ids"].shape[1] - 2


def test_kept_states_have_a_gradient():
    inputs = prompt("llava")
    weight = model("llava").model.multi_modal_projector.linear_2.weight
    with integration.apply(model("llava"), "divprune", keep=0.5):
        (gradient,) = torch.autograd.grad(model("llava")(**inputs).logits.sum(), weight)
    assert float(gradient.abs().sum()) > 0


@torch.no_grad()
def test_packed_positions():
    inputs = prompt("llava")
    pruned = integration.prune_inputs(model("llava"), inputs, "divprune", keep=0.5, positions="pack")
    assert "position_ids" not in pruned
    with integration.apply(model("llava"), "divprune", keep=0.5, positions="pack"):
        assert generate("llava", inputs).tolist() == generate("llava", pruned).tolist()
        packed = model("llava")(**inputs).logits
    with integration.apply(model("llava"), "divprune", keep=0.5):
        assert not torch.equal(model("llava")(**inputs).logits, packed)


@torch.no_grad()
def test_a_compacted_cache_decodes_like_the_masked_run():
    inputs = prompt("llava", batch=2)
    width = inputs["input_ids"].shape[1]
    kept = torch.tensor([[*range(0, width, 2), width - 1]] * 2).unique(dim=1)
    token = torch.tensor([[5], [7]])
    step = {"input_ids": token, "position_ids": torch.full((2, 1), width), "use_cache": True}
    results = []
    for kind in ("dynamic", "static", "masked"):
        cache = (transformers.StaticCache(model("llava").config.text_config, max_cache_len=width + 4)
                 if kind == "static" else transformers.DynamicCache())
        model("llava")(**inputs, past_key_values=cache)
        seen = torch.ones(2, width + 1, dtype=torch.long)
        if kind == "masked":
            seen[:, [c for c in range(width) if c not in kept[0]]] = 0
        else:
            integration.compact_cache(cache, kept)
            assert int(cache.get_seq_length()) == kept.shape[1]
            seen = seen[:, :kept.shape[1] + 1]
        results.append(model("llava")(**step, past_key_values=cache, attention_mask=seen).logits)
    assert_near(results[0], results[2])
    assert_near(results[1], results[2])


CACHES = {"snapkv": {"keep": 12, "window": 3}, "gui_kv": {"keep": 12, "window": 3}}


@ALL
@pytest.mark.parametrize("name", CACHES)
@torch.no_grad()
def test_a_cache_method_decodes_like_the_run_whose_heads_are_masked(family, name):
    inputs = prompt(family, images=2, batch=2)
    width, token = inputs["input_ids"].shape[1], torch.tensor([[5], [7]])
    full = model(family)(**inputs, use_cache=True).past_key_values
    with integration.apply(model(family), name, **CACHES[name]):
        out = model(family)(**inputs, use_cache=True)
        short = out.past_key_values
        assert short.get_seq_length() == 12
        got = model(family)(input_ids=token, past_key_values=short, use_cache=True).logits
    heads = model(family).model.language_model.config.num_attention_heads
    allowed = []
    for small, whole in zip(short.layers, full.layers, strict=True):
        same = (small.keys[:, :, :12, None] == whole.keys[:, :, None]).all(-1).any(2)  # [B, Hkv, S]
        assert same.sum(-1).eq(12).all()
        own = torch.ones(*same.shape[:2], 1, dtype=torch.bool)
        allowed.append(torch.cat([same, own], -1).repeat_interleave(heads // same.shape[1], 1)[:, :, None])

    def mask(module, args, kwargs):
        return args, {**kwargs, "attention_mask": allowed[module.self_attn.layer_idx]}

    layers = model(family).model.language_model.layers
    hooks = [layer.register_forward_pre_hook(mask, with_kwargs=True) for layer in layers]
    after = positions_of(family, inputs)
    position = after.reshape(-1, *after.shape[-2:])[..., -1:] + 1
    try:
        want = model(family)(input_ids=token, past_key_values=full, position_ids=position.view(*after.shape[:-1], 1),
                             attention_mask=torch.ones(2, width + 1, dtype=torch.long)).logits
    finally:
        for hook in hooks:
            hook.remove()
    assert_near(got, want)


def test_a_cache_method_that_keeps_all_changes_nothing():
    inputs = prompt("qwen2_5_vl", batch=2)
    plain = generate("qwen2_5_vl", inputs).tolist()
    with integration.apply(model("qwen2_5_vl"), "snapkv", keep=1.0, window=3):
        assert generate("qwen2_5_vl", inputs).tolist() == plain
        assert generate("qwen2_5_vl", inputs, cache_implementation="static",
                        disable_compile=True).tolist() == plain


@torch.no_grad()
def test_an_emptied_cache_forgets_the_prompt_before():
    """A static cache is used again, now for text alone: nothing of the images is left in masks or positions."""
    inputs, text = prompt("llava"), torch.arange(3, 60)[None]
    step = {"input_ids": torch.tensor([[5]]), "use_cache": True}

    def logits(cache):
        model("llava")(input_ids=text, past_key_values=cache, use_cache=True)
        return model("llava")(**step, past_key_values=cache).logits

    config = model("llava").config.text_config
    want = logits(transformers.StaticCache(config, max_cache_len=80))
    cache = transformers.StaticCache(config, max_cache_len=80)
    with integration.apply(model("llava"), "divprune", keep=0.5):
        model("llava")(**inputs, past_key_values=cache, use_cache=True)
        cache.reset()
        assert torch.equal(logits(cache), want)


@torch.no_grad()
def test_decoding_reads_no_length_from_the_device(monkeypatch):
    inputs, cache = prompt("llava"), transformers.DynamicCache()
    with integration.apply(model("llava"), "divprune", keep=0.5) as handle:
        model("llava")(**inputs, past_key_values=cache, use_cache=True)
        handle._before_backbone(None, (), {"input_ids": torch.tensor([[5]])})
        monkeypatch.setattr(cache, "get_seq_length", lambda *_: pytest.fail("the length was read"))
        embeds = torch.zeros(1, 1, 64)
        assert handle._before_language(None, (), {"past_key_values": cache, "inputs_embeds": embeds}) is not None


class TestRefusals:
    @torch.no_grad()
    def test_images_after_text(self):
        cache = transformers.DynamicCache()
        model("llava")(input_ids=torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
        with (pytest.raises(ValueError, match="images after the cache was begun"),
              integration.apply(model("llava"), "divprune")):
            model("llava")(**prompt("llava"), past_key_values=cache)

    @pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llava"])
    def test_towers_of_other_families(self, family):
        with pytest.raises(ValueError, match="the tokens of this family are not the patches of its tower"):
            integration.apply(model(family), "vtc_cls")

    def test_families(self):
        config = transformers.LlamaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=8, intermediate_size=8,
                                          num_attention_heads=1)
        other = transformers.LlamaForCausalLM(config)
        with pytest.raises(ValueError, match=r"`model` is of type 'llama', allowed: llava, .*inputs_embeds"):
            integration.apply(other, "divprune")

    def test_signals(self):
        with pytest.raises(ValueError, match="needs pixels: the seam has no such signal"):
            integration.apply(model("llava"), _needs("pixels"))
        with pytest.raises(ValueError, match="needs vision: the tokens of this family are not the patches"):
            integration.apply(model("qwen2_5_vl"), _needs("vision"))
        with pytest.raises(ValueError, match="needs decoder: only between decoder layers"):
            integration.prune_inputs(model("llava"), prompt("llava"), _needs("decoder"))

    def test_layers(self):
        with pytest.raises(ValueError, match="acts after 7 layers, allowed for this model: 1 to 3"):
            integration.apply(model("llava"), "fastv", layer=7)
        with pytest.raises(ValueError, match="acts after 0 layers, allowed for this model: 1 to 3"):
            integration.apply(model("llava"), "fastv", layer=0)

    def test_shares(self):
        for keep in (1.5, -0.1):
            with (pytest.raises(ValueError, match=f"`keep` is {keep}, allowed: a share"),
                  integration.apply(model("llava"), "divprune", keep=keep)):
                generate("llava", prompt("llava"))

    def test_padding_on_the_right(self):
        inputs = prompt("llava", batch=2)
        inputs["attention_mask"][1, -2:] = 0
        with (pytest.raises(ValueError, match="padding on the right or inside, allowed: padding on the left"),
              integration.apply(model("llava"), "divprune")):
            model("llava")(**inputs)

    def test_placeholders_that_do_not_match(self):
        inputs = prompt("llava")
        inputs["input_ids"][inputs["input_ids"] == IMAGE] = 5
        inputs["input_ids"][0, 4:10] = IMAGE
        with pytest.raises(ValueError, match="6 placeholders for images, allowed: 16"):
            integration.prune_inputs(model("llava"), inputs, "divprune")

    def test_positions(self):
        with pytest.raises(ValueError, match="`positions` is 'best', allowed: 'preserve' or 'pack'"):
            integration.apply(model("llava"), "divprune", positions="best")
        with pytest.raises(ValueError, match="'pack' for a method inside the language model"):
            integration.apply(model("llava"), "fastv", positions="pack")

    def test_caches(self):
        config = transformers.MistralConfig(sliding_window=4, num_hidden_layers=1)
        cache = transformers.DynamicCache(config=config)
        with pytest.raises(ValueError, match="DynamicSlidingWindowLayer at layer 0, allowed: DynamicLayer"):
            integration.compact_cache(cache, torch.zeros(1, 1, dtype=torch.long))

    def test_a_failed_call_leaves_the_next_one_alone(self):
        inputs, bad = prompt("llava", batch=2), prompt("llava", batch=2)
        bad["attention_mask"][0, -1] = 0
        with integration.apply(model("llava"), "divprune", keep=0.5):
            want = generate("llava", inputs).tolist()
            with pytest.raises(ValueError, match="padding"):
                generate("llava", bad)
            assert generate("llava", inputs).tolist() == want


def _needs(signal):
    info = methods.Info("probe", "Probe", "none", "selection", "projector", ("hidden", signal), "exact", "code", "none")
    return type("Probe", (methods.Method,), {"info": info})()
