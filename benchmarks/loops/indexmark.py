"""IndexMark's exchange, token by token."""

import math
from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import stack
from .fqgan import codebooks


def config(count: int, width: int, percentile: float) -> dict:
    """Neighbours in the codebook are pairs; a last one without a partner is its own, and green."""
    place = torch.arange(count)
    partner = (place ^ 1).clamp(max=count - 1)
    return {"codebook": codebooks(count, width), "partner": partner, "percentile": percentile,
            "green": (place % 4 % 3 == 0) | (partner == place)}


VARIANTS: dict[str, dict] = {"half": config(31, 8, 50.0), "third": config(40, 8, 33.0), "all": config(40, 8, 100.0)}
TYPICAL: dict = config(16384, 8, 50.0)


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    n = {"small": 36, "odd": 51, "typical": 576}[size]
    ratios = torch.randn(batch, n, generator=generator)
    ratios[:, 3], ratios[:, 5], ratios[:, 8] = torch.inf, -torch.inf, torch.nan
    return Inputs(hidden=torch.randn(batch, n, 8, generator=generator), scores=ratios)


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    results = []
    for tokens, ratios in zip(inputs.tokens, inputs.scores, strict=True):
        codebook = method.codebook.to(tokens)
        unit = codebook / codebook.norm(dim=1, keepdim=True)
        finite = sorted(r for r in ratios.tolist() if math.isfinite(r))
        place = method.percentile / 100 * (len(finite) - 1)
        low, high = finite[math.floor(place)], finite[math.ceil(place)]
        threshold = low + (high - low) * (place - math.floor(place))
        codes = []
        for token, ratio in zip(tokens, ratios.tolist(), strict=True):
            code = int((unit @ (token / token.norm())).argmax().item())
            if not method.green[code].item() and ratio <= threshold:
                code = int(method.partner[code].item())
            codes.append(code)
        chosen = torch.tensor(codes, device=tokens.device)
        results.append(Result(codebook[chosen][None], assignment=chosen[None], scores=ratios[None]))
    return stack(results)
