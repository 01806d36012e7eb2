"""Codebook files changed at random: `load` returns a sound codebook or raises its own error, and nothing unpickles."""

import ast
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtkernels
from vtkernels import prototypes, testing

PACKAGE = Path(vtkernels.__file__).parent
HOSTILE = (None, True, -1, 0, 2**31, 2**63, 2**70, 1e308, float("nan"), "", "F32", "BF16", "F64", "I64", "../x", [], {},
           [0], [0, -1], [0, 2**62], [2**40, 2**40], [[[[0]]]], {"a": {}})


def valid(path: Path) -> bytes:
    prototypes.save(path, testing.rand(5, 6), tensors={"basis": testing.rand(2, 3)}, recipe="test")
    return path.read_bytes()


def with_header(header: object, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed_header(pick: random.Random, original: bytes) -> bytes:
    end = 8 + struct.unpack("<Q", original[:8])[0]
    header, data = json.loads(original[8:end]), original[end:]
    for _ in range(pick.randint(1, 2)):
        entry = header.get(pick.choice(list(header)), {}) if header else {}
        if isinstance(entry, dict) and entry and pick.random() < 0.8:
            key = pick.choice(list(entry))
            if pick.random() < 0.2:
                del entry[key]
            elif isinstance(entry[key], list) and entry[key] and pick.random() < 0.5:
                entry[key][pick.randrange(len(entry[key]))] = pick.choice(HOSTILE)
            else:
                entry[key] = pick.choice(HOSTILE)
        elif header:
            name = pick.choice(list(header))
            header[name] = pick.choice(HOSTILE)
    length = pick.choice((None, None, None, 0, 1, 2**20, 2**63, 2**64 - 1, pick.randrange(len(original))))
    return with_header(header, data, length)


def changed(pick: random.Random, original: bytes) -> bytes:
    kind = pick.randrange(5)
    if kind == 0:
        return changed_header(pick, original)
    out = bytearray(original)
    if kind == 1:
        return bytes(out[:pick.randrange(len(out))])
    if kind == 2:
        return bytes(out) + pick.randbytes(pick.randint(1, 20))
    if kind == 3:
        at, length = pick.randrange(len(out)), pick.randint(1, 12)
        out[at:at + length] = pick.randbytes(pick.randint(0, 12))
        return bytes(out)
    for _ in range(pick.randint(1, 4)):
        at = pick.randrange(len(out) if pick.random() < 0.5 else 300)
        out[at] ^= 1 << pick.randrange(8)
    return bytes(out)


def assert_sound_or_refused(path: Path) -> bool:
    """Whether the file was refused."""
    try:
        book = prototypes.load(path)
    except prototypes.CodebookError as error:
        message = str(error)
        if ", allowed: " not in message:
            pytest.fail(f"not an error of ours: {message}")
        return True
    assert book.prototypes.dim() == 2
    assert book.prototypes.isfinite().all()
    assert book.rnorm.isfinite().all()
    return False


def run(tmp_path: Path, seeds: range) -> None:
    path = tmp_path / "book.safetensors"
    original = valid(path)
    assert not assert_sound_or_refused(path)
    refused = 0
    for seed in seeds:
        path.write_bytes(changed(random.Random(seed), original))
        refused += assert_sound_or_refused(path)
    # Most changes hit bytes that the digest covers, or the header.
    assert refused > len(seeds) * 0.8


def test_changed_files(tmp_path):
    run(tmp_path, range(3000))


@pytest.mark.long
def test_many_changed_files(tmp_path):
    run(tmp_path, range(100_000))


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_can_unpickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "__import__")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in CALLS


AUDITED = """
import sys
found = []
import torch, vtkernels
sys.addaudithook(lambda event, args: found.append(event) if event.startswith(("pickle", "marshal.load")) else None)
from vtkernels import prototypes
book = prototypes.load(sys.argv[1])
vtkernels.prune_topk(torch.rand(1, 8, 6), book.prototypes, 3, prototype_rnorm=book.rnorm)
events = [e for e in found if e.startswith("pickle")]
import pickle
pickle.loads(pickle.dumps(print))
assert "pickle.find_class" in found, "the hook does not see what unpickles"
print(events)
"""


def test_loading_and_pruning_unpickle_nothing(tmp_path):
    path = tmp_path / "book.safetensors"
    valid(path)
    child = subprocess.run([sys.executable, "-c", AUDITED, str(path)], capture_output=True, text=True,
                           env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    assert child.stdout.strip() == "[]", child.stderr


def test_a_pickle_is_refused(tmp_path):
    path = tmp_path / "book.safetensors"
    torch.save({"prototypes": testing.rand(3, 4)}, path)
    with pytest.raises(prototypes.CodebookError, match="not a safetensors file"):
        prototypes.load(path)
