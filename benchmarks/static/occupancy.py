"""How many blocks of a kernel one multiprocessor holds, by its registers, shared memory and warps.

The rules are those of NVIDIA's occupancy calculator (CUDA programming guide, technical specifications per compute
capability): registers are given to a warp in units of 256 and warps in groups of 4; each block's shared memory is
rounded up to 128 bytes and takes 1 KB more that the system reserves.

    per warp  = 256 * ceil(registers * 32 / 256)
    blocks    = min(max_blocks, max_warps // warps, 4 * (registers_of_sm // per_warp // 4) // warps,
                    shared_of_sm // (128 * ceil((shared + 1024) / 128)))
    occupancy = blocks * warps / max_warps
"""

from typing import NamedTuple


class Limits(NamedTuple):
    """Of one multiprocessor, and of one block."""

    warps: int
    blocks: int
    registers: int
    shared: int
    block_shared: int


LIMITS = {
    "sm_80": Limits(64, 32, 65536, 164 * 1024, 163 * 1024),
    "sm_90": Limits(64, 32, 65536, 228 * 1024, 227 * 1024),
    "sm_100": Limits(64, 32, 65536, 228 * 1024, 227 * 1024),
}
RESERVED = 1024


def blocks(arch: str, registers: int, shared: int, warps: int) -> int:
    """0 where a block does not fit at all."""
    limits = LIMITS[arch]
    if shared > limits.block_shared or registers > 255:
        return 0
    of_warp = max(1, -(-registers * 32 // 256)) * 256
    by_registers = limits.registers // of_warp // 4 * 4 // warps
    by_shared = limits.shared // (-(-(shared + RESERVED) // 128) * 128)
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared)


def occupancy(arch: str, registers: int, shared: int, warps: int) -> float:
    """Share of the multiprocessor's warps that can be resident."""
    return blocks(arch, registers, shared, warps) * warps / LIMITS[arch].warps
