"""Where the images of a prompt stand, and what is left of it."""

from dataclasses import dataclass, replace
from math import isqrt, prod

import torch
from torch import Tensor

from ... import methods
from ...compact.gather_tokens import gather_tokens

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Run:
    """One image, tile sequence, video or frame: neighbouring visual tokens of a row."""

    start: int
    length: int
    grid: Grid | None
    original: int  # tokens before any stage


@dataclass(frozen=True)
class Prompt:
    """The rows of one prefill. Rows are padded on the left, so the last token of each stands in the last column."""

    width: int
    pads: tuple[int, ...]
    runs: tuple[tuple[Run, ...], ...]

    @classmethod
    def read(cls, ids: Tensor, mask: Tensor | None, visual: tuple[int, ...],
             grids: dict[int, list[Grid]], unit: int) -> "Prompt":
        """From token ids, once per prefill on the host. `unit`: tokens of an image, where all have as many; else 0."""
        rows = ids.tolist()
        kept = mask.tolist() if mask is not None else [[1] * len(row) for row in rows]
        left = {token: list(found) for token, found in grids.items()}
        pads, runs = [], []
        for row, present in zip(rows, kept, strict=True):
            pad = present.index(1) if 1 in present else len(present)
            if 0 in present[pad:]:
                raise ValueError("apply: `attention_mask` has padding on the right or inside, allowed: padding on the "
                                 "left (`processor.tokenizer.padding_side = 'left'`)")
            pads.append(pad)
            runs.append(tuple(_runs(row, pad, visual, left, unit)))
        return cls(ids.shape[1], tuple(pads), tuple(runs))

    @property
    def has_images(self) -> bool:
        return any(self.runs)

    def text_columns(self, row: int) -> list[int]:
        visual = {c for run in self.runs[row] for c in range(run.start, run.start + run.length)}
        return [c for c in range(self.pads[row], self.width) if c not in visual]

    def keep(self, hidden: Tensor, results: list[list[methods.Result]]) -> tuple["Prompt", Tensor, Tensor]:
        """The prompt after a method, the kept columns `[B, S']` (-1 for padding), and the kept hidden states.

        `results`: one for each run of each row.
        """
        columns = []
        for row, (runs, found) in enumerate(zip(self.runs, results, strict=True)):
            parts, at = [], self.pads[row]
            for run, result in zip(runs, found, strict=True):
                parts += [torch.arange(at, run.start, device=hidden.device), run.start + kept_indices(result)]
                at = run.start + run.length
            columns.append(torch.cat([*parts, torch.arange(at, self.width, device=hidden.device)]))
        width = max(len(c) for c in columns)
        index = hidden.new_full((len(columns), width), -1, dtype=torch.int64)
        for row, kept in enumerate(columns):
            index[row, width - len(kept):] = kept
        after = self._after(results, [width - len(c) for c in columns], width)
        (states,) = gather_tokens([hidden], index)
        for row, (runs, found) in enumerate(zip(after.runs, results, strict=True)):
            for run, result in zip(runs, found, strict=True):
                if result.assignment is not None and result.hidden is not None:  # merged, not only moved
                    states[row, run.start:run.start + run.length] = result.hidden[0, :run.length]
        return after, index, states

    def _after(self, results: list[list[methods.Result]], pads: list[int], width: int) -> "Prompt":
        runs = []
        for row, (before, found) in enumerate(zip(self.runs, results, strict=True)):
            shift, kept = pads[row] - self.pads[row], []
            for run, result in zip(before, found, strict=True):
                length = len(kept_indices(result))
                kept.append(replace(run, start=run.start + shift, length=length, grid=None))
                shift -= run.length - length
            runs.append(tuple(kept))
        return Prompt(width, tuple(pads), tuple(runs))


def kept_indices(result: methods.Result) -> Tensor:
    """Of a result with one row. Ragged counts are read by the host here."""
    if result.indices is None or result.indices.dim() != 2:
        raise ValueError("apply: the method does not say which tokens stay, allowed: methods whose results have "
                         "`indices`, since the kept tokens need position ids")
    indices = result.indices[0]
    return indices if result.counts is None else indices[:int(result.counts[0])]


def _runs(row: list[int], pad: int, visual: tuple[int, ...], grids: dict[int, list[Grid]],
          unit: int) -> list[Run]:
    found, column = [], pad
    while column < len(row):
        token = row[column]
        end = column + 1
        if token in visual:
            while end < len(row) and row[end] == token:
                end += 1
            length = end - column
            step = unit if unit and length % unit == 0 else length
            for start in range(column, end, step):
                found.append(Run(start, step, _grid(step, grids.get(token)), step))
        column = end
    return found


def _grid(length: int, grids: list[Grid] | None) -> Grid | None:
    """The next grid of the placeholder; a video may stand in the prompt frame by frame."""
    if grids is None:
        side = isqrt(length)
        return (1, side, side) if side * side == length else None
    if not grids:
        return None
    if prod(grids[0]) == length:
        return grids.pop(0)
    t, h, w = grids[0]
    if h * w == length:
        grids[0] = (t - 1, h, w)
        if t == 1:
            grids.pop(0)
        return 1, h, w
    return None


def pick(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Columns `index` `[B, K]` of `tensor`, whose dimensions `dim - 1` and `dim` are the rows and the columns; zeros
    where the index is -1."""
    dim %= tensor.dim()
    shape = list(tensor.shape)
    shape[dim - 1], shape[dim] = index.shape
    full = index.clamp(min=0).view([1] * (dim - 1) + list(index.shape) + [1] * (tensor.dim() - dim - 1)).expand(shape)
    source = tensor.expand([*shape[:dim], tensor.shape[dim], *shape[dim + 1:]])
    out = source.gather(dim, full)
    empty = (index < 0).view([1] * (dim - 1) + list(index.shape) + [1] * (tensor.dim() - dim - 1))
    return out.masked_fill(empty, 0)
