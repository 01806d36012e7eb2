"""rotate_keys on the backends of the CPU, against float64 rotation and against the keys as they were before RoPE."""

import numpy as np
import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import testing


@samples("rotate_keys")
def test_rotation(backend, sample):
    out = testing.run("rotate_keys", backend, *sample.args, **sample.kwargs)
    assert_contract("rotate_keys", out, sample)
    testing.assert_rotate_keys(out, *sample.args, **sample.kwargs)
    assert_same_bytes(run_out("rotate_keys", backend, sample), out)


@samples("rotate_keys")
def test_the_output_may_be_the_keys(backend, sample):
    keys, *rest = sample.args
    if "hostile" in sample.name or keys.stride(-1) != 1:
        return  # expanded, or of a stride that no output may have
    want = testing.run("rotate_keys", backend, keys, *rest, **sample.kwargs)
    keys = testing.copied(keys)
    testing.run("rotate_keys.out", backend, keys, *rest, **sample.kwargs, out=keys)
    assert_same_bytes(keys, want)


def rope(x, angles, interleaved=False):
    """float64: [B, H, N, d] keys turned by angles [B, N, pairs]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    pairs = angles.shape[-1]
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :pairs], x[..., pairs:])
    turned = a * cos - b * sin, b * cos + a * sin
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pruned_cache_gets_the_keys_of_its_new_positions(backend, dtype, interleaved):
    """gather_kv and rotate_keys of a rotated cache: the plain keys of the kept tokens, rotated to their new places."""
    plain, kept = testing.rand(2, 4, 600, 64).double(), torch.arange(600).view(2, 300)[:, ::3] * 2 % 600
    kept = kept.sort(-1).values
    inv_freq = 10000.0 ** -(torch.arange(0, 64, 2) / 64)

    def angles(positions):
        return positions[..., None].double() * inv_freq.double()

    cache = rope(plain, angles(torch.arange(600).expand(2, 600)), interleaved).to(dtype)
    (keys,) = testing.run("gather_kv", backend, [cache], kept)
    new = torch.arange(kept.shape[1]).expand(2, -1)
    got = testing.run("rotate_keys", backend, keys, new - kept, inv_freq, interleaved=interleaved)
    own = plain.gather(2, kept[:, None, :, None].expand(2, 4, -1, 64))
    want = rope(own, angles(new), interleaved)
    assert (got.double() - want).abs().max() <= 2 * torch.finfo(dtype).eps * want.abs().max()


def test_m_rope_turns_each_section_by_its_axis(backend):
    """As Qwen2-VL: time, height and width each turn their section of the pairs."""
    sections, inv_freq = [16, 24, 24], 1e6 ** -(torch.arange(0, 128, 2) / 128)
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randint(0, 900, (2, 3, 1, 50), generator=generator)
    plain = testing.rand(1, 2, 50, 128).double()

    def angles(positions):
        parts = (positions[..., None].double() * inv_freq.double()).split(sections, -1)
        return torch.cat([part[axis] for axis, part in enumerate(parts)], -1)

    keys = rope(plain, angles(old)).float()
    got = testing.run("rotate_keys", backend, keys, new - old, vtkernels.mrope_inv_freq(inv_freq, sections))
    want = rope(plain, angles(new))
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


def test_interleaved_sections():
    """As Qwen3-VL: t h w t h w .. until h and w have theirs."""
    inv_freq = torch.arange(1.0, 12.0)
    table = vtkernels.mrope_inv_freq(inv_freq, [5, 3, 3], interleaved_sections=True)
    assert table.argmax(0).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0]
    assert torch.equal(table.sum(0), inv_freq)
    with pytest.raises(ValueError, match=r"mrope_inv_freq: `sections` is \[5, 3, 2\] .*allowed: "):
        vtkernels.mrope_inv_freq(inv_freq, [5, 3, 2])


def test_a_row_does_not_depend_on_its_neighbours(backend):
    keys, deltas = testing.rand(3, 2, 40, 32), torch.arange(120).view(3, 40)
    inv_freq = 1 / torch.arange(1.0, 17.0)
    both = testing.run("rotate_keys", backend, keys, deltas, inv_freq)
    assert_same_bytes(both[1:2], testing.run("rotate_keys", backend, keys[1:2], deltas[1:2], inv_freq))
    assert_same_bytes(both, testing.run("rotate_keys", backend, keys, deltas, inv_freq))


def test_the_gradient_is_the_rotation_back():
    keys = testing.rand(2, 3, 7, 6).requires_grad_()
    deltas, inv_freq = torch.arange(14).view(2, 7), torch.tensor([1.0, 0.1])
    weights = testing.rand(2, 3, 7, 6, seed=1)
    (vtkernels.rotate_keys(keys, deltas, inv_freq, interleaved=True) * weights).sum().backward()
    want, _ = testing.compact.oracle_rotate(weights, -deltas, inv_freq, interleaved=True)
    np.testing.assert_allclose(keys.grad.numpy(), want, atol=1e-6)


K, DELTA, FREQ = testing.rand(2, 3, 9, 8), torch.zeros(2, 9, dtype=torch.int32), torch.ones(4)


@pytest.mark.parametrize(("args", "kwargs", "arg", "got"), [
    ((K.double(), DELTA, FREQ), {}, "keys", "float64"),
    ((K[0], DELTA, FREQ), {}, "keys", "(3, 9, 8)"),
    ((K, DELTA.float(), FREQ), {}, "deltas", "float32"),
    ((K, DELTA[0], FREQ), {}, "deltas", "(9,)"),
    ((K, DELTA[:1], FREQ), {}, "deltas", "1 in B"),
    ((K, DELTA[:, :8], FREQ), {}, "deltas", "8 in N"),
    ((K, DELTA, FREQ), {"kv_layout": "NHD"}, "deltas", "9 in N"),
    ((K, DELTA, FREQ.half()), {}, "inv_freq", "float16"),
    ((K, DELTA, FREQ[None]), {}, "inv_freq", "(1, 4)"),
    ((K, DELTA.expand(3, 2, 9), torch.ones(2, 4)), {}, "inv_freq", "2 in axes"),
    ((K, DELTA, torch.ones(5)), {}, "inv_freq", "5"),
    ((K, DELTA, FREQ), {"kv_layout": "NH"}, "kv_layout", "'NH'"),
])
def test_bad_input(backend, args, kwargs, arg, got):
    assert_refused("rotate_keys", backend, args, kwargs, arg, got)
