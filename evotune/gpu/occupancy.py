"""What a multiprocessor has, what a block may take of it, how many warps fit, and what keeps more from fitting.

The rules are those of ``cuda_occupancy.h`` in the CUDA toolkit; the numbers are from the table of technical
specifications per compute capability in the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WARP_THREADS = 32
THREADS_PER_BLOCK = 1024
REGISTERS_PER_THREAD = 255
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
    """Of tensor memory: 128 rows of 32 bits each."""
    cores: int = 128
    """For 32-bit floating point, as NVML counts them."""

    @property
    def block_limits(self) -> dict[str, int]:
        """The most that one block may have; shared memory beyond 48 KiB is opted into, as Triton does."""
        return {
            "threads_per_block": THREADS_PER_BLOCK,
            "registers_per_thread": REGISTERS_PER_THREAD,
            "registers_per_block": self.registers,
            "shared_bytes_per_block": self.shared_bytes - RESERVED_SHARED_BYTES,
            "tmem_columns": self.tmem_columns,
        }

    def violations(self, block: Mapping[str, float]) -> list[str]:
        """Which limits a block exceeds, in words; it has ``threads``, ``registers`` (of a thread),
        ``shared_bytes`` and ``tmem_columns``."""
        threads, registers = int(block["threads"]), int(block["registers"])
        limits = self.block_limits
        used = [
            ("bytes of shared memory", block["shared_bytes"], limits["shared_bytes_per_block"]),
            ("threads", threads, limits["threads_per_block"]),
            ("registers of a thread", registers, limits["registers_per_thread"]),
            ("registers", _registers(-(-threads // WARP_THREADS), registers), limits["registers_per_block"]),
            ("columns of tensor memory", block["tmem_columns"], limits["tmem_columns"]),
        ]
        return [f"a block needs {int(n)} {what}, the limit is {most}" for what, n, most in used if n > most]


MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, blocks=32, shared_bytes=164 << 10, cores=64),
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
    if _registers(warps, registers) > sm.registers:
        return 0
    return sm.registers // PARTITIONS // _registers_per_warp(registers) * PARTITIONS // warps


def _registers(warps: int, registers: int) -> int:
    """Those of a block at launch, where it is taken to be spread over all partitions evenly."""
    return _registers_per_warp(registers) * _round_up(warps, PARTITIONS)


def _registers_per_warp(registers: int) -> int:
    return _round_up(max(registers, 1) * WARP_THREADS, REGISTERS_PER_ALLOCATION)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
