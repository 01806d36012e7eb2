"""Two builds of the wheel, from copies in different folders, are the same bytes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder: Path) -> str:
    source = folder / "source"
    unneeded = (".git", ".venv*", "*.so", "build", "demo_out", "results", "__pycache__", "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*unneeded))
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w",
                           str(folder), str(source)], capture_output=True, text=True,
                          env={**os.environ, "VTKERNELS_BUILD_NATIVE": "0", "SOURCE_DATE_EPOCH": "1700000000"})
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.mark.long
def test_two_builds_have_one_hash(tmp_path):
    folders = [tmp_path / "one", tmp_path / "a longer name"]
    for folder in folders:
        folder.mkdir()
    assert build(folders[0]) == build(folders[1])
