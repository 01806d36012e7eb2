"""One picture per photograph: what was kept on the left, how redundant each patch scored on the right."""

import math
from io import BytesIO
from typing import Any

import numpy as np

from . import need

VEIL, DIMMED = 0.55, 0.3  # dropped patches: this grey, with so much of the photograph's own light


def draw(title: str, note: str, view: Any, kept: np.ndarray, scores: np.ndarray) -> bytes:
    """A PNG.

    Args:
        title, note: the lines above and below.
        view: the photograph (a Pillow image), or None when there is none: then the grid of kept tokens is shown.
        kept: `[rows, columns]` bool.
        scores: `[rows, columns]` float, NaN where there is no token.
    """
    figure_module = need("matplotlib.figure", "matplotlib")
    canvas_module = need("matplotlib.backends.backend_agg", "matplotlib")
    width, height = view.size if view is not None else scores.shape[::-1]
    figure = figure_module.Figure(figsize=(12, max(12 * 0.44 * height / width + 1.1, 2.5)), layout="constrained")
    canvas_module.FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    extent = (0, width, height, 0)
    if view is None:
        left.imshow(kept, cmap="gray", vmin=-0.5, vmax=1.0, extent=extent, interpolation="nearest")
    else:
        left.imshow(_dim(view, kept), extent=extent)
    shown = left if view is None else right
    heat = right.imshow(scores, cmap="viridis", extent=extent, interpolation="nearest")
    left.set_title(f"kept {int(kept.sum())} of {int((~np.isnan(scores) | kept).sum())} tokens")
    right.set_title("redundancy score")
    bar = figure.colorbar(heat, ax=right, shrink=0.9)
    bar.set_label("largest cosine similarity\nto a redundant prototype (high: dropped)")
    for axes in (left, right, shown):
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize="large")
    figure.supxlabel(note, fontsize="small", color="0.35")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def grid_of(count: int) -> tuple[int, int]:
    """Rows and columns for tokens without a photograph: square where possible."""
    columns = math.isqrt(count - 1) + 1
    return -(-count // columns), columns


def _dim(view: Any, kept: np.ndarray) -> np.ndarray:
    image_module = need("PIL.Image", "Pillow")
    mask = image_module.fromarray(kept.astype(np.uint8) * 255).resize(view.size, image_module.Resampling.NEAREST)
    pixels = np.asarray(view, dtype=np.float32) / 255
    light = pixels.mean(-1, keepdims=True)
    dropped = VEIL * (1 - DIMMED) + light * DIMMED
    return np.where(np.asarray(mask)[..., None] > 0, pixels, dropped)
