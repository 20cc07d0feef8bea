"""How many warps of a kernel fit on one multiprocessor, and what keeps more from fitting.

The rules are those of ``cuda_occupancy.h`` in the CUDA toolkit; the numbers are from the table of technical
specifications per compute capability in the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP_THREADS = 32
REGISTERS_PER_ALLOCATION = 256  # registers of a warp are rounded up to this
PARTITIONS = 4  # each holds a quarter of the registers and of the warps
SHARED_BYTES_PER_ALLOCATION = 128
RESERVED_SHARED_BYTES = 1024  # of each block, by the driver, since compute capability 8.0


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor (SM) has for all blocks together."""

    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    tmem_columns: int = 0


MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, blocks=32, shared_bytes=164 << 10),
    86: Multiprocessor(warps=48, blocks=16, shared_bytes=100 << 10),
    89: Multiprocessor(warps=48, blocks=24, shared_bytes=100 << 10),
    90: Multiprocessor(warps=64, blocks=32, shared_bytes=228 << 10),
    100: Multiprocessor(warps=64, blocks=32, shared_bytes=228 << 10, tmem_columns=512),
}
"""By compute capability times ten."""


@dataclass(frozen=True)
class Occupancy:
    """``share`` is resident warps over the most there can be; ``limited_by`` names what runs out first."""

    blocks: int
    share: float
    limited_by: str


def occupancy(
    sm: Multiprocessor, *, threads: int, registers: int, shared_bytes: int, tmem_columns: int = 0
) -> Occupancy:
    """Blocks of one kernel that are resident at once.

    Args:
        sm: The multiprocessor.
        threads: Of a block.
        registers: Of a thread.
        shared_bytes: Of a block, static and dynamic, without what the driver reserves.
        tmem_columns: Of a block.
    """
    warps = -(-threads // WARP_THREADS)
    fits = {
        "warps": sm.warps // warps,
        "blocks": sm.blocks,
        "registers": _blocks_by_registers(sm, warps, registers),
        "shared memory": sm.shared_bytes
        // _round_up(shared_bytes + RESERVED_SHARED_BYTES, SHARED_BYTES_PER_ALLOCATION),
    }
    if tmem_columns:
        fits["tensor memory"] = sm.tmem_columns // tmem_columns
    limited_by = min(fits, key=lambda name: fits[name])
    blocks = fits[limited_by]
    return Occupancy(blocks, blocks * warps / sm.warps, limited_by)


def _blocks_by_registers(sm: Multiprocessor, warps: int, registers: int) -> int:
    per_warp = _round_up(max(registers, 1) * WARP_THREADS, REGISTERS_PER_ALLOCATION)
    # The check at launch takes a block to be spread over all partitions evenly.
    if per_warp * _round_up(warps, PARTITIONS) > sm.registers:
        return 0
    return sm.registers // PARTITIONS // per_warp * PARTITIONS // warps


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
