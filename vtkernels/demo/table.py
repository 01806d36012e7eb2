"""The printed report."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from .pipeline import HEAD_DIM, HEADS, REPEATS, Timings


@dataclass(frozen=True)
class Row:
    name: str
    tokens_in: int
    tokens_out: int
    bytes_in: int
    bytes_out: int
    picture: str


def photographs(rows: Sequence[Row]) -> str:
    head = ("input", "tokens in", "out", "hidden + K/V in", "out", "picture")
    body = [(r.name, str(r.tokens_in), str(r.tokens_out), megabytes(r.bytes_in), megabytes(r.bytes_out), r.picture)
            for r in rows]
    return columns([head, *body], left=(0, 5))


def times(timings: Timings, encode: bool) -> str:
    """Medians over all photographs; a peer without a time says why."""
    lines = [("stage", "median ms", "")]
    if encode:
        lines.append(("encode", f"{timings.median('encode'):.3f}", "the stand-in encoder, not part of vtkernels"))
    for stage, ops in (("score", "prototype_scores"), ("select", "select_topk"),
                       ("gather", "gather_tokens + gather_kv")):
        lines.append(_line(timings, stage, ops))
    ours = timings.median("prune_topk")
    lines += [("", "", ""), ("score + select + gather", "median ms", "against prune_topk"),
              ("vtkernels.prune_topk", f"{ours:.3f}", "one fused op")]
    for peer, label in (("three ops", "vtkernels, three ops"), ("eager", "torch eager"),
                        ("better eager", "torch, better eager"), ("torch.compile", "torch.compile of better eager")):
        ratio = f"{timings.median(peer) / ours:.2f}x" if peer in timings.measured else ""
        lines.append(_line(timings, peer, ratio, label))
    return columns(lines, left=(0, 2))


def notes(encode: bool, backend: str) -> str:
    source = ("The tokens come from a small patch encoder that stands in for a vision tower."
              if encode else "The tokens come from the given file.")
    text = (f"{source} K and V are fixed random projections of them ({HEADS} heads of {HEAD_DIM}). prune_topk runs on "
            f"the {backend} backend. Times are medians of {REPEATS} calls per input, taken in turns; an implementation "
            "whose output is not right by float64 scores gets none. Better eager: amax(x @ p.T) / |x|, top-k, sort, "
            "gather.")
    return textwrap.fill(text, 100)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def columns(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) if i in left else cell.rjust(w)
                               for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)


def _line(timings: Timings, name: str, remark: str, label: str = "") -> tuple[str, str, str]:
    if name in timings.measured and name not in timings.refused:
        return label or name, f"{timings.median(name):.3f}", remark
    return label or name, "-", timings.refused.get(name, "the three ops have no time")
