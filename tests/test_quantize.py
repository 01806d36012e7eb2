"""quantize_kv and dequantize_kv on the backends of the CPU: ranges, levels, and the bound of the round trip."""

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, flat, run_out, samples

import vtkernels
from vtkernels import _library, testing
from vtkernels.testing.quantize import packed_bytes

KEY, VALUE = testing.rand(2, 3, 20, 16), testing.rand(2, 3, 20, 16, seed=1)
CLASSES = vtkernels.importance_classes(testing.rand(2, 20), [4, 6, 10])
BITS = [8, 4, 2]
PACKED = testing.run("quantize_kv", "reference", KEY, VALUE, CLASSES, BITS)
NAMED_ONCE = [s for s in testing.SAMPLES["quantize_kv"]() if "range" not in s.name and "twice" not in s.name]


def restore(backend, packed, sample):
    key, _, indices, bits = sample.args
    return testing.run("dequantize_kv", backend, *packed, indices, bits, key.shape[2], dtype=key.dtype)


@samples("quantize_kv")
def test_ranges_and_levels(backend, sample):
    packed = testing.run("quantize_kv", backend, *sample.args)
    assert_contract("quantize_kv", packed, sample)
    testing.assert_quantize_kv(packed, *sample.args)


@samples("dequantize_kv")
def test_values_of_the_codes(backend, sample):
    restored = testing.run("dequantize_kv", backend, *sample.args, **sample.kwargs)
    assert_contract("dequantize_kv", restored, sample)
    testing.assert_dequantize_kv(restored, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("sample", NAMED_ONCE, ids=lambda s: s.name)
def test_every_element_comes_back_within_half_a_step(backend, sample):
    packed = testing.run("quantize_kv", backend, *sample.args)
    testing.assert_round_trip(restore(backend, packed, sample), *sample.args[:2], packed, sample.args[2])


@pytest.mark.parametrize("op", ["quantize_kv", "dequantize_kv"])
def test_out_variant_equals_functional(backend, op):
    for sample in testing.SAMPLES[op]():
        status = torch.zeros(1, dtype=torch.int32)
        outs = run_out(op, backend, sample, status=status)
        assert_same_bytes(outs, testing.run(op, backend, *sample.args, **sample.kwargs))
        assert status.item() == (_library.STATUS_BAD_INDEX if "out-of-range" in sample.name else 0), sample.name


def test_constants_come_back_exactly(backend):
    key = testing.rand(1, 2, 1, 8).expand(1, 2, 9, 8)
    value = testing.rand(1, 2, 9, 1).expand(1, 2, 9, 8)
    everything = [torch.arange(9)[None]]
    packed = testing.run("quantize_kv", backend, key, value, everything, [2])
    restored = testing.run("dequantize_kv", backend, *packed, everything, [2], 9, dtype=torch.float32)
    assert torch.equal(restored[0], key)
    torch.testing.assert_close(restored[1], value, rtol=1e-6, atol=0)  # scaled by its channel and back


def test_fewer_levels_are_fewer_bytes():
    """d 128, bfloat16: 16, 8, 4 and 2 bits an element, beside 8 bytes a token of V and 12 d a class."""
    key = testing.rand(1, 8, 512, 128, dtype=torch.bfloat16)
    everything = [torch.arange(512)[None]]
    plain = 2 * key.numel() * 2
    for bits in (8, 4, 2):
        packed = vtkernels.quantize_kv(key, key, everything, [bits])
        assert packed_bytes(packed) == plain * bits // 16 + 8 * 512 * 8 + 8 * 3 * 128 * 4


def test_classes_do_not_disturb_each_other(backend):
    whole = testing.run("quantize_kv", backend, KEY, VALUE, CLASSES, BITS)
    for c in range(3):
        alone = testing.run("quantize_kv", backend, KEY, VALUE, CLASSES[c:c + 1], BITS[c:c + 1])
        assert_same_bytes([kind[0] for kind in alone], [kind[c] for kind in whole])


def test_a_row_does_not_depend_on_its_neighbours(backend):
    whole = testing.run("quantize_kv", backend, KEY, VALUE, CLASSES, BITS)
    for b in range(2):
        alone = testing.run("quantize_kv", backend, KEY[b:b + 1], VALUE[b:b + 1], [c[b:b + 1] for c in CLASSES], BITS)
        assert_same_bytes(alone, [[t[b:b + 1] for t in kind] for kind in whole])


def test_what_is_not_finite_stays_in_its_group(backend):
    """A channel of K in its class, a token of V."""
    key, value = KEY.clone(), VALUE.clone()
    token = int(CLASSES[1][0, 2])
    key[0, 1, token, 5], value[0, 1, token, 7] = torch.nan, torch.inf
    packed = testing.run("quantize_kv", backend, key, value, CLASSES, BITS)
    restored = testing.run("dequantize_kv", backend, *packed, CLASSES, BITS, 20, dtype=torch.float32)
    lost = torch.zeros(KEY.shape, dtype=torch.bool)
    lost[0, 1, CLASSES[1][0], 5] = True
    assert torch.equal(restored[0].isnan(), lost)
    lost = torch.zeros(KEY.shape, dtype=torch.bool)
    lost[0, 1, token] = True
    assert torch.equal(restored[1].isnan(), lost)


def test_buffers_of_the_other_layout(backend):
    """Caches [B, N, H, d], read and written through views."""
    key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (KEY, VALUE))
    packed = testing.run("quantize_kv", backend, key, value, CLASSES, BITS)
    assert_same_bytes(packed, testing.run("quantize_kv", backend, KEY, VALUE, CLASSES, BITS))
    into = torch.full((2, 2, 20, 3, 16), torch.nan)
    testing.run("dequantize_kv.out", backend, *packed, CLASSES, BITS, 20, dtype=torch.float32,
                out_key=into[0].transpose(1, 2), out_value=into[1].transpose(1, 2))
    want = testing.run("dequantize_kv", backend, *packed, CLASSES, BITS, 20, dtype=torch.float32)
    assert_same_bytes([t.transpose(1, 2) for t in into], want)


def test_codes_of_any_strides(backend):
    strided = [[torch.stack([t, t], -1)[..., 0] for t in kind] for kind in PACKED]
    assert any(t.stride(-1) == 2 for t in flat(strided))
    assert_same_bytes(testing.run("dequantize_kv", backend, *strided, CLASSES, BITS, 20, dtype=torch.float16),
                      testing.run("dequantize_kv", backend, *PACKED, CLASSES, BITS, 20, dtype=torch.float16))


def test_importance_classes():
    scores = torch.tensor([[0.5, torch.nan, 0.5, 0.9, -1.0, 0.7], [1, 1, 1, 1, 1, 1]])
    high, middle, low = vtkernels.importance_classes(scores, [2, 3, 1])
    assert high.tolist() == [[3, 5], [0, 1]]
    assert middle.tolist() == [[0, 2, 4], [2, 3, 4]]
    assert low.tolist() == [[1], [5]]
    assert [c.shape[1] for c in vtkernels.importance_classes(scores, [0, 6])] == [0, 6]
    for counts in ([2, 3], [], [7, -1]):
        with pytest.raises(ValueError, match=r"importance_classes: `counts` is .*allowed: "):
            vtkernels.importance_classes(scores, counts)


def test_gradients_are_refused():
    with pytest.raises(RuntimeError, match="`key` requires a gradient, which this op does not have"):
        vtkernels.quantize_kv(KEY.clone().requires_grad_(), VALUE, CLASSES, BITS)


@pytest.mark.parametrize(("args", "arg", "got"), [
    ((KEY.long(), VALUE, CLASSES, BITS), "key", "int64"),
    ((KEY, VALUE.half(), CLASSES, BITS), "value", "float16"),
    ((KEY[0], VALUE, CLASSES, BITS), "key", "(3, 20, 16)"),
    ((KEY, VALUE[..., :8], CLASSES, BITS), "value", "(2, 3, 20, 8)"),
    ((KEY, VALUE, [], []), "indices", "empty"),
    ((KEY, VALUE, CLASSES, BITS[:2]), "bits", "2"),
    ((KEY, VALUE, CLASSES, [8, 3, 2]), "bits[1]", "3"),
    ((KEY, VALUE, CLASSES, [8, 4, 16]), "bits[2]", "16"),
    ((KEY, VALUE, [CLASSES[0].float()], [8]), "indices[0]", "float32"),
    ((KEY, VALUE, [CLASSES[0], CLASSES[1][:1]], [8, 2]), "indices[1]", "1"),
    ((KEY, VALUE, [CLASSES[0][0]], [8]), "indices[0]", "(4,)"),
])
def test_bad_arguments_of_quantize(backend, args, arg, got):
    assert_refused("quantize_kv", backend, args, {}, arg, got)


@pytest.mark.parametrize(("changed", "arg", "got"), [
    ({"bits": [8, 4, 1]}, "bits[2]", "1"),
    ({"bits": [8, 4]}, "bits", "2"),
    ({"bits": [8, 4, 4]}, "key_codes[2]", "(2, 3, 10, 4)"),
    ({"key_codes": PACKED[0][:2]}, "key_codes", "2"),
    ({"key_codes": [t.float() for t in PACKED[0]]}, "key_codes[0]", "float32"),
    ({"key_params": [t.half() for t in PACKED[1]]}, "key_params[0]", "float16"),
    ({"value_codes": PACKED[2][::-1]}, "value_codes[0]", "(2, 3, 10, 4)"),
    ({"value_params": [t[:, :, 1:] for t in PACKED[3]]}, "value_params[0]", "(2, 3, 3, 2)"),
    ({"value_scales": []}, "value_scales", "empty"),
    ({"value_scales": [t[0] for t in PACKED[4]]}, "value_scales[0]", "(3, 16)"),
    ({"indices": [c[:1] for c in CLASSES]}, "indices[0]", "1"),
    ({"tokens": -1}, "tokens", "-1"),
    ({"dtype": torch.float64}, "dtype", "float64"),
])
def test_bad_arguments_of_dequantize(backend, changed, arg, got):
    names = ("key_codes", "key_params", "value_codes", "value_params", "value_scales")
    call = {**dict(zip(names, PACKED, strict=True)), "indices": CLASSES, "bits": BITS, "tokens": 20,
            "dtype": torch.float32, **changed}
    assert_refused("dequantize_kv", backend, (), call, arg, got)


@pytest.mark.parametrize(("name", "bad"), [
    ("out_key_codes", [torch.zeros(2, 3, 4, 15, dtype=torch.uint8)]),
    ("out_value_params", [torch.zeros(2, 3, 4, 2).half()]),
    ("out_value_scales", []),
])
def test_bad_buffers_are_refused_before_anything_is_written(backend, name, bad):
    good = _library.allocate(_library.CONTRACTS["quantize_kv"](KEY, VALUE, CLASSES[:1], [8]))
    outs = {arg: [t.fill_(7) for t in kind] for arg, kind in zip(_library.OUT_ARGS["quantize_kv"], good, strict=True)}
    with pytest.raises((ValueError, TypeError, RuntimeError), match=rf"quantize_kv.out: `{name}(\[0\])?` is "):
        testing.run("quantize_kv.out", backend, KEY, VALUE, CLASSES[:1], [8], **{**outs, name: bad})
    assert all((t == 7).all() for t in flat(list(outs.values())))
