"""Codebooks of redundant prototypes: build, load and save them.

`SHIPPED` is the codebook of the demo: plain surroundings (sky, walls, blur) as `vtkernels.demo.encoder` sees them. Its
recipe stands in its metadata and in `vtkernels.demo.codebook`; `python -m vtkernels build-prototypes` rebuilds it.
A codebook is of use only with features of the encoder (and the layer) that it was built from.
"""

from pathlib import Path

from .io import Codebook, CodebookError, load, save
from .kmeans import build_kmeans

SHIPPED = Path(__file__).with_name("photographs.safetensors")

__all__ = ["SHIPPED", "Codebook", "CodebookError", "build_kmeans", "load", "save"]
