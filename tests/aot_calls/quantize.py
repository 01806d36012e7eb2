"""quantize_kv and dequantize_kv: 8, 4 and 2 bits, of 128 channels and of an odd number."""

import torch

from vtkernels import _library


def quantize_kv(match, dtype):
    chosen = torch.zeros(1, 40, dtype=torch.int64)
    for width, bits in ((128, [8, 4, 2]), (97, [2])):
        cache = torch.empty(1, 2, 64, width, dtype=dtype)
        yield (cache, cache, [chosen] * len(bits), bits), {}


def dequantize_kv(match, dtype):
    for (key, value, indices, bits), _ in quantize_kv(match, dtype):
        packed = _library.allocate(_library.CONTRACTS["quantize_kv"](key, value, indices, bits))
        yield (*packed, indices, bits, 64), {"dtype": dtype}


CALLS = {"quantize_kv": quantize_kv, "dequantize_kv": dequantize_kv}
FLOATING = {"quantize_kv", "dequantize_kv"}
