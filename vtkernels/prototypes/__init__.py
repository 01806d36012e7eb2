"""Codebooks of redundant prototypes: build, load and save them.

`build` makes one from images and a vision-language model of transformers (docs/codebooks.md); `probe` and `merge` are
its two steps, for runs that are shared out.

`SHIPPED` is the codebook of the demo: plain surroundings (sky, walls, blur) as `vtkernels.demo.encoder` sees them. Its
recipe stands in its metadata and in `vtkernels.demo.codebook`; `python -m vtkernels build-prototypes` rebuilds it.
A codebook is of use only with features of the encoder (and the layer) that it was built from.
"""

from pathlib import Path

from ._build import Built, Clusters, build, merge
from ._measure import probe
from ._select import Selection
from .density import build_density_peaks, density_peaks
from .io import Codebook, CodebookError, load, save
from .kmeans import build_kmeans

SHIPPED = Path(__file__).with_name("photographs.safetensors")

__all__ = ["SHIPPED", "Built", "Clusters", "Codebook", "CodebookError", "Selection", "build", "build_density_peaks",
           "build_kmeans", "density_peaks", "load", "merge", "probe", "save"]
