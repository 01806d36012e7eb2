"""The gallery: what methods keep of the photographs that scikit-image and scikit-learn ship.

The tokens are those of the demo's patch encoder, 24 x 24 of them. Methods that need no more than tokens (and the keys,
for ToMe: the tokens themselves) can be shown so; those that look at attention need a model.
"""

import json
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vtkernels
from vtkernels import methods, prototypes
from vtkernels.demo import encoder, images, picture

from . import IMAGES, digest

KEEP = (0.5, 0.25, 0.11, 0.05)
METHODS: dict[str, dict[str, Any]] = {
    "redundancy_codebook": {"variant": "fix_num"},
    "divprune": {},
    "todre": {},
    "cdpruner": {},
    "tome": {"stride": 2},
}
TITLES = {"redundancy_codebook": "redundancy_codebook\n(shipped prototypes)", "cdpruner": "cdpruner\n(no question)",
          "tome": "tome, repeated\n(merged, mean colours)"}
WIDTH, QUALITY = 2.3, 60  # inches of a small picture, JPEG
KEPT = IMAGES / "gallery.json"


def tokens(photograph: images.Photograph) -> Tensor:
    """`[1, 576, D]`, as in `python -m vtkernels demo`."""
    book = prototypes.load(prototypes.SHIPPED, dim=encoder.DIM)
    statistics = book.tensors["encoder.mean"], book.tensors["encoder.std"]
    return encoder.standardize(encoder.raw_features(photograph.pixels), *statistics).float()[None]


def assignment(name: str, hidden: Tensor, keep: float) -> Tensor:
    """`[576]` the number of the kept (or merged) token that each token went into, -1 for a dropped one."""
    count = hidden.shape[1]
    if name == "tome":
        return _merge(hidden, round(keep * count))
    config = dict(METHODS[name], keep=keep)
    scores = None
    if name == "redundancy_codebook":
        config["prototypes"] = prototypes.load(prototypes.SHIPPED, dim=encoder.DIM).prototypes
    if name == "cdpruner":
        scores = torch.ones(1, count)  # no question: every token is as relevant
    kept = methods.get(name, **config)(methods.Inputs(hidden=hidden, scores=scores)).indices
    assert kept is not None
    groups = torch.full((count,), -1)
    groups[kept[0]] = torch.arange(kept.shape[1])
    return groups


def _merge(hidden: Tensor, target: int) -> Tensor:
    """ToMe merges at most half of the tokens at once: repeated until `target` are left."""
    groups = torch.arange(hidden.shape[1])
    sizes = torch.ones(hidden.shape[:2])
    while hidden.shape[1] > target:
        layer = methods.Attention(hidden[:, None, :1], hidden[:, None])
        step = methods.get("tome", r=min(hidden.shape[1] // 2, hidden.shape[1] - target), **METHODS["tome"])
        result = step(methods.Inputs(hidden=hidden, vision=(layer,), sizes=sizes))
        assert result.hidden is not None
        assert result.sizes is not None
        assert result.assignment is not None
        hidden, sizes, groups = result.hidden, result.sizes, result.assignment[0][groups]
    return groups


def settings(name: str) -> dict[str, Any]:
    """What the picture of a photograph depends on, but for the ops."""
    return {"photograph": name, "methods": METHODS, "titles": TITLES, "keep": KEEP, "encoder": encoder.NAME,
            "size": [WIDTH, QUALITY]}


def write() -> None:
    IMAGES.mkdir(exist_ok=True)
    held: dict[str, dict[str, list[str]]] = {}
    for path in images.packaged():
        photograph = images.read(path)
        hidden = tokens(photograph)
        parts = {name: [assignment(name, hidden, keep) for keep in KEEP] for name in METHODS}
        held[photograph.name] = {name: [pack(groups >= 0) for groups in row] for name, row in parts.items()
                                 if name != "tome"}
        (IMAGES / f"gallery-{photograph.name}.jpg").write_bytes(draw(photograph, parts))
    KEPT.write_text(json.dumps(held, indent=1) + "\n")


def pack(kept: Tensor) -> str:
    """A bit for each token, in hexadecimal."""
    return f"{int(''.join(str(int(x)) for x in kept), 2):0{len(kept) // 4}x}"


def draw(photograph: images.Photograph, parts: dict[str, list[Tensor]]) -> bytes:
    """A JPEG: a row for each method, a column for each share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    width, height = photograph.view.size
    side = WIDTH if width > 1.2 * height else 0.85 * WIDTH
    view = photograph.view.resize((336, round(336 * height / width)))
    figure = Figure(figsize=(len(KEEP) * side + 0.5, len(parts) * side * height / width + 0.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(parts), len(KEEP))
    extent = (0, width, height, 0)
    for row, (name, groups_of) in zip(axes, parts.items(), strict=True):
        for axis, groups in zip(row, groups_of, strict=True):
            shown = _merged(view, groups) if name == "tome" else picture._dim(view, _grid(groups >= 0))
            axis.imshow(shown, extent=extent, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(TITLES.get(name, name), fontsize=9)
    for axis, keep, groups in zip(axes[0], KEEP, next(iter(parts.values())), strict=True):
        axis.set_title(f"{keep:.0%}: {round(keep * len(groups))} of {len(groups)}", fontsize=10)
    canvas.draw()
    buffer = BytesIO()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    drawn.save(buffer, "JPEG", quality=QUALITY, optimize=True, comment=digest(settings(photograph.name)).encode())
    return buffer.getvalue()


def _grid(values: Tensor) -> Any:
    return values.view(encoder.GRID, encoder.GRID).numpy()


def _merged(view: Any, groups: Tensor) -> Any:
    """The photograph with every patch in the mean colour of the patches that it was merged with."""
    from PIL import Image

    colours = np.asarray(view.resize((encoder.GRID,) * 2, Image.Resampling.BOX), dtype=np.float32).reshape(1, -1, 3)
    means, _ = vtkernels.merge_tokens(torch.from_numpy(colours), groups[None], int(groups.max()) + 1)
    return means[0, groups].view(encoder.GRID, encoder.GRID, 3).byte().numpy()
