"""A method applied to the images of a prompt, wherever its hidden states come from."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import methods
from ._prompt import Prompt, Run

SEAM_SIGNALS = ("hidden", "grid", "text", "decoder", "vision")


@dataclass
class Seen:
    """What collectors saw of one layer: rotary positions applied, `[B, H, T, d]`."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float | None

    def row(self, row: int, first_query: int, first_key: int, start: int) -> methods.Attention:
        cut = slice(row, row + 1)
        return methods.Attention(self.query[cut, :, first_query:], self.key[cut, :, first_key:],
                                 self.value[cut, :, first_key:], start=start, causal=True, scale=self.scale)


@dataclass
class Signals:
    """What a seam has beside the hidden states."""

    decoder: list[Seen] = field(default_factory=list)  # the layers before, the nearest last
    vision: list[Seen] = field(default_factory=list)   # of the tower; rows are images


def check_signals(method: methods.Method, has: dict[str, str]) -> None:
    """Refuse, before any work, what the seam cannot give. `has`: why each signal is missing, "" where it is there."""
    if method.info.returns not in ("exact", "ragged", "merged"):
        raise ValueError(f"apply: `method` is {method.info.name!r}, which returns {method.info.returns}, allowed: "
                         "methods that say which tokens stay (exact, ragged or merged in the table of methods)")
    for need in method.info.needs:
        why = has.get(need, "the seam has no such signal")
        if why:
            there = ", ".join(name for name, missing in has.items() if not missing)
            raise ValueError(f"apply: `method` is {method.info.name!r}, which needs {need}: {why}; allowed: methods "
                             f"that need no more than {there}, or call the method yourself")


@torch.no_grad()
def select(method: methods.Method, stage: int, hidden: Tensor, prompt: Prompt,
           signals: Signals) -> list[list[methods.Result]]:
    """The result of the method for each image of each row, equal shapes in one batch.

    The choice has no gradient; the kept states that `Prompt.keep` gathers have one.
    """
    places = [(row, run) for row, runs in enumerate(prompt.runs) for run in runs]
    images = {seen.key.shape[0] for seen in signals.vision}
    if images - {len(places)}:
        raise ValueError(f"apply: `model` has encoded {max(images)} images for {len(places)} of the prompt, allowed: "
                         "as many (no beam search with a method that looks at the tower)")
    inputs = [_inputs(method, hidden, prompt, row, run, image, signals) for image, (row, run) in enumerate(places)]
    found = iter(methods.batch(method, inputs, stage=stage))
    return [[next(found) for _ in runs] for runs in prompt.runs]


def _inputs(method: methods.Method, hidden: Tensor, prompt: Prompt, row: int, run: Run, image: int,
            signals: Signals) -> methods.Inputs:
    """Only what the method asks for, so that images of equal size stand in one batch."""
    pad, end = prompt.pads[row], run.start + run.length
    fields: dict[str, Any] = {"hidden": hidden[row:row + 1, run.start:end], "original": run.original,
                              "grid": run.grid}
    needs = (*method.info.needs, *method.takes)
    if "grid" in method.info.needs and run.grid is None:
        raise ValueError(f"apply: `method` is {method.info.name!r}, which needs the grid of the {run.length} tokens "
                         f"from column {run.start}, allowed: images whose tokens fill a grid, before any is dropped")
    asks = min(max(r.start + r.length for r in prompt.runs[row]), prompt.width - 1)
    if "text" in needs:  # inside the language model that of the rows that ask
        columns = range(asks, prompt.width) if method.stages else prompt.text_columns(row)
        fields["text"] = hidden[row:row + 1, list(columns)]
    if "decoder" in needs:
        fields["decoder"] = tuple(seen.row(row, asks, pad, run.start - pad) for seen in signals.decoder)
    if "vision" in needs:
        fields["vision"] = tuple(_tower(seen, image, run.length) for seen in signals.vision)
    return methods.Inputs(**fields)


def _tower(seen: Seen, image: int, tokens: int) -> methods.Attention:
    """The CLS row where there is one, else every row."""
    cut, extra = slice(image, image + 1), seen.key.shape[2] - tokens
    if extra < 0:
        raise ValueError(f"apply: `model` has a vision tower of {seen.key.shape[2]} tokens for an image of {tokens}, "
                         "allowed: towers whose patches are the visual tokens")
    query = seen.query[cut, :, :1] if extra else seen.query[cut]
    return methods.Attention(query, seen.key[cut], seen.value[cut], start=extra, scale=seen.scale)
