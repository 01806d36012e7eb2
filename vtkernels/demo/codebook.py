"""How the shipped codebook is built: k-means over training photographs, then the clusters that are redundant.

1. Twelve photographs that scikit-image ships (`TRAINING`), none of them in the demo; PNG only, since a decoder of PNG
   has no freedom. Each is seen whole and as four overlapping crops of two thirds: 60 views, 34,560 tokens.
2. The mean and standard deviation of every raw feature over these tokens become the encoder's statistics.
3. Spherical k-means, `CLUSTERS` centres, float64.
4. A token is redundant when many images have its like, when its neighbours predict it, and when little happens in it.
   A cluster becomes a prototype when its tokens come from at least `MIN_PHOTOGRAPHS` photographs, have a mean cosine
   of at least `MIN_PREDICTABILITY` to the mean of their eight neighbours, and show less detail than the
   `MAX_DETAIL` quantile of all tokens.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import prototypes
from ..prototypes.kmeans import nearest_centres
from . import DemoError, encoder, images

TRAINING = ("brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel", "moon",
            "motorcycle_left", "page")
VIEWS = (None, *((x, y, x + 2 / 3, y + 2 / 3) for x in (0, 1 / 3) for y in (0, 1 / 3)))
CLUSTERS, SEED, ITERATIONS = 256, 0, 10
MIN_PHOTOGRAPHS, MIN_PREDICTABILITY, MAX_DETAIL = 3, 0.5, 0.3


def build() -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
    """Prototypes `[P, DIM]` float32, the encoder's statistics, and the metadata. Deterministic."""
    views = [(i, view) for i, path in enumerate(_training_paths()) for view in _views(path)]
    raw = torch.stack([encoder.raw_features(view) for _, view in views])  # [views, tokens, DIM]
    std, mean = torch.std_mean(raw, dim=(0, 1))
    std = torch.where(std > 1e-9, std, 1.0)
    tokens = encoder.standardize(raw, mean, std)
    flat = tokens.flatten(0, 1)
    centres = prototypes.build_kmeans(flat, CLUSTERS, seed=SEED, iterations=ITERATIONS)
    cluster = nearest_centres(flat, centres)
    photograph = torch.tensor([i for i, _ in views]).repeat_interleave(tokens.shape[1])
    spread = torch.zeros(CLUSTERS, len(TRAINING), dtype=torch.bool)
    spread[cluster, photograph] = True
    amount = encoder.detail(raw).flatten()
    redundant = ((spread.sum(1) >= MIN_PHOTOGRAPHS)
                 & (_mean_by(cluster, predictability(tokens).flatten()) >= MIN_PREDICTABILITY)
                 & (_mean_by(cluster, amount) <= amount.quantile(MAX_DETAIL)))
    return centres[redundant].float(), {"encoder.mean": mean, "encoder.std": std}, {
        "encoder": encoder.NAME,
        "layer": "patch features, standardised",
        "source": "photographs shipped in scikit-image: " + ", ".join(TRAINING),
        "recipe": f"spherical k-means, {CLUSTERS} clusters, seed {SEED}, at most {ITERATIONS} iterations, over "
                  f"{len(flat)} tokens; kept: at least {MIN_PHOTOGRAPHS} photographs, predictability at least "
                  f"{MIN_PREDICTABILITY}, detail under the {MAX_DETAIL} quantile; see vtkernels/demo/codebook.py",
    }


def write(path: str | os.PathLike) -> int:
    """Build the codebook, write it, and return how many prototypes it has."""
    redundant, statistics, metadata = build()
    prototypes.save(path, redundant, tensors=statistics, **metadata)
    return redundant.shape[0]


def predictability(tokens: Tensor) -> Tensor:
    """`[views, tokens]` cosine of each token of a square grid to the mean of its eight neighbours."""
    grid = tokens.unflatten(1, (encoder.GRID, encoder.GRID)).permute(0, 3, 1, 2)
    total = F.avg_pool2d(F.pad(grid, [1] * 4, mode="replicate"), 3, stride=1) * 9
    return F.cosine_similarity(grid, total - grid, dim=1).flatten(1)


def _mean_by(cluster: Tensor, values: Tensor) -> Tensor:
    """Mean of `values` in each cluster; NaN, which no threshold accepts, for an empty one."""
    sums = torch.bincount(cluster, values, CLUSTERS)
    return sums / torch.bincount(cluster, minlength=CLUSTERS)


def _training_paths() -> list[Path]:
    found = {name: images.packaged_path("skimage", f"data/{name}.png") for name in TRAINING}
    if missing := [name for name, path in found.items() if path is None]:
        raise DemoError(f"scikit-image does not ship the training photographs {', '.join(missing)} here: "
                        "pip install 'vtkernels[demo]'")
    return [path for path in found.values() if path]


def _views(path: Path) -> list[Tensor]:
    return [images.read(path, view).pixels for view in VIEWS]
