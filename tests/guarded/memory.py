"""Tensors between two pages that nobody may touch, inputs in pages that nobody may write."""

import ctypes
import mmap

import numpy as np
import torch
from torch import Tensor

NO_ACCESS, READ, WRITE = 0, 1, 2
PAGE = mmap.PAGESIZE
CANARY = 0xC5
EDGES = ("before", "after")  # the guard page that the tensor lies against

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _protect(address: int, length: int, access: int) -> None:
    if _libc.mprotect(address, length, access):
        raise OSError(ctypes.get_errno(), "mprotect")


class Guarded:
    """A copy of a tensor from its first element to its last, with its strides. Empty tensors stay as they are."""

    def __init__(self, t: Tensor, edge: str, fill: int | None = None) -> None:
        self.tensor = t
        self._room: np.ndarray | None = None
        if not t.numel():
            return
        spread = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1
        count = spread * t.element_size()
        pages = -(-count // PAGE)
        self._memory = mmap.mmap(-1, (pages + 2) * PAGE)
        everything = np.frombuffer(self._memory, dtype=np.uint8)
        self.address = everything.ctypes.data
        self._inner = pages * PAGE
        self._room = everything[PAGE:-PAGE]
        self._room[:] = CANARY
        begin = 0 if edge == "before" else self._inner - count
        self._held = slice(begin, begin + count)
        flat = torch.frombuffer(self._memory, dtype=t.dtype, count=spread, offset=PAGE + begin)
        self.tensor = flat.as_strided(t.shape, t.stride())
        if fill is None:
            flat.copy_(t.as_strided((spread,), (1,)))
        else:
            self._room[self._held] = 1 if t.dtype == torch.bool else fill
        for page in (self.address, self.address + PAGE + self._inner):
            _protect(page, PAGE, NO_ACCESS)

    def read_only(self) -> None:
        if self._room is not None:
            _protect(self.address + PAGE, self._inner, READ)

    def assert_canaries(self, what: str) -> None:
        """Nothing was written beside the tensor."""
        if self._room is None:
            return
        beside = np.delete(self._room, np.r_[self._held])
        if (beside != CANARY).any():
            raise AssertionError(f"{what}: {int((beside != CANARY).sum())} bytes beside the tensor were written")
