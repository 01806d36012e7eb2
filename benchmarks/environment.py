"""What a result must carry: device, versions, commit, command. No paths and no host names."""

import os
import platform
import re
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import vtkernels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def device_slug(device: str) -> str:
    """The results folder of a device: `nvidia-h200`, `amd-epyc-9r14-2-threads`."""
    name = re.sub(r"\((r|tm|c)\)|\bCPU\b", " ", device_name(device), flags=re.IGNORECASE)
    if device == "cpu":
        name += f" {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cap_instruction_set() -> None:
    """Some virtual machines announce AMX and do not allow it: torch's bf16 products end the process there. Then, and
    only then, keep oneDNN from it; the result files say so. Before the first product."""
    probe = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); x @ x"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True)
    if done.returncode == -signal.SIGILL:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"


def commit() -> str | None:
    """HEAD, with "-dirty" where tracked files differ; None outside a git checkout."""
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return head and head + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


def describe(device: str, command: str, commit_id: str | None = None) -> dict[str, Any]:
    try:
        import triton
        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": device_name(device), "device_slug": device_slug(device), "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"), "threads": torch.get_num_threads(),
        "load_at_start": load, "vtkernels": vtkernels.__version__, "torch": torch.__version__,
        "triton": triton_version, "cuda": torch.version.cuda, "python": platform.python_version(),
        "commit": commit_id or commit(), "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def header(facts: dict[str, Any]) -> str:
    lines = [f"device   {facts['device']}"]
    if facts["device"] != facts["cpu"]:
        lines.append(f"cpu      {facts['cpu']}")
    load = "" if facts["load_at_start"] is None else f", load {facts['load_at_start']:.1f} at the start"
    lines += [
        f"cpu use  {facts['threads']} threads, {facts['cpu_capability']}{load}",
        f"versions vtkernels {facts['vtkernels']}, torch {facts['torch']}, triton {facts['triton']}, "
        f"CUDA {facts['cuda']}, Python {facts['python']}",
        f"commit   {facts['commit']}", f"command  {facts['command']}", f"date     {facts['date']}",
    ]
    return "\n".join(lines)
