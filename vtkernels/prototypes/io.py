"""Codebook files: safetensors only, checked before use, written whole or not at all.

A file holds the tensor `prototypes` [P, D], any further tensors that its features need, and metadata strings. `sha256`
in the metadata is the digest of the file's data section, that is of all tensor bytes in file order.
"""

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._checks import FLOATS, names
from ..score.prototype_scores.reference import reciprocal_norms

FORMAT = "vtkernels codebook"
VERSION = "1"
MAX_HEADER_BYTES = 1 << 20  # parsed as JSON, so capped before it is read
MAX_FILE_BYTES = 1 << 30
LAYER = "projector"  # the visual tokens as they enter the language model
RESERVED_KEYS = ("format", "version", "sizes", "sha256")


class CodebookError(ValueError):
    """A codebook that cannot be read, written or used as asked: names the file, what came and what is allowed."""


@dataclass(frozen=True)
class Codebook:
    """What `load` returns.

    prototypes: `[P, D]` redundant prototypes, not normalised.
    rnorm: `[P]` float32, their reciprocal norms (the `prototype_rnorm` of the ops).
    metadata: the strings of the file: recipe, source, encoder, layer, sizes, version, sha256 and others.
    tensors: further tensors of the file, by name.
    """

    prototypes: Tensor
    rnorm: Tensor
    metadata: dict[str, str]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def load(path: str | os.PathLike, *, dim: int | None = None, dtype: torch.dtype | None = None,
         device: torch.device | str | None = None, tensor: str = "prototypes", model: Any = None,
         layer: str = LAYER) -> Codebook:
    """Read a codebook from a safetensors file.

    Args:
        path: the file.
        dim: the D it must have; any when absent.
        dtype: float32, float16 or bfloat16 to convert the prototypes to; that of the file when absent.
        device: where the prototypes go; the CPU when absent.
        tensor: the name of the prototypes in a file that vtkernels did not write.
        model: of transformers; the prototypes must have the D of its visual tokens and its dtype (unless `dtype` is
            given), and what the file says of its model type and layer must be true.
        layer: where the features come from that the codebook is for, with `model`.

    Raises:
        CodebookError: a model that it was not built for; not a safetensors file, a header over 1 MiB, no such tensor, a
            wrong rank, dtype or D, no prototypes, NaN or inf, a norm that float32 cannot hold, or bytes that are not
            those of their sha256.

    Example:
        >>> book = prototypes.load("codebook.safetensors", dim=hidden.shape[-1], dtype=hidden.dtype)  # doctest: +SKIP
        >>> vtkernels.prune_topk(hidden, book.prototypes, 144, prototype_rnorm=book.rnorm)  # doctest: +SKIP
    """
    metadata, tensors, digest = read_safetensors(path)
    if metadata.get("format") == FORMAT and metadata.get("version") != VERSION:
        _fail(path, f"has format version {metadata.get('version')!r}", repr(VERSION))
    if "sha256" in metadata and metadata["sha256"] != digest:
        _fail(path, f"holds tensor bytes of sha256 {digest}", f"{metadata['sha256']}, which its metadata promises")
    if tensor not in tensors:
        _fail(path, f"has no tensor {tensor!r}", ", ".join(map(repr, tensors)) or "a file with tensors")
    prototypes = tensors.pop(tensor)
    _check(path, tensor, prototypes, dim)
    if model is not None:
        _check_model(path, tensor, prototypes, metadata, model, layer, dtype)
    if dtype is not None and dtype != prototypes.dtype:
        if dtype not in FLOATS:
            _fail(path, f"is asked for as {dtype}", names(FLOATS))
        prototypes = prototypes.to(dtype)
        _check(path, f"{tensor} as {names([dtype])}", prototypes, dim)
    prototypes = prototypes.to(device or "cpu")
    return Codebook(prototypes, reciprocal_norms(prototypes), metadata, tensors)


def save(path: str | os.PathLike, prototypes: Tensor, *, tensors: Mapping[str, Tensor] | None = None,
         **metadata: str) -> None:
    """Write a codebook. The file appears whole; on failure an older one stays as it was.

    Args:
        path: the file.
        prototypes: `[P, D]` float32, float16 or bfloat16, finite.
        tensors: further tensors to keep with it, by name.
        metadata: strings, such as `recipe=`, `source=`, `model=` and `layer=`. `format`, `version`, `sizes` and
            `sha256` are added.

    Raises:
        CodebookError: prototypes that `load` would refuse, or metadata that are not strings.
    """
    _check(path, "prototypes", prototypes, None)
    for key, value in metadata.items():
        if not isinstance(value, str) or key in RESERVED_KEYS:
            _fail(path, f"is given metadata {key}={value!r}", f"a string, and no key of {', '.join(RESERVED_KEYS)}")
    metadata = {"format": FORMAT, "version": VERSION, "sizes": "x".join(map(str, prototypes.shape)), **metadata}
    write_safetensors(path, {"prototypes": prototypes, **(tensors or {})}, metadata)


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Tensors and metadata, to which `sha256` is added; atomically. The same contents give the same bytes."""
    import safetensors.torch  # here, so that the ops can be imported without it

    contents = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header, data = _split(safetensors.torch.save(contents))
    metadata = {**metadata, "sha256": hashlib.sha256(data).hexdigest()}
    # Sorted keys, since a dict's order would show; the header's length is a multiple of 8.
    text = json.dumps({**json.loads(header), "__metadata__": metadata}, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        _fail(path, f"is given metadata of {len(text)} bytes", f"at most {MAX_HEADER_BYTES}")
    write_atomically(path, struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor], str]:
    """Metadata, tensors and the sha256 of the data section of any safetensors file, read once."""
    import safetensors.torch

    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                _fail(path, f"is {size} bytes long", f"at most {MAX_FILE_BYTES}")
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= size - 8:
                _fail(path, f"is not a safetensors file (header length {length} in {size} bytes)", "a safetensors file")
            if length > MAX_HEADER_BYTES:
                _fail(path, f"has a header of {length} bytes", f"at most {MAX_HEADER_BYTES}")
            serialized = head + file.read()
    except OSError as error:
        _fail(path, f"cannot be read ({error.strerror or error})", "a safetensors file")
    header, data = _split(serialized)
    try:
        metadata = json.loads(header).get("__metadata__") or {}
        tensors = safetensors.torch.load(serialized)
    except (safetensors.SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        _fail(path, f"is not a safetensors file ({error})", "a safetensors file")
    return metadata, tensors, hashlib.sha256(data).hexdigest()


def write_atomically(path: str | os.PathLike, contents: bytes) -> None:
    """Replace a file in one step: readers see the old bytes or the new ones, a failure leaves the old ones."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk names no file
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _split(serialized: bytes) -> tuple[bytes, bytes]:
    end = 8 + int(struct.unpack("<Q", serialized[:8])[0])
    return serialized[8:end], serialized[end:]


def _check(path: Any, name: str, prototypes: Any, dim: int | None) -> None:
    if not isinstance(prototypes, Tensor):
        _fail(path, f"`{name}` is {type(prototypes).__name__}", "a torch.Tensor")
    shape = tuple(prototypes.shape)
    if prototypes.dtype not in FLOATS:
        _fail(path, f"`{name}` is a tensor of {names([prototypes.dtype])}", names(FLOATS))
    if len(shape) != 2 or 0 in shape:
        _fail(path, f"`{name}` has shape {shape}", "[P, D] with P >= 1 and D >= 1")
    if dim is not None and shape[1] != dim:
        _fail(path, f"`{name}` has shape {shape}, so D = {shape[1]}", f"D = {dim}, that of the features")
    if not prototypes.isfinite().all():
        _fail(path, f"`{name}` has NaN or infinite entries", "finite entries")
    if reciprocal_norms(prototypes).isnan().any():
        _fail(path, f"`{name}` has a norm above float32's range", "norms that float32 can hold")


def _check_model(path: Any, name: str, prototypes: Tensor, metadata: dict[str, str], model: Any, layer: str,
                 dtype: torch.dtype | None) -> None:
    config = model.config
    for key, want in (("model_type", config.model_type), ("layer", layer)):
        if metadata.get(key, want) != want:
            _fail(path, f"is for {key} {metadata[key]!r}", f"{want!r}, that of the model's features")
    _check(path, name, prototypes, config.get_text_config().hidden_size)
    if dtype is None and prototypes.dtype != model.dtype:
        _fail(path, f"`{name}` is a tensor of {names([prototypes.dtype])}", f"{names([model.dtype])}, the model's, or "
              "`dtype` to convert to")


def _fail(path: Any, got: str, allowed: str) -> NoReturn:
    raise CodebookError(f"{path}: {got}, allowed: {allowed}")
