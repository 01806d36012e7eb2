"""One clear error for each bad input: it names the argument, what came and what is allowed. Nothing runs before it."""

import pytest
import torch
from helpers import assert_refused

import vtkernels
from vtkernels import testing

H, P = testing.rand(2, 20, 8), testing.rand(4, 8)
KV = testing.rand(2, 3, 20, 4)
SCORES, IDX = testing.rand(2, 20), torch.zeros(2, 3, dtype=torch.int64)
INT32 = {"dtype": torch.int32}

CASES = [
    # op, args, kwargs, argument named, what came
    ("prune_topk", (H, P, -1), {}, "k", "-1"),
    ("prune_topk", (H, P, 21), {}, "k", "21"),
    ("prune_topk", (H, P, 6), {"span_start": 3, "span_len": 5}, "k", "6"),
    ("prune_topk", (H, P, 1), {"span_start": -1}, "span_start", "-1"),
    ("prune_topk", (H, P, 1), {"span_start": 21}, "span_start", "21"),
    ("prune_topk", (H, P, 1), {"span_start": 10, "span_len": 11}, "span_len", "11"),
    ("prune_topk", (H, P, 1), {"span_len": -2}, "span_len", "-2"),
    ("prune_topk", (H, P, 1), {"span_starts": torch.zeros(2, **INT32)}, "span_len", "-1"),
    ("prune_topk", (H, P, 1), {"span_starts": torch.zeros(3, **INT32), "span_len": 5}, "span_starts", "3"),
    ("prune_topk", (H, P, 1), {"span_starts": torch.zeros(2), "span_len": 5}, "span_starts", "float32"),
    ("prune_topk", (H, P.half(), 1), {}, "prototypes", "float16"),
    ("prune_topk", (H.double(), P.double(), 1), {}, "hidden", "float64"),
    ("prune_topk", (H.long(), P.long(), 1), {}, "hidden", "int64"),
    ("prune_topk", (H.to(torch.complex64), P.to(torch.complex64), 1), {}, "hidden", ""),
    ("prune_topk", (H[0], P, 1), {}, "hidden", "(20, 8)"),
    ("prune_topk", (H, P[:, :7], 1), {}, "prototypes", "7"),
    ("prune_topk", (H, P[:0], 1), {}, "prototypes", "(0, 8)"),
    ("prune_topk", (H, P[0], 1), {}, "prototypes", "(8,)"),
    ("prune_topk", (H, P, 1, [KV[:1]]), {}, "kv[0]", "1"),
    ("prune_topk", (H, P, 1, [KV, KV[:, :, :19]]), {}, "kv[1]", "19"),
    ("prune_topk", (H, P, 1, [KV[0]]), {}, "kv[0]", "(3, 20, 4)"),
    ("prune_topk", (H, P, 1, [KV]), {"kv_layout": "NHD"}, "kv[0]", "3"),
    ("prune_topk", (H, P, 1, [KV]), {"kv_layout": "BSHD"}, "kv_layout", "'BSHD'"),
    ("prune_topk", (H, P, 1), {"prototype_rnorm": torch.ones(3)}, "prototype_rnorm", "3"),
    ("prune_topk", (H, P, 1), {"prototype_rnorm": torch.ones(4).half()}, "prototype_rnorm", "float16"),
    ("prune_topk", (H, P.to("meta"), 1), {}, "prototypes", "on "),
    ("prototype_scores", (H, P), {"metric": "l1"}, "metric", "'l1'"),
    ("prototype_scores", (H, P), {"metric": "dot", "prototype_rnorm": torch.ones(4)}, "prototype_rnorm", "given"),
    ("prototype_scores", (H[None], P), {}, "tokens", "(1, 2, 20, 8)"),
    ("prototype_scores", (H, P), {"metric": "l2", "prototype_rnorm": torch.ones(4)}, "prototype_rnorm", "given"),
    ("prototype_scores", (H, P[None]), {}, "prototypes", "1"),
    ("prototype_scores", (H[0], P[None]), {}, "tokens", "(20, 8)"),
    ("prototype_scores", (H, P.expand(20, 4, 8)), {"prototype_rnorm": torch.ones(4)}, "prototype_rnorm", "given"),
    ("prototype_scores", (H, P.expand(20, 4, 8)[..., :7]), {}, "prototypes", "7"),
    ("select_topk", (SCORES, 21), {}, "k", "21"),
    ("select_topk", (SCORES, -1), {}, "k", "-1"),
    ("select_topk", (SCORES.half(), 1), {}, "scores", "float16"),
    ("select_topk", (SCORES[0], 1), {}, "scores", "(20,)"),
    ("gather_tokens", ([], IDX), {}, "tensors", "empty"),
    ("gather_tokens", ([H, H[:, :5]], IDX), {}, "tensors[1]", "5"),
    ("gather_tokens", ([H], IDX.float()), {}, "indices", "float32"),
    ("gather_tokens", ([H], IDX[:1]), {}, "indices", "1"),
    ("gather_tokens", ([H], IDX), {"token_dims": [0]}, "token_dims[0]", "0"),
    ("gather_tokens", ([H], IDX), {"token_dims": [3]}, "token_dims[0]", "3"),
    ("gather_tokens", ([H], IDX), {"token_dims": [1, 1]}, "token_dims", "2"),
    ("gather_kv", ([], IDX), {}, "kv", "empty"),
    ("gather_kv", ([H], IDX), {}, "kv[0]", "(2, 20, 8)"),
    ("gather_kv", ([KV, KV[:, :, :7]], IDX), {}, "kv[1]", "7"),
    ("prune_topk_varlen", (H[0], P, torch.zeros(3, **INT32), torch.zeros(1, **INT32), 5), {}, "cu_seqlens", "3"),
    ("prune_topk_varlen", (H[0], P, torch.zeros(2), torch.zeros(1, **INT32), 5), {}, "cu_seqlens", "float32"),
    ("prune_topk_varlen", (H[0], P, torch.zeros(2, **INT32), torch.zeros(1, **INT32), 21), {}, "total_out", "21"),
    ("prune_topk_varlen", (H, P, torch.zeros(2, **INT32), torch.zeros(1, **INT32), 5), {}, "hidden", "(2, 20, 8)"),
    ("prune_topk_varlen", (H[0], P, torch.zeros(2, **INT32), torch.zeros(1, **INT32), 5),
     {"span_starts": torch.zeros(1, **INT32)}, "span_starts, span_lens", "only one"),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "arg", "got"), CASES)
def test_bad_arguments(backend, op, args, kwargs, arg, got):
    assert_refused(op, backend, args, kwargs, arg, got)


def special(kind):
    if kind == "sparse":
        return H.to_sparse()
    if kind == "nested":
        return torch.nested.nested_tensor([H[0], H[1]], layout=torch.strided)
    if kind == "jagged":
        return torch.nested.nested_tensor([H[0], H[1, :7]], layout=torch.jagged)
    return torch.quantize_per_tensor(H, 0.1, 0, torch.qint8)


@pytest.mark.parametrize("kind", ["sparse", "nested", "jagged", "quantised"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense(kind):
    x = special(kind)
    for call in (lambda: vtkernels.prune_topk(x, P, 1), lambda: vtkernels.gather_tokens([x], IDX),
                 lambda: vtkernels.prototype_scores(x, P)):
        named = r"`(hidden|tensors\[0\]|tokens)` is .*allowed: "
        with pytest.raises((TypeError, ValueError, RuntimeError), match=named):
            call()


def test_things_that_are_not_tensors():
    for call in (lambda: vtkernels.prune_topk([1.0], P, 1), lambda: vtkernels.prototype_scores(None, P),
                 lambda: vtkernels.select_topk("scores", 1), lambda: vtkernels.prune_topk(H, P, 1.5)):
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            call()


@pytest.mark.parametrize("call", [
    lambda x: vtkernels.prune_topk(x, P, 1),
    lambda x: vtkernels.prototype_scores(x, P),
    lambda x: vtkernels.select_topk(x[..., 0], 1),
    lambda x: vtkernels.prune_topk_varlen(x[0], P, [0, 20], [3]),
])
def test_gradients_are_refused_where_there_are_none(call):
    x = H.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="requires a gradient, which this op does not have"):
        call(x)
    with torch.no_grad():
        call(x)


OUT_CASES = [
    ({"out_indices": torch.zeros(2, 4, dtype=torch.int16)}, "out_indices", "int16"),
    ({"out_hidden": torch.zeros(2, 5, 8)}, "out_hidden", "(2, 5, 8)"),
    ({"out_hidden": torch.zeros(2, 4, 8).half()}, "out_hidden", "float16"),
    ({"out_hidden": torch.zeros(2, 4, 16)[..., ::2]}, "out_hidden", "last stride"),
    ({"out_kv": []}, "out_kv", "0"),
    ({"out_scores": torch.zeros(2, 4)}, "out_scores", "(2, 4)"),
    ({"workspace": torch.zeros(3, dtype=torch.int32)}, "workspace", "(3,)"),
    ({"workspace": torch.zeros(300)}, "workspace", "float32"),
    ({"status": torch.zeros(2, dtype=torch.int32)}, "status", "2"),
]


@pytest.mark.parametrize(("changed", "arg", "got"), OUT_CASES)
def test_bad_buffers_are_refused_before_anything_is_written(backend, changed, arg, got):
    outs = {"out_hidden": torch.full((2, 4, 8), 7.0), "out_kv": [torch.full((2, 3, 4, 4), 7.0)],
            "out_indices": torch.full((2, 4), 7), "out_scores": torch.full((2, 20), 7.0), **changed}
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        testing.run("prune_topk.out", backend, H, P, 4, [KV], **outs)
    message = str(error.value)
    assert message.startswith(f"prune_topk.out: `{arg}` is "), message
    assert got in message
    for name, t in outs.items():
        if name not in changed:
            assert all((x == 7).all() for x in (t if isinstance(t, list) else [t]))


@pytest.mark.parametrize("kwargs", [{}, {"k": 1, "keep_ratio": 0.5}, {"keep_ratio": 0.0}, {"keep_ratio": 1.5}])
def test_module_arguments(kwargs):
    with pytest.raises(ValueError, match=r"PruneTopK: `k.*allowed: "):
        vtkernels.nn.PruneTopK(P, **kwargs)
