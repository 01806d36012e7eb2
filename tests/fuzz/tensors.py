"""Tensors of a case: values, layouts in memory, and metadata that lies."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .draws import Draws

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BYTES = (torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.bool, torch.int64, torch.float64,
         torch.complex128)
WILD = (-1, -2, -2**31, 2**31 - 1, 2**30, 1000)


def generator(draws: Draws) -> torch.Generator:
    return torch.Generator().manual_seed(draws.below(1 << 16))


def lay_out(draws: Draws, t: Tensor, own: bool = False) -> Tensor:
    """The same values in another layout, garbage between them. `own`: every element keeps its own memory."""
    kinds = ("dense", "offset", "padded", "step", "swapped", "shared storage")
    kind = draws.pick(kinds if own else (*kinds, "expanded"))
    if t.dim() == 0 or kind == "dense":
        return t.contiguous()
    if kind == "expanded":
        dim = draws.below(t.dim())
        return t.narrow(dim, 0, min(1, t.shape[dim])).contiguous().expand(t.shape) if t.shape[dim] else t
    if kind == "swapped":
        first, second = draws.below(t.dim()), draws.below(t.dim())
        return t.transpose(first, second).contiguous().transpose(first, second)
    dim = draws.below(t.dim()) if kind == "step" else t.dim() - 1
    step = draws.between(2, 3) if kind == "step" else 1
    before = draws.between(1, 8) if kind in ("offset", "padded") else 0
    after = draws.between(0, 5) if kind == "padded" else 0
    if kind == "offset":
        flat = _garbage((t.numel() + before,), t.dtype)
        view = flat[before:].view(t.shape)
    elif kind == "shared storage":
        view = _garbage((2, *t.shape), t.dtype)[1]
    else:
        shape = list(t.shape)
        shape[dim] = shape[dim] * step + before + after
        view = _garbage(shape, t.dtype).narrow(dim, before, t.shape[dim] * step)
        view = view[(slice(None),) * dim + (slice(None, None, step),)]
    view.copy_(t)
    return view


def _garbage(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    t = torch.empty(tuple(shape), dtype=dtype)
    if dtype == torch.bool:
        return t.fill_(True)
    t.view(-1).unsqueeze(-1).view(torch.uint8).fill_(0x7F)  # large or NaN in every dtype
    return t


def floats(draws: Draws, *shape: int, dtype: torch.dtype = torch.float32, own: bool = False,
           tame: bool = False, most: int = 37) -> Tensor:
    """Numbers of one kind, some of them hostile unless `tame`.

    Below `most` of 37 their squares and sums are within float32, the oracle having no say at its ends.
    """
    random = generator(draws)
    x = torch.randn(shape, generator=random)
    kinds = ("normal", "whole", "crowded", "tenths", "equal", "zeros")
    kind = draws.pick(kinds if tame else (*kinds, "hostile", "hostile", "tiny", "huge", "wide"))
    if kind == "whole":
        x = (x * 2).round()
    elif kind == "crowded" and shape and x.numel():
        x = 0.05 * x + x[..., :1]
    elif kind == "tenths":
        x = (x * 10).round() / 10
    elif kind == "equal":
        x = x.flatten()[:1].expand(x.numel()).reshape(shape).clone()
    elif kind == "zeros":
        x = torch.zeros(shape)
    elif kind == "tiny":
        x = x * 10.0 ** -draws.between(2, 42 if most == 37 else 14)
    elif kind == "huge":
        x = x * 10.0 ** draws.between(2, 4 if dtype == torch.float16 else most)
    elif kind == "wide":
        end = 20 if most == 37 else 12
        powers = torch.randint(-end, end + 1, shape, generator=random)
        x = x * 10.0 ** (powers / (4 if dtype == torch.float16 else 1))
    x = x.to(dtype)
    if kind == "hostile" and x.numel():
        info = torch.finfo(dtype)
        values = (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, info.smallest_normal, -info.max, info.max)
        values = values if most == 37 else values[:-2]
        flat = x.view(-1)
        for _ in range(draws.between(1, 3)):
            value = draws.pick(values)
            if draws.chance(40) and len(shape) > 1:
                x.view(-1, shape[-1])[draws.below(x.numel() // shape[-1])] = value
            else:
                flat[draws.below(len(flat))] = value
    return lay_out(draws, x, own)


def raw(draws: Draws, *shape: int, dtype: torch.dtype, own: bool = False) -> Tensor:
    """Random bytes of any dtype: NaN payloads and signed zeros among them."""
    bytes_ = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator(draws))
    typed = (bytes_ & 1 if dtype == torch.bool else bytes_).view(dtype)[..., 0]
    return lay_out(draws, typed if typed.numel() else torch.empty(typed.shape, dtype=dtype), own)


def spoil(draws: Draws, values: list[int], percent: int = 25) -> list[int]:
    """Now and then some of the numbers are wild, or exchanged."""
    values = list(values)
    if values and draws.chance(percent):
        for _ in range(draws.between(1, 2)):
            at = draws.below(len(values))
            if draws.chance(30):
                values[at] = values[draws.below(len(values))]
            else:
                values[at] = draws.pick(WILD)
    return values


def ints(draws: Draws, values: Sequence, dtype: torch.dtype = torch.int32) -> Tensor:
    return lay_out(draws, torch.tensor(values, dtype=dtype))


def bounds(draws: Draws, total: int, segments: int, percent: int = 25) -> list[int]:
    """Segments + 1 ascending numbers from 0 to `total`, or lies."""
    cuts = sorted(draws.below(total + 1) for _ in range(segments))
    return spoil(draws, [0, *cuts[:-1], total] if segments and not draws.chance(15) else [0, *cuts], percent)


def index(draws: Draws, shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.int64,
          percent: int = 25) -> Tensor:
    """Positions among `count`, some of them outside."""
    t = torch.randint(0, max(1, count), shape, generator=generator(draws))
    if draws.chance(50):
        t = t.sort(-1).values
    if t.numel() and draws.chance(percent):
        for _ in range(draws.between(1, 3)):
            wide = (2**40, -2**40, 2**32) if dtype == torch.int64 else ()
            t.view(-1)[draws.below(t.numel())] = draws.pick((-1, count, count + 1, -2**31, 2**31 - 1, *wide))
    return lay_out(draws, t.to(dtype))


def masks(draws: Draws, *shape: int) -> dict[str, Tensor]:
    """Protected and excluded tokens, or neither."""
    found = {}
    for name in ("protected", "excluded"):
        if draws.chance(30):
            part = draws.pick((0.3, 0.05, 0.9, 1.0))
            found[name] = lay_out(draws, torch.rand(shape, generator=generator(draws)) < part)
    return found
