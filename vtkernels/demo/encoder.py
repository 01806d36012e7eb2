"""A small encoder that turns a photograph into visual tokens. It stands in for a vision tower; it is not one.

A real tower (CLIP, SigLIP) needs a download of a gigabyte. This one needs none and keeps what matters here: the token
grid of CLIP-336 (24 x 24 patches of 14 x 14 pixels), one vector for each patch, and vectors of plain surroundings
(sky, walls, blur) that lie close together while those of content scatter.

A patch is described at three scales: windows of 14, 28 and 56 pixels around its centre, each averaged down to 14 x 14.
For each scale, for luminance and the two chroma channels:

- the lowest DCT-II coefficients, square-rooted with their sign: what the patch looks like;
- the logarithm of the energy in bands of coefficients: how much happens in it, wherever it happens.

Each feature is then centred and scaled by the mean and standard deviation it has over the training photographs (they
ship in the codebook's file), clipped, and weighted: energies count in full, chroma little.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import fail

NAME = "vtkernels patch encoder 1: multi-scale DCT, stands in for a vision tower"
PATCH = 14
GRID = 24
SIDE = PATCH * GRID
SCALES = (1, 2, 4)
COEFFICIENTS = (8, 4, 4)  # per side of the square of lowest frequencies: Y, Cb, Cr
BAND_EDGES = (0, 1, 3, 6, 11)  # frequencies 0 | 1-2 | 3-5 | 6-10 in each direction
BANDS = (len(BAND_EDGES) - 1) ** 2
NOISE_ENERGY = 1e-6  # less than this is no detail: 8-bit rounding, sensor noise
CLIP = 3.0
COEFFICIENT_WEIGHTS, ENERGY_WEIGHTS = (0.5, 0.3, 0.3), (1.0, 0.3, 0.3)
DIM = len(SCALES) * sum(count**2 + BANDS for count in COEFFICIENTS)

_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-R BT.601


def raw_features(pixels: Tensor) -> Tensor:
    """Features before standardisation.

    Args:
        pixels: `[SIDE, SIDE, 3]` uint8, red, green, blue.

    Returns:
        `[GRID * GRID, DIM]` float64 (so that a rebuilt codebook does not hinge on rounding), patches row by row.
    """
    if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (SIDE, SIDE, 3):
        fail(ValueError, "raw_features", "pixels", f"{pixels.dtype} of shape {tuple(pixels.shape)}",
             f"torch.uint8 of shape {(SIDE, SIDE, 3)}")
    channels = torch.tensor(_YCBCR, dtype=torch.float64) @ (pixels.double() / 255).reshape(-1, 3).T
    image = channels.reshape(1, 3, SIDE, SIDE)
    return torch.cat([_window_features(image, scale) for scale in SCALES], dim=1)


def standardize(raw: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Tokens from raw features `[.., DIM]` and the statistics `[DIM]` of the training photographs."""
    return ((raw - mean) / std).clamp(-CLIP, CLIP) * _weights()


def detail(raw: Tensor) -> Tensor:
    """`[..]` mean log energy of the luminance above frequency 0 over all scales: how much happens around a patch."""
    per_scale = raw.unflatten(-1, (len(SCALES), -1))
    return per_scale[..., COEFFICIENTS[0] ** 2 + 1:COEFFICIENTS[0] ** 2 + BANDS].mean((-2, -1))


def _window_features(image: Tensor, scale: int) -> Tensor:
    window = PATCH * scale
    margin = (window - PATCH) // 2
    padded = F.pad(image, [margin] * 4, mode="replicate")[0]
    analysis = _pooled_dct(window)
    across = F.linear(padded.unfold(2, window, PATCH).contiguous(), analysis)  # [3, rows of pixels, GRID, frequency]
    spectra = F.linear(across.unfold(1, window, PATCH).contiguous(), analysis)  # [3, GRID, GRID, frequency, frequency]
    shapes = spectra.sign() * spectra.abs().sqrt()
    energies = F.linear(F.linear(spectra.square(), _band_means()).mT.contiguous(), _band_means())
    energies = (energies + NOISE_ENERGY).log()  # [3, GRID, GRID, band, band]
    return torch.cat([part.reshape(GRID * GRID, -1)
                      for shape, energy, count in zip(shapes, energies, COEFFICIENTS, strict=True)
                      for part in (shape[..., :count, :count], energy)], dim=1)


def _pooled_dct(window: int) -> Tensor:
    """`[BAND_EDGES[-1], window]`: average the window down to PATCH samples, then their lowest DCT-II frequencies."""
    position = torch.arange(PATCH, dtype=torch.float64)
    frequency = torch.arange(BAND_EDGES[-1], dtype=torch.float64)[:, None]
    dct = torch.cos(math.pi / PATCH * (position + 0.5) * frequency) / PATCH
    scale = window // PATCH
    return dct.repeat_interleave(scale, dim=1) / scale


def _band_means() -> Tensor:
    """`[bands per direction, BAND_EDGES[-1]]`: the mean over each range of frequencies."""
    frequency = torch.arange(BAND_EDGES[-1])
    edges = torch.tensor(BAND_EDGES)
    inside = ((frequency >= edges[:-1, None]) & (frequency < edges[1:, None])).double()
    return inside / inside.sum(1, keepdim=True)


def _weights() -> Tensor:
    channels = zip(COEFFICIENTS, COEFFICIENT_WEIGHTS, ENERGY_WEIGHTS, strict=True)
    one_scale = [w for count, low, energy in channels for w in (*[low] * count**2, *[energy] * BANDS)]
    return torch.tensor(one_scale * len(SCALES), dtype=torch.float64)
