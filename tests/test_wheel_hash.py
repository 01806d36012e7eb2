"""Two builds of the wheel are the same bytes: in other folders, of other ages, with torch elsewhere, another umask."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def build(folder: Path, umask: int, age: float) -> Path:
    source, packages = folder / "source", folder / "packages"
    unneeded = (".git", ".venv*", "*.so", "build", "demo_out", "results", "__pycache__", "*.egg-info", ".*_cache")
    before = os.umask(umask)
    try:
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*unneeded), copy_function=shutil.copyfile)
    finally:
        os.umask(before)
    for path in source.rglob("*"):
        os.utime(path, (time.time() - age,) * 2)
    packages.mkdir()
    (packages / "torch").symlink_to(Path(torch.__file__).parent)
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w",
                           str(folder), str(source)], capture_output=True, text=True, umask=umask,
                          env={**os.environ, "PYTHONPATH": str(packages), "VTKERNELS_BUILD_NATIVE": "1",
                               "SOURCE_DATE_EPOCH": "1700000000"})
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.long
def test_two_builds_have_one_hash(tmp_path):
    folders = [tmp_path / "one", tmp_path / "a longer name"]
    for folder in folders:
        folder.mkdir()
    wheels = [build(folders[0], 0o022, 0), build(folders[1], 0o077, 1e8)]
    contents = [{i.filename: zipfile.ZipFile(w).read(i) for i in zipfile.ZipFile(w).infolist()} for w in wheels]
    assert "vtkernels/_C_cpu.so" in contents[0]
    assert contents[0].keys() == contents[1].keys()
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []
    assert len({hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}) == 1
    assert not [name for name, data in contents[0].items() if str(tmp_path).encode() in data]
