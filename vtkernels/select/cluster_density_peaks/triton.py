"""A matrix of distances; a program per token for its density, and one for its distance to a denser token."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup
from .._clusters import distances, nearest_centre
from ..select_topk.triton import select_topk_out, selection_keys, threshold


@triton.jit(do_not_specialize=["n", "neighbours", "width"])
def density_kernel(squared, n: tl.int64, neighbours: tl.int64, width: tl.int64, spread, farthest, BLOCK: tl.constexpr,
                   SINGLE: tl.constexpr):
    """Mean squared distance to the neighbours (NaN for a void token), and the largest finite one."""
    token = tl.program_id(0).to(tl.int64)
    squared += token * n
    cut, ties = threshold(squared, 1, n, neighbours, False, BLOCK, SINGLE)
    total = tl.zeros((), tl.float64)
    tied = tl.zeros((), tl.float32)
    largest = tl.zeros((), tl.float32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        d = tl.load(squared + place, mask=place < n, other=0.0)
        key = selection_keys(squared, 1, start, n, False, BLOCK)
        total += tl.sum(tl.where(key > cut, d, 0.0).to(tl.float64), 0)
        tied = tl.maximum(tied, tl.max(tl.where((key == cut) & (place < n), d, 0.0), 0))
        largest = tl.maximum(largest, tl.max(tl.where(d < float("inf"), d, 0.0), 0))
    if ties > 0:
        total += tied.to(tl.float64) * ties.to(tl.float64)
    mean = (total / neighbours.to(tl.float64) / width.to(tl.float64)).to(tl.float32)
    own = tl.load(squared + token % n)
    tl.store(spread + token, tl.where(own == 0, mean, float("nan")))
    tl.store(farthest + token, largest)


@triton.jit(do_not_specialize=["n", "width"])
def peak_kernel(squared, n: tl.int64, width: tl.int64, spread, farthest, score, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    own_place = token % n
    row = token - own_place
    own = tl.load(spread + token)
    delta = tl.full((), float("inf"), tl.float32)
    largest = tl.zeros((), tl.float32)
    count = tl.zeros((), tl.int32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        other = tl.load(spread + row + place, mask=place < n, other=float("nan"))
        denser = (other < own) | ((other == own) & (place < own_place))
        d = tl.load(squared + token * n + place, mask=denser, other=float("inf"))
        delta = tl.minimum(delta, tl.min(d, 0))
        count += tl.sum(denser.to(tl.int32), 0)
        largest = tl.maximum(largest, tl.max(tl.load(farthest + row + place, mask=place < n, other=0.0), 0))
    delta = tl.where(count > 0, delta, largest)
    tl.store(score + token, tl.exp(-own) * tl.sqrt(delta / width.to(tl.float32)))


def cluster_density_peaks_out(features: Tensor, clusters: int, *, neighbours: int = 5, out_assignment: Tensor,
                              out_centres: Tensor) -> None:
    batch, n, d = features.shape
    if batch == 0 or n == 0:
        return
    config = lookup.config("cluster_density_peaks", _triton.device_name(features.device), features.dtype, n=n, d=d)
    block = config["select_block"]
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    squared = distances(features, config, cosine=False, root=False)
    spread, farthest, score = squared.new_empty((3, batch, n)).unbind(0)
    _triton.launch(density_kernel, batch * n, features.device, squared, n, neighbours, max(1, d), spread, farthest,
                   BLOCK=block, SINGLE=n <= block, **options)
    _triton.launch(peak_kernel, batch * n, features.device, squared, n, max(1, d), spread, farthest, score,
                   BLOCK=block, **options)
    select_topk_out(score, clusters, out=out_centres)
    nearest_centre(squared, out_centres.contiguous(), out_assignment, None, config)
