"""Attention patterns against loops over pairs of positions, and through flex_attention."""

import doctest
import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from vtkernels import testing
from vtkernels.attend import patterns


def pairs(mask_mod, n, batch=1):
    return create_mask(mask_mod, batch, 1, n, n, device="cpu")[:, 0].tolist()


def by_loop(rule, n):
    return [[rule(q, k) for k in range(n)] for q in range(n)]


def test_the_neighbour_window():
    start, height, width, window = 3, 4, 5, 3

    def rule(q, k):
        if all(start <= p < start + height * width for p in (q, k)):
            (qr, qc), (kr, kc) = divmod(q - start, width), divmod(k - start, width)
            return max(abs(qr - kr), abs(qc - kc)) <= window // 2
        return k <= q

    assert pairs(patterns.neighbour_window(start, height, width, window), 27) == [by_loop(rule, 27)]


def test_segments():
    ids = torch.tensor([[0, 1, 0, 2, -1, 1, -1], [3, 3, 3, -1, -1, 0, 0]])
    got = pairs(patterns.same_segment(ids), 7, batch=2)
    for b, row in enumerate(ids.tolist()):
        assert got[b] == by_loop(lambda q, k, row=row: row[q] == row[k] and row[q] >= 0, 7)


def test_frames():
    ids = torch.tensor([[0, 0, 1, 1, 1, 2]])
    row = ids[0].tolist()
    assert pairs(patterns.frame_causal(ids), 6) == [by_loop(lambda q, k: row[k] <= row[q], 6)]
    q, k = torch.tensor(5), torch.tensor(1)
    for slope, head, want in ((0.5, 0, 3 - 1.0), (torch.tensor([0.5, 2.0]), 1, 3 - 4.0)):
        got = patterns.frame_decay(ids, slope)(torch.tensor(3.0), torch.tensor(0), torch.tensor(head), q, k)
        assert got.item() == want


def test_temporal_columns():
    assert pairs(patterns.temporal_column(4), 12) == [by_loop(lambda q, k: q % 4 == k % 4 and k <= q, 12)]


@pytest.mark.parametrize("width", [1, 4, 5])
def test_bands(width):
    assert pairs(patterns.banded(width), 9) == [by_loop(lambda q, k: abs(q - k) <= width // 2, 9)]


@pytest.mark.parametrize("shift", [False, True])
def test_proxy_windows(shift):
    frames, height, width, window = 2, 3, 5, (1, 2, 2)
    move = [s // 2 if shift else 0 for s in window]

    def cell(p):
        t, rest = divmod(p, height * width)
        return [(c + m) // s for c, m, s in zip((t, *divmod(rest, width)), move, window, strict=True)]

    want = by_loop(lambda q, k: cell(q) == cell(k), 30)
    assert pairs(patterns.proxy_window(frames, height, width, window, shift), 30) == [want]


def test_inhibition():
    allowed = testing.rand(2, 4, 6) > 0
    got = pairs(patterns.cross_modal_inhibition(allowed, 8, 1), 13, batch=2)
    for b in range(2):
        def rule(q, k, b=b):
            crossing = 8 <= q < 12 and 1 <= k < 7
            return k <= q and (not crossing or bool(allowed[b, q - 8, k - 1]))

        assert got[b] == by_loop(rule, 13)
    weights = testing.rand(2, 4, 4).softmax(-1), testing.rand(2, 4, 6).softmax(-1)
    want = torch.einsum("bts,bsn->btn", *weights)
    torch.testing.assert_close(patterns.text_focus(*weights), want)


def attention(q, k, v, mask=None, bias=None):
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    logits = logits + bias if bias is not None else logits
    logits = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def heads():
    return [testing.rand(1, 2, 24, 8, seed=s) for s in range(3)]


def test_a_band_rescaled_has_the_weights_of_full_attention():
    q, k, v = heads()
    mask_mod = patterns.banded(7)
    block_mask = create_block_mask(mask_mod, 1, 1, 24, 24, device="cpu")
    out, lse_band = flex_attention(q, k, v, block_mask=block_mask, return_lse=True)
    _, lse_all = flex_attention(q, k, v, return_lse=True)
    mask = create_mask(mask_mod, 1, 1, 24, 24, device="cpu")
    weights = (q @ k.mT / math.sqrt(8)).softmax(-1) * mask
    torch.testing.assert_close(out * patterns.band_share(lse_band, lse_all)[..., None], weights @ v)


def test_merged_tokens_draw_the_attention_of_their_members():
    q, k, v = heads()
    doubled = [torch.cat([t, t[:, :, 3:4]], 2) for t in (k, v)]  # token 3 twice
    sizes = torch.ones(1, 24)
    sizes[0, 3] = 2
    got = flex_attention(q, k, v, score_mod=patterns.log_size_bias(sizes))
    torch.testing.assert_close(got, attention(q, *doubled)[0])


def test_a_decay_and_a_mask_together():
    q, k, v = heads()
    ids = (torch.arange(24) // 5)[None]
    block_mask = create_block_mask(patterns.frame_causal(ids), 1, 1, 24, 24, device="cpu")
    got = flex_attention(q, k, v, score_mod=patterns.frame_decay(ids, 0.7), block_mask=block_mask)
    bias = 0.7 * (ids[0][None, :] - ids[0][:, None])
    want, _ = attention(q, k, v, mask=ids[0][None, :] <= ids[0][:, None], bias=bias)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("call", "named"), [
    (lambda: patterns.neighbour_window(0, 4, 4, 2), "`window` is 2, allowed: an odd"),
    (lambda: patterns.neighbour_window(0, 0, 4, 3), "`height` is 0, allowed: at least 1"),
    (lambda: patterns.temporal_column(0), "`tokens_per_frame` is 0"),
    (lambda: patterns.banded(0), "`width` is 0"),
    (lambda: patterns.proxy_window(1, 2, 2, (1, 0, 2)), r"`window\[1\]` is 0"),
])
def test_bad_arguments(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_the_example():
    assert doctest.testmod(patterns).failed == 0
