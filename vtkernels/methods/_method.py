"""What every method is: a named configuration that turns `Inputs` into a `Result`."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from ..compact.gather_tokens import gather_tokens
from ..select.select_topk import select_topk
from ._inputs import Inputs, Result, Stage, concatenate, map_tensors, signature

FAMILIES = ("selection", "merging", "cache", "attention", "codewords", "other")
PLACES = ("encoder", "projector", "decoder layer", "KV cache", "other")
RETURNS = ("exact", "ragged", "merged", "attention", "assignment", "other")
EVIDENCE = ("code", "third-party code", "paper", "abstract")
TAXONOMY = ("transformation", "similarity", "attention", "query", "none")


@dataclass(frozen=True)
class Info:
    """What the table says of a method. The allowed words are the constants above."""

    name: str      # of the registry
    title: str     # as the field writes it
    source: str    # where it was published
    family: str
    place: str
    needs: tuple[str, ...]  # fields of Inputs
    returns: str
    evidence: str  # of the details: official code, a third party's, the paper, or only its abstract
    taxonomy: str


class Method:
    """Base of all methods. A subclass is a frozen dataclass of its configuration, registered under a name.

    Raises:
        ValueError: a signal that the method needs is missing from the inputs, or shapes that do not fit.
    """

    info: ClassVar[Info]
    # Whose attention `inputs.decoder[-1]` is, for a method inside the language model: that of the layer before the
    # stage, or what the next layer makes of the hidden states.
    decoder_layer: ClassVar[str] = "before"
    # Fields of the inputs that the method looks at where they are there, beside those that it needs.
    takes: ClassVar[tuple[str, ...]] = ()
    # False for a method that torch's own ops serve best.
    kernels: ClassVar[bool] = True

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The schedule of a method that acts at several decoder layers; empty for one that acts once."""
        return ()

    def __call__(self, inputs: Inputs, *, stage: int = 0) -> Result:
        """Run the method, or the step `stage` of its schedule."""
        self._check(inputs, stage)
        return self.run_stage(inputs, self.stages[stage]) if self.stages else self.run(inputs)

    def run(self, inputs: Inputs) -> Result:
        raise NotImplementedError

    def run_stage(self, inputs: Inputs, stage: Stage) -> Result:
        raise NotImplementedError

    def _check(self, inputs: Inputs, stage: int) -> None:
        name = self.info.name
        require(name, inputs, *self.info.needs)
        if not 0 <= stage < max(1, len(self.stages)):
            raise ValueError(f"{name}: `stage` is {stage}, allowed: 0 to {max(0, len(self.stages) - 1)}")
        hidden = inputs.hidden
        if hidden is None:
            return
        if hidden.dim() != 3:
            raise ValueError(f"{name}: `inputs.hidden` is of shape {tuple(hidden.shape)}, allowed: [B, N, D]")
        batch, n = hidden.shape[:2]
        if inputs.grid is not None and prod(inputs.grid) != n:
            raise ValueError(f"{name}: `inputs.grid` is {inputs.grid}, allowed: a product of {n} (the tokens)")
        if inputs.segments and sum(inputs.segments) != n:
            raise ValueError(f"{name}: `inputs.segments` is {inputs.segments}, allowed: a sum of {n} (the tokens)")
        for field in ("positions", "pixels", "scores", "sizes"):
            value = getattr(inputs, field)
            if value is not None and tuple(value.shape[:2]) != (batch, n):
                raise ValueError(f"{name}: `inputs.{field}` is of shape {tuple(value.shape)}, allowed: it begins "
                                 f"with {batch}, {n} (those of `inputs.hidden`)")
        for field in ("vision", "decoder"):
            for attention in getattr(inputs, field):
                keys = attention.key.shape[2]
                if attention.key.shape[0] != batch or attention.start < 0 or attention.start + n > keys:
                    raise ValueError(f"{name}: `inputs.{field}` has {attention.key.shape[0]} rows of {keys} keys, the "
                                     f"tokens from {attention.start}, allowed: {batch} rows that hold {n} tokens there")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The published configuration, by argument; those without a default must be given."""
        return {f.name: f.default for f in fields(cls)  # type: ignore[arg-type]
                if f.init and f.default is not MISSING}


def require(name: str, inputs: Inputs, *needs: str) -> None:
    """Raise a ValueError for the first of the fields that is missing."""
    for need in needs:
        value = getattr(inputs, need)
        if value is None or value == ():
            raise ValueError(f"{name}: `inputs.{need}` is missing, allowed: {_meaning(need)}")


def _meaning(field: str) -> str:
    """What the docstring of Inputs says of a field."""
    lines = (Inputs.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{field}:"))
    text = [lines[start].split(":", 1)[1].strip()]
    for line in lines[start + 1:]:
        if not line.startswith(" " * 12):
            break
        text.append(line.strip())
    return " ".join(text).rstrip(".")


def count_of(name: str, keep: float | int, n: int, available: int, rounding: Callable[[float], int] = round) -> int:
    """How many tokens a share of n is, rounded, or a number as it is; at most those that are there."""
    if keep < 0 or (isinstance(keep, float) and not keep <= 1):
        raise ValueError(f"{name}: `keep` is {keep}, allowed: a share from 0.0 to 1.0, or a number of tokens from 0")
    return min(keep if isinstance(keep, int) else rounding(keep * n), available)


def keep(inputs: Inputs, indices: Tensor, counts: Tensor | None = None, scores: Tensor | None = None) -> Result:
    """The tokens at `indices` and what is aligned with them, gathered in one pass."""
    aligned = [inputs.tokens, *(t for t in (inputs.positions, inputs.sizes) if t is not None)]
    gathered = gather_tokens(aligned, indices)
    rest = iter(gathered[1:])
    positions = next(rest) if inputs.positions is not None else None
    sizes = next(rest) if inputs.sizes is not None else None
    return Result(gathered[0], indices, counts, positions=positions, sizes=sizes, scores=scores)


def keep_best(inputs: Inputs, scores: Tensor, count: int, largest: bool = True) -> Result:
    """The `count` tokens with the best scores, in their order."""
    return keep(inputs, select_topk(scores, count, largest=largest), scores=scores)


def batch(method: Method, inputs: Iterable[Inputs], *, stage: int = 0) -> list[Result]:
    """Run a method on inputs of any lengths, each with its own B: equal shapes run as one batch.

    Every result is bitwise what the input gives alone, and no result waits for the device.

    Example:
        >>> divprune = vtkernels.methods.get("divprune", keep=0.5)
        >>> images = [vtkernels.methods.Inputs(hidden=torch.randn(1, n, 16)) for n in (8, 12, 8)]
        >>> [tuple(r.hidden.shape) for r in vtkernels.methods.batch(divprune, images)]
        [(1, 4, 16), (1, 6, 16), (1, 4, 16)]
    """
    inputs = list(inputs)
    groups: dict[Any, list[int]] = {}
    for i, one in enumerate(inputs):
        groups.setdefault(signature(one), []).append(i)
    results: dict[int, Result] = {}
    for members in groups.values():
        merged = concatenate([inputs[i] for i in members])
        whole = method(merged, stage=stage)
        start = 0
        for i in members:
            rows = _batch_size(inputs[i])
            results[i] = map_tensors(whole, lambda t, s=start, r=rows: t[s:s + r])  # type: ignore[misc]
            start += rows
    return [results[i] for i in range(len(inputs))]


def _batch_size(inputs: Inputs) -> int:
    sizes: list[int] = []
    map_tensors(inputs, lambda t: sizes.append(t.shape[0]))
    return sizes[0]

