"""MFM with a centred spectrum and a mask filled frequency by frequency."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import on_grid, stack

VARIANTS: dict[str, dict] = {"low": {"radius": 3.0}, "high": {"radius": 2.0, "low": False}}
TYPICAL: dict = {}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    grid, side = {"small": ((1, 4, 8), (3, 4, 2)), "odd": ((1, 5, 7), (3, 3, 3)),
                  "typical": ((1, 14, 14), (3, 16, 16))}[size]
    n = grid[1] * grid[2]
    return on_grid(batch, grid, 8, generator, pixels=torch.rand(batch, n, *side, generator=generator))


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    _, rows, columns = inputs.grid
    results = []
    for patches in inputs.pixels:
        height, width = patches.shape[2:]
        picture = torch.cat([torch.cat(list(patches[r * columns:(r + 1) * columns]), -1) for r in range(rows)], -2)
        spectrum = torch.fft.fftshift(torch.fft.fft2(picture), dim=(-2, -1))
        for y in range(picture.shape[1]):
            for x in range(picture.shape[2]):
                apart = (y - picture.shape[1] // 2) ** 2 + (x - picture.shape[2] // 2) ** 2
                if (apart <= method.radius**2) != method.low:
                    spectrum[:, y, x] = 0
        filtered = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real.clamp(0, 1)
        cut = [filtered[:, r * height:(r + 1) * height, c * width:(c + 1) * width].flatten()
               for r in range(rows) for c in range(columns)]
        results.append(Result(torch.stack(cut)[None]))
    return stack(results)
