"""attention_scores and attention_scores_varlen on the backends of the CPU, against float64."""

import subprocess
import sys

import pytest
import torch
from helpers import assert_contract, assert_refused, assert_same_bytes, run_out, samples

import vtkernels
from vtkernels import testing

DENSE, VARLEN = "attention_scores", "attention_scores_varlen"
Q, K = testing.rand(2, 4, 5, 8), testing.rand(2, 2, 30, 8, seed=1)
PACKED_Q, PACKED_K = testing.rand(5, 4, 8), testing.rand(30, 2, 8, seed=1)
CU_Q, CU_K = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([0, 10, 30], dtype=torch.int32)
PACKED = (PACKED_Q, PACKED_K, CU_Q, CU_K, 30, 3, 20)
PAGES, TABLE = testing.rand(3, 7, 2, 8), torch.zeros(2, 4, dtype=torch.int32)


@samples(DENSE)
def test_dense_against_float64(backend, sample):
    scores = testing.run(DENSE, backend, *sample.args, **sample.kwargs)
    assert_contract(DENSE, scores, sample)
    testing.assert_attention_scores(scores, *sample.args, **sample.kwargs)
    assert_same_bytes(run_out(DENSE, backend, sample), scores)


@samples(VARLEN)
def test_varlen_against_float64(backend, sample):
    scores = testing.run(VARLEN, backend, *sample.args, **sample.kwargs)
    assert_contract(VARLEN, scores, sample)
    testing.assert_attention_scores_varlen(scores, *sample.args, **sample.kwargs)
    status = torch.zeros(1, dtype=torch.int32)
    assert_same_bytes(run_out(VARLEN, backend, sample, status=status), scores)
    assert status.item() == testing.attention.oracle_attention_varlen(*sample.args, **sample.kwargs)[2]
    expected = {"broken-table": 1, "short-table": 1, "no-blocks": 1, "too-long": 4, "hostile-seqlens": 4}
    assert status.item() == next((bit for name, bit in expected.items() if name in sample.name), 0)


def test_the_output_may_be_a_slice_of_a_larger_buffer(backend):
    buffer = torch.full((2, 6, 40), 7.0)
    testing.run(f"{DENSE}.out", backend, Q, K, reduce_heads="none", out=buffer[:, 1:5, 3:33])
    assert_same_bytes(buffer[:, 1:5, 3:33].contiguous(), testing.run(DENSE, backend, Q, K, reduce_heads="none"))
    assert (buffer[:, (0, 5)] == 7).all()
    assert (buffer[:, :, (0, 1, 2, 33, 39)] == 7).all()


def test_packed_equals_dense(backend):
    """A sequence of its own gives what the packed one gives, whatever lies before and after it."""
    scores = testing.run(VARLEN, backend, *PACKED, causal=True)
    for i, (rows, keys) in enumerate(((slice(0, 2), slice(0, 10)), (slice(2, 5), slice(10, 30)))):
        q, k = PACKED_Q[rows].transpose(0, 1)[None], PACKED_K[keys].transpose(0, 1)[None]
        alone = testing.run(DENSE, backend, q, k, causal=True)
        assert_same_bytes(scores[keys], alone[0]), i


def test_paged_equals_packed(backend):
    pages = testing.rand(9, 7, 2, 8, seed=3)
    table = torch.tensor([[3, 1, 0, 2], [8, 5, 7, 4]], dtype=torch.int32)
    packed = torch.cat([pages[[3, 1]].flatten(0, 1)[:10], pages[[8, 5, 7]].flatten(0, 1)[:20]])
    for options in ({}, {"causal": True, "reduce_heads": "none"}, {"logits": True}):
        got = testing.run(VARLEN, backend, PACKED_Q, pages, *PACKED[2:], block_table=table, **options)
        assert_same_bytes(got, testing.run(VARLEN, backend, PACKED_Q, packed, *PACKED[2:], **options))


def test_the_scored_range_does_not_change_the_scores(backend):
    for options in ({}, {"logits": True, "causal": True}, {"reduce_rows": "max", "reduce_heads": "none"}):
        whole = testing.run(DENSE, backend, Q, K, **options)
        for start, length in ((0, 30), (7, 13), (29, 1), (5, -1)):
            part = testing.run(DENSE, backend, Q, K, key_start=start, key_len=length, **options)
            assert_same_bytes(part, whole[..., start:30 if length == -1 else start + length].contiguous())


def test_given_denominators_are_used(backend):
    lse = torch.randn(2, 4, 5) + 3
    scores = testing.run(DENSE, backend, Q, K, lse=lse, reduce_rows="sum", reduce_heads="none")
    moved = testing.run(DENSE, backend, Q, K, lse=lse + 1, reduce_rows="sum", reduce_heads="none")
    torch.testing.assert_close(moved * torch.e, scores)


def test_rows_of_weight_zero_are_left_out(backend):
    weights = torch.tensor([[1.0, 0, 2, 0, 0.5]] * 2)
    kept = [0, 2, 4]
    spoiled = Q.clone()
    spoiled[:, :, [1, 3]] = torch.nan
    for rows in ("mean", "sum", "max"):
        got = testing.run(DENSE, backend, spoiled, K, row_weights=weights, reduce_rows=rows)
        want = testing.run(DENSE, backend, Q[:, :, kept].contiguous(), K, row_weights=weights[:, kept],
                           reduce_rows=rows)
        torch.testing.assert_close(got, want)


def test_a_batch_entry_does_not_depend_on_its_neighbours(backend):
    q, k = testing.rand(20, 2, 9, 16), testing.rand(20, 1, 300, 16, seed=1)
    if backend == "reference":
        pytest.skip("the reference multiplies through torch, whose blocking depends on the batch")
    for options in ({}, {"causal": True, "reduce_heads": "none"}, {"logits": True}):
        both = testing.run(DENSE, backend, q, k, **options)
        for b in (0, 7, 19):
            alone = testing.run(DENSE, backend, q[b:b + 1], k[b:b + 1], **options)
            assert_same_bytes(both[b:b + 1], alone)


@pytest.mark.parametrize("keys", [300, 5000])
def test_threads_do_not_change_the_scores(keys):
    q, k = testing.rand(1, 6, 40, 32), testing.rand(1, 2, keys, 32, seed=1)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append([testing.run(DENSE, "cpu", q, k, **options) for options in (
                {}, {"causal": True, "reduce_rows": "max", "reduce_heads": "none"}, {"logits": True})])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert_same_bytes(other, results[0])


def test_every_instruction_set(instruction_set):
    for op in (DENSE, VARLEN):
        for sample in testing.SAMPLES[op]():
            testing.CHECKS[op](testing.run(op, "cpu", *sample.args, **sample.kwargs), *sample.args,
                               **sample.kwargs)
    # Exponentials over their whole range: two units in the last place, beside the rounding of the argument.
    k = torch.zeros(1, 1, 4000, 1)
    k[0, 0, :, 0] = -torch.linspace(0, 160, 4000)
    q = torch.ones(1, 1, 1, 1)
    scores = testing.run(DENSE, "cpu", q, k, scale=1.0, lse=torch.zeros(1, 1, 1))
    exact = k.double().flatten().exp()
    normal = exact > 2e-38
    eps = torch.finfo(torch.float32).eps
    error = ((scores[0].double() - exact) / exact).abs()
    assert (error <= (2 + k.flatten().abs()) * eps)[normal].all()
    assert (scores[0][~normal] <= 2e-38).all()


def test_the_matrix_is_never_stored():
    """64 rows of 28 heads and 16384 keys: the process grows by less than 5 % of the matrix."""
    code = """if True:
        import resource, torch, vtkernels
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        q, k = torch.randn(1, 28, 64, 128), torch.randn(1, 4, 16384, 128)
        vtkernels.attention_scores(q[:, :, :1, :8], k[:, :, :500, :8])
        before = peak()
        vtkernels.attention_scores(q, k)
        print((peak() - before) / (28 * 64 * 16384 * 4))
    """
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert float(child.stdout) < 0.05, child.stdout + child.stderr


BAD = [
    # op, args, kwargs, argument named, what came
    (DENSE, (Q[0], K), {}, "query", "(4, 5, 8)"),
    (DENSE, (Q, K[0]), {}, "key", "(2, 30, 8)"),
    (DENSE, (Q, K.half()), {}, "key", "float16"),
    (DENSE, (Q.double(), K.double()), {}, "query", "float64"),
    (DENSE, (Q, K[..., :7]), {}, "key", "7"),
    (DENSE, (Q[..., :0], K[..., :0]), {}, "query", "0"),
    (DENSE, (Q, K[:1]), {}, "key", "1"),
    (DENSE, (Q[:, :3], K), {}, "query", "3 heads"),
    (DENSE, (Q[:, :0], K), {}, "query", "0 heads"),
    (DENSE, (Q, K[:, :0]), {}, "key", "0"),
    (DENSE, (Q, K), {"lse": torch.zeros(2, 4, 6)}, "lse", "(2, 4, 6)"),
    (DENSE, (Q, K), {"lse": torch.zeros(2, 4, 5).half()}, "lse", "float16"),
    (DENSE, (Q, K), {"lse": torch.zeros(2, 4, 5), "logits": True}, "lse", "given"),
    (DENSE, (Q, K), {"row_weights": torch.zeros(2, 4)}, "row_weights", "(2, 4)"),
    (DENSE, (Q, K), {"causal_offset": 3}, "causal_offset", "3"),
    (DENSE, (Q, K), {"key_start": 31}, "key_start", "31"),
    (DENSE, (Q, K), {"key_start": -1}, "key_start", "-1"),
    (DENSE, (Q, K), {"key_start": 3, "key_len": 28}, "key_len", "28"),
    (DENSE, (Q, K), {"key_len": -2}, "key_len", "-2"),
    (DENSE, (Q, K), {"reduce_rows": "none"}, "reduce_rows", "'none'"),
    (DENSE, (Q, K), {"reduce_heads": "first"}, "reduce_heads", "'first'"),
    (DENSE, (Q, K), {"layout": "BHND"}, "layout", "'BHND'"),
    (VARLEN, (Q, *PACKED[1:]), {}, "query", "(2, 4, 5, 8)"),
    (VARLEN, (PACKED_Q, Q, *PACKED[2:]), {}, "key", "(2, 4, 5, 8)"),
    (VARLEN, (*PACKED[:2], CU_Q.long(), *PACKED[3:]), {}, "cu_seqlens_q", "int64"),
    (VARLEN, (*PACKED[:3], CU_K[:2], *PACKED[4:]), {}, "cu_seqlens_k", "2"),
    (VARLEN, (*PACKED[:2], CU_Q[:0], CU_K[:0], *PACKED[4:]), {}, "cu_seqlens_q", "0"),
    (VARLEN, (*PACKED[:4], 29, 3, 20), {}, "total_k", "29"),
    (VARLEN, (*PACKED[:5], -1, 20), {}, "max_seqlen_q", "-1"),
    (VARLEN, (*PACKED[:6], -1), {}, "max_seqlen_k", "-1"),
    (VARLEN, PACKED, {"kv_layout": "THD"}, "kv_layout", "'THD'"),
    (VARLEN, PACKED, {"lse": torch.zeros(5, 4)}, "lse", "(5, 4)"),
    (VARLEN, PACKED, {"row_weights": torch.zeros(2)}, "row_weights", "(2,)"),
    (VARLEN, (PACKED_Q, PAGES, *PACKED[2:]), {"block_table": TABLE.long()}, "block_table", "int64"),
    (VARLEN, (PACKED_Q, PAGES, *PACKED[2:]), {"block_table": TABLE[:1]}, "block_table", "1"),
    (VARLEN, (PACKED_Q, PACKED_K, *PACKED[2:]), {"block_table": TABLE}, "key", "(30, 2, 8)"),
    (VARLEN, (PACKED_Q, PAGES[:, :0], *PACKED[2:]), {"block_table": TABLE}, "key", "0"),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), BAD)
def test_bad_arguments(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)


@pytest.mark.parametrize(("changed", "arg", "got"), [
    ({"out": torch.full((29,), 7.0)}, "out", "(29,)"),
    ({"out": torch.full((30,), 7, dtype=torch.int32)}, "out", "int32"),
    ({"out": torch.full((60,), 7.0)[::2]}, "out", "last stride"),
    ({"status": torch.zeros(2, dtype=torch.int32)}, "status", "2"),
])
def test_bad_buffers_are_refused_before_anything_is_written(backend, changed, arg, got):
    out = torch.full((30,), 7.0)
    kwargs = {"out": out, **changed}
    assert_refused(f"{VARLEN}.out", backend, PACKED, kwargs, arg, got)
    assert (out == 7).all()
    assert (kwargs["out"] == 7).all()


def test_gradients_are_refused():
    with pytest.raises(RuntimeError, match="`key` requires a gradient"):
        vtkernels.attention_scores(Q, K.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="`query` requires a gradient"):
        vtkernels.attention_scores_varlen(PACKED_Q.clone().requires_grad_(), *PACKED[1:])
