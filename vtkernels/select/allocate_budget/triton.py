"""One program per row, integers only. Segments that reached their capacity have their final number in `out` already."""

import triton
import triton.language as tl
from torch import Tensor

from ... import _triton
from ...tuning import lookup

INFINITY_BITS = tl.constexpr(0x7F800000)
UNLIMITED = tl.constexpr(2**31)


@triton.jit
def positive_bits(weights, stride, start, n, BLOCK: tl.constexpr):
    """int32 bits of the weights above 0, which order them; 0 for all others."""
    place = start + tl.arange(0, BLOCK).to(tl.int64)
    weight = tl.load(weights + place * stride, mask=place < n, other=0.0)
    return tl.where(weight > 0, weight.to(tl.int32, bitcast=True), 0)


@triton.jit
def integer_weights(bits, top):
    """int64 trunc(w * 2**(30 - e)), e the exponent of the largest weight of the row, at least -126."""
    exponent = tl.maximum(bits >> 23, 1)
    significand = (bits & 0x7FFFFF) | tl.where((bits >> 23) > 0, 0x800000, 0)
    scaled = (significand << 7) >> tl.minimum(tl.maximum(top >> 23, 1) - exponent, 31)
    return tl.where(top == INFINITY_BITS, (bits == INFINITY_BITS).to(tl.int32), scaled).to(tl.int64)


@triton.jit
def room_of(place, n, minimum, capacity, capacity_stride):
    """What the segments get first, and how much more they can take."""
    least = tl.where(place < n, minimum, 0)
    most = tl.where(place < n, tl.full((), UNLIMITED, tl.int64), 0)
    if capacity is not None:
        most = tl.maximum(tl.load(capacity + place * capacity_stride, mask=place < n, other=0).to(tl.int64), 0)
        least = tl.minimum(most, minimum)
    return least, most - least


@triton.jit
def open_weights(weights, stride, start, n, top, equal, out, LIMITED: tl.constexpr, BLOCK: tl.constexpr):
    """Weights of the segments that are not full, and which these are."""
    place = start + tl.arange(0, BLOCK).to(tl.int64)
    is_open = place < n
    if LIMITED:
        is_open = tl.load(out + place, mask=is_open, other=0) < 0
    weight = tl.where(equal, 1, integer_weights(positive_bits(weights, stride, start, n, BLOCK), top))
    return tl.where(is_open, weight, 0), is_open


@triton.jit
def remainders_of(weights, stride, start, n, top, equal, rest, whole, out, LIMITED: tl.constexpr, BLOCK: tl.constexpr):
    """What `weight * rest` leaves of `whole`; 0 where a segment is full."""
    weight, _is_open = open_weights(weights, stride, start, n, top, equal, out, LIMITED, BLOCK)
    return weight * rest % whole


@triton.jit(do_not_specialize=["weights_batch", "weights_stride", "n", "total", "minimum", "capacity_batch",
                               "capacity_stride", "out_batch"])
def budget_kernel(weights, weights_batch: tl.int64, weights_stride: tl.int64, n: tl.int64, total: tl.int64,
                  minimum: tl.int64, capacity, capacity_batch: tl.int64, capacity_stride: tl.int64, out,
                  out_batch: tl.int64, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    weights += row * weights_batch
    out += row * out_batch
    LIMITED: tl.constexpr = capacity is not None
    if LIMITED:
        capacity += row * capacity_batch
    top = tl.zeros((), tl.int32)
    given = tl.zeros((), tl.int64)
    space = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        top = tl.maximum(top, tl.max(positive_bits(weights, weights_stride, start, n, BLOCK), 0))
        least, room = room_of(place, n, minimum, capacity, capacity_stride)
        given += tl.sum(least, 0)
        space += tl.sum(room, 0)
        if LIMITED:
            tl.store(out + place, -1, mask=place < n)
    rest = tl.minimum(total - given, space)

    filled = tl.zeros((), tl.int64) + 1
    whole = tl.zeros((), tl.int64)
    cut = tl.zeros((), tl.int64)
    ties = tl.zeros((), tl.int64)
    equal = rest < 0
    while filled > 0:
        tl.debug_barrier()  # before `out` is read
        # How much all open segments weigh; the same each where that is nothing.
        whole = tl.zeros((), tl.int64)
        count = tl.zeros((), tl.int64)
        for start in range(0, n, BLOCK):
            weight, is_open = open_weights(weights, weights_stride, start, n, top, False, out, LIMITED, BLOCK)
            whole += tl.sum(weight, 0)
            count += tl.sum(is_open.to(tl.int32), 0)
        equal = whole == 0
        whole = tl.maximum(tl.where(equal, count, whole), 1)
        left = rest
        for start in range(0, n, BLOCK):
            weight, is_open = open_weights(weights, weights_stride, start, n, top, equal, out, LIMITED, BLOCK)
            left -= tl.sum(weight * rest // whole, 0)
        # The remainder above which all round up, and how many of those equal to it.
        cut = whole
        ties = tl.zeros((), tl.int64)
        if left > 0:
            low = tl.zeros((), tl.int64)
            above = tl.zeros((), tl.int64)
            first = remainders_of(weights, weights_stride, 0, n, top, equal, rest, whole, out, LIMITED, BLOCK)
            while cut - low > 1:
                middle = low + (cut - low) // 2
                count = tl.sum((first >= middle).to(tl.int32), 0).to(tl.int64)
                for start in range(BLOCK, n, BLOCK):
                    chunk = remainders_of(weights, weights_stride, start, n, top, equal, rest, whole, out, LIMITED,
                                          BLOCK)
                    count += tl.sum((chunk >= middle).to(tl.int32), 0)
                if count >= left:
                    low = middle
                else:
                    cut = middle
                    above = count
            cut = low
            ties = left - above
        filled = tl.zeros((), tl.int64)
        if LIMITED:
            tied = tl.zeros((), tl.int64)
            used = tl.zeros((), tl.int64)
            for start in range(0, n, BLOCK):
                place = start + tl.arange(0, BLOCK).to(tl.int64)
                weight, is_open = open_weights(weights, weights_stride, start, n, top, equal, out, LIMITED, BLOCK)
                share, tied = shares(weight * rest, whole, is_open, cut, ties, tied)
                least, room = room_of(place, n, minimum, capacity, capacity_stride)
                over = is_open & (share > room)
                tl.store(out + place, least + room, mask=over)
                used += tl.sum(tl.where(over, room, 0), 0)
                filled += tl.sum(over.to(tl.int32), 0)
            rest -= used
    tied = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK).to(tl.int64)
        weight, is_open = open_weights(weights, weights_stride, start, n, top, equal, out, LIMITED, BLOCK)
        share, tied = shares(weight * rest, whole, is_open, cut, ties, tied)
        least, room = room_of(place, n, minimum, capacity, capacity_stride)
        tl.store(out + place, least + share, mask=is_open)


@triton.jit
def shares(product, whole, is_open, cut, ties, tied):
    """Shares of the open segments, and how many remainders equal to the cut there were up to here."""
    remainder = product % whole
    is_tied = is_open & (remainder == cut)
    seen = tied + tl.cumsum(is_tied.to(tl.int32), 0)
    up = is_open & ((remainder > cut) | (is_tied & (seen <= ties)))
    return product // whole + up.to(tl.int64), tied + tl.sum(is_tied.to(tl.int32), 0)


def allocate_budget_out(weights: Tensor, total: int, *, minimum: int = 0, capacity: Tensor | None = None,
                        out: Tensor) -> None:
    batch, n = weights.shape
    if batch == 0 or n == 0:
        return
    config = lookup.config("allocate_budget", _triton.device_name(weights.device), weights.dtype, n=n)
    capacity_strides = (0, 0) if capacity is None else capacity.stride()
    _triton.launch(budget_kernel, batch, weights.device, weights, *weights.stride(), n, total, minimum, capacity,
                   *capacity_strides, out, out.stride(0), BLOCK=config["select_block"], num_warps=config["num_warps"],
                   num_stages=config["num_stages"])
