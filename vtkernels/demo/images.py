"""Photographs: the packaged ones, files and folders of the user; any mode and size, as one grid of pixels."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import DemoError, need
from .encoder import SIDE

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
MAX_PIXELS = 1 << 28  # 0.8 GB once decoded
VIEW_SIDE = 1008  # longest side of the copy that the picture shows
PACKAGED = (("skimage", "data/astronaut.png"), ("sklearn", "datasets/images/china.jpg"),
            ("sklearn", "datasets/images/flower.jpg"), ("skimage", "data/rocket.jpg"))


@dataclass(frozen=True)
class Photograph:
    """pixels: `[SIDE, SIDE, 3]` uint8, what the encoder sees; view: a larger copy in its own proportions."""

    name: str
    pixels: Tensor
    view: Any


def packaged_path(package: str, file: str) -> Path | None:
    """Where an installed package keeps a file, without importing it; None when it does not."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    return None


def packaged() -> list[Path]:
    """The demo's photographs, as far as scikit-image and scikit-learn are installed and ship them."""
    found = [path for path in (packaged_path(*entry) for entry in PACKAGED) if path]
    if not found:
        raise DemoError("the packaged photographs need scikit-image or scikit-learn: pip install 'vtkernels[demo]', "
                        "or pass your own with --images")
    return found


def collect(paths: Sequence[str | os.PathLike], skip: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Files named by the user, and files found in folders (recursively, by suffix), sorted.

    `skip` is a folder that is left out where it lies inside one of them: the pictures of an earlier run.
    """
    named, found = [], []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if skip is not None and path.resolve() in skip.resolve().parents:
                inside = [p for p in inside if skip.resolve() not in p.resolve().parents]
            if not inside:
                raise DemoError(f"{path}: no image in this folder, looked for {' '.join(SUFFIXES)}")
            found += inside
        elif path.exists():
            named.append(path)
        else:
            raise DemoError(f"{path}: no such file or folder")
    return named, found


def read(path: Path, box: tuple[float, float, float, float] | None = None) -> Photograph:
    """Decode one image; the whole of it, or a box (left, top, right, bottom) in shares of width and height.

    Raises:
        DemoError: naming the file, when it is no image that Pillow can read, or too large.
    """
    image_module, ops = need("PIL.Image", "Pillow"), need("PIL.ImageOps", "Pillow")
    try:
        with _own_size_limit(image_module), warnings.catch_warnings(), image_module.open(path) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAX_PIXELS:
                raise DemoError(f"{path}: {image.width} x {image.height} pixels, allowed: at most {MAX_PIXELS} in all")
            rgb = to_rgb(ops.exif_transpose(image))
    except DemoError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever a broken file makes them meet
        raise DemoError(f"{path}: not an image that Pillow can read ({type(error).__name__}: {error})") from error
    if box:
        rgb = rgb.crop(tuple(round(share * size) for share, size in zip(box, rgb.size * 2, strict=True)))
    bicubic = image_module.Resampling.BICUBIC
    pixels = torch.from_numpy(np.array(rgb.resize((SIDE, SIDE), bicubic)))
    longest = max(rgb.size)
    width, height = (max(round(VIEW_SIDE * side / longest), VIEW_SIDE // 3) for side in rgb.size)
    return Photograph(path.stem, pixels, rgb.resize((width, height), bicubic))


def to_rgb(image: Any) -> Any:
    """A Pillow image of any mode as RGB: transparency over white, more than 8 bits scaled down."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        low, high = (0, 65535) if image.mode.startswith("I;16") else (values.min(), values.max())
        scaled = (values - low) / max(high - low, 1e-30) * 255
        image = need("PIL.Image", "Pillow").fromarray(scaled.round().astype(np.uint8))
    elif image.mode == "LAB":
        cms = need("PIL.ImageCms", "Pillow with LittleCMS")
        image = cms.applyTransform(image, cms.buildTransform(cms.createProfile("LAB"), cms.createProfile("sRGB"),
                                                             "LAB", "RGB"))
    elif image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = need("PIL.Image", "Pillow").new("RGBA", image.size, "white")
        image = need("PIL.Image", "Pillow").alpha_composite(white, image)
    return image.convert("RGB")


@contextmanager
def _own_size_limit(image_module: Any) -> Iterator[None]:
    """Pillow refuses above 179 million pixels; MAX_PIXELS is checked instead."""
    before, image_module.MAX_IMAGE_PIXELS = image_module.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        image_module.MAX_IMAGE_PIXELS = before
