"""What goes into the wheel and what comes out: pinned tools, the bill of materials, no files written at run time."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

from vtkernels import prototypes

ROOT = Path(__file__).parents[1]


def test_what_builds_the_wheel_is_pinned_by_hash():
    lines = (ROOT / "requirements/build.txt").read_text().replace("\\\n", " ").splitlines()
    pinned = {}
    for line in lines:
        if line and not line.startswith("#"):
            requirement, *hashes = line.split()
            name, version = re.fullmatch(r"([\w-]+)==([\w.]+)", requirement).groups()
            assert hashes
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes)
            pinned[name] = version
    wanted = [line for line in (ROOT / "requirements/build.in").read_text().splitlines() if not line.startswith("#")]
    assert set(pinned) == {re.match(r"[\w-]+", line)[0] for line in wanted}
    makefile = (ROOT / "Makefile").read_text()
    assert f"torch=={pinned['torch']}\n" in makefile, "the tests run on another torch than the wheel is built with"
    floor = int(re.search(r'"setuptools>=(\d+)"', (ROOT / "pyproject.toml").read_text())[1])
    assert int(pinned["setuptools"].partition(".")[0]) >= floor
    assert "--require-hashes --no-deps -r requirements/build.txt" in makefile


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    unneeded = shutil.ignore_patterns(".git", ".venv*", "*.so", "build", "demo_out", "results", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=unneeded)
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w",
                           str(folder), str(folder / "source")], capture_output=True, text=True, umask=0o077,
                          env={**os.environ, "VTKERNELS_BUILD_NATIVE": "0"})
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def one(wheel: zipfile.ZipFile, end: str) -> str:
    (name,) = [n for n in wheel.namelist() if n.endswith(end)]
    return name


def test_the_bill_of_materials_is_that_of_the_wheel(wheel):
    bill = json.loads(wheel.read(one(wheel, ".dist-info/sboms/vtkernels.cdx.json")))
    metadata = Parser().parsestr(wheel.read(one(wheel, ".dist-info/METADATA")).decode())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["serialNumber"].startswith("urn:uuid:")
    itself = bill["metadata"]["component"]
    assert itself["purl"] == f"pkg:pypi/vtkernels@{metadata['Version']}"
    assert itself["licenses"] == [{"license": {"id": metadata["License-Expression"]}}]
    needed = {c["properties"][0]["value"] for c in bill["components"] if c["type"] == "library"}
    assert needed == {r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    files = {c["name"]: c["hashes"][0]["content"] for c in bill["components"] if c["type"] == "file"}
    assert set(files) == {n for n in wheel.namelist() if n.endswith((".so", ".safetensors"))}
    assert files
    for name, digest in files.items():
        assert hashlib.sha256(wheel.read(name)).hexdigest() == digest
    assert bill["dependencies"] == [{"ref": itself["bom-ref"], "dependsOn": [c["bom-ref"] for c in bill["components"]]}]


def test_no_umask_shows_in_the_wheel(wheel):
    modes = {i.external_attr >> 16 & 0o777 for i in wheel.infolist() if not i.filename.endswith("RECORD")}
    assert modes == {0o644}


WATCHED = """
import os, sys
written = []
def hook(event, args):
    writes = (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event == "open" and isinstance(args[0], (str, bytes)) and (args[2] & writes or set(str(args[1])) & set("wax+")):
        written.append(os.fsdecode(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "tempfile.mkstemp", "tempfile.mkdtemp"):
        written.append(event + " " + str(args[0]))
    elif event in ("socket.connect", "urllib.Request", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        written.append(event)
import torch
sys.addaudithook(hook)
import vtkernels
from vtkernels import prototypes, testing
for op, samples in testing.SAMPLES.items():
    sample = next(samples())
    testing.run(op, "cpu", *sample.args, **sample.kwargs)
    testing.run(op, "reference", *sample.args, **sample.kwargs)
prototypes.load(prototypes.SHIPPED)
seen = [name for name in written if name != os.devnull]
open(sys.argv[1], "w").close()
assert sys.argv[1] in written, "the hook sees no file"
print(seen)
"""


def test_nothing_is_written_and_nothing_started_at_run_time(tmp_path):
    """No cache of its own, so no cache that somebody else could write: only Triton and torch.compile have one."""
    child = subprocess.run([sys.executable, "-B", "-W", "ignore", "-c", WATCHED, str(tmp_path / "seen")], text=True,
                           capture_output=True, env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert child.stdout.strip() == "[]", child.stdout + child.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["seen"]


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.truncate(prototypes.io.MAX_FILE_BYTES + 1)  # a hole: it has a length, and no bytes
    with pytest.raises(prototypes.CodebookError, match=rf"is {2**30 + 1} bytes long, allowed: at most {2**30}"):
        prototypes.load(path)


def test_a_later_format_is_refused(tmp_path):
    path, tensors = tmp_path / "later.safetensors", {"prototypes": torch.ones(2, 3)}
    prototypes.io.write_safetensors(path, tensors, {"format": prototypes.io.FORMAT, "version": "1"})
    prototypes.load(path)
    prototypes.io.write_safetensors(path, tensors, {"format": prototypes.io.FORMAT, "version": "2"})
    with pytest.raises(prototypes.CodebookError, match="has format version '2', allowed: '1'"):
        prototypes.load(path)
