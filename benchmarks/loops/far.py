"""FAR with its frame mask and bias written out for every pair."""

from typing import Any

import torch

from vtkernels.methods import Inputs, Result

from . import attention, stack

VARIANTS: dict[str, dict] = {"plain": {}, "decay": {"slope": 0.5}, "heads": {"slope": torch.tensor([0.1, 0.7])}}
TYPICAL: dict = {"slope": 0.1}


def inputs(batch: int, size: str, generator: torch.Generator) -> Inputs:
    frames, heads, width = {"small": ((8,) * 5, 2, 8), "odd": ((3, 4, 13, 16), 2, 8),
                            "typical": ((64,) * 16, 12, 64)}[size]
    n = sum(frames)
    layer = attention(batch, heads, heads, n, n, width, generator)
    return Inputs(hidden=torch.randn(batch, n, 16, generator=generator), decoder=(layer,), segments=frames)


def loop(method: Any, inputs: Any, stage: int = 0) -> Result:
    layer = inputs.decoder[-1]
    heads = layer.query.shape[1]
    slope = torch.as_tensor(method.slope, dtype=torch.float32).expand(heads).tolist()
    frame = [t for t, size in enumerate(inputs.segments) for _ in range(size)]
    frame_of = torch.tensor(frame, device=layer.key.device)
    results = []
    for row in range(layer.query.shape[0]):
        out = []
        for head in range(heads):
            distance = frame_of[None, :] - frame_of[:, None]
            logits = layer.query[row, head] @ layer.key[row, head].T / layer.query.shape[-1] ** 0.5
            logits = (logits + slope[head] * distance).masked_fill(distance > 0, -torch.inf)
            out.append(logits.softmax(-1) @ layer.value[row, head])
        results.append(Result(torch.cat(out, -1)[None]))
    return stack(results)
