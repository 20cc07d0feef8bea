"""Occupancy against values worked out by hand from the rules in cuda_occupancy.h."""

from __future__ import annotations

import pytest

from evotune.gpu.occupancy import MULTIPROCESSORS, occupancy

HOPPER, BLACKWELL, AMPERE = (MULTIPROCESSORS[c] for c in (90, 100, 80))


@pytest.mark.parametrize(
    ("threads", "registers", "shared_bytes", "blocks", "share", "limited_by"),
    [
        # 64 warps in blocks of 4: 16 blocks. 32 registers of 32 threads: 1024 a warp, 16 warps a quarter.
        (128, 32, 0, 16, 1.0, "warps"),
        # Blocks of one warp: no more than 32 of them, half of the warps.
        (32, 32, 0, 32, 0.5, "blocks"),
        # 64 * 32 = 2048 registers a warp; 16384 of a quarter hold 8, the SM 32 warps: 8 blocks of 4.
        (128, 64, 0, 8, 0.5, "registers"),
        # 65 * 32 = 2080 is rounded up to 2304: 7 a quarter, 28 warps, 7 blocks.
        (128, 65, 0, 7, 0.4375, "registers"),
        # 255 * 32 = 8160, up to 8192: 2 a quarter, 8 warps, 2 blocks of 4.
        (128, 255, 0, 2, 0.125, "registers"),
        # 100 KiB and 1 KiB of the driver's: 228 KiB hold 2; 3 would need 303 KiB.
        (256, 32, 100 << 10, 2, 0.25, "shared memory"),
        # 75 KiB and 1 KiB, three times: exactly 228 KiB. One byte more is rounded up to 128.
        (256, 32, 75 << 10, 3, 0.375, "shared memory"),
        (256, 32, (75 << 10) + 1, 2, 0.25, "shared memory"),
        # The most that a block can have: 227 KiB.
        (128, 128, 232448, 1, 0.0625, "shared memory"),
        (128, 128, 232449, 0, 0.0, "shared memory"),
        # 16 warps of 168 * 32 = 5376 registers: 3 a quarter, 12 warps, not one block.
        (512, 168, 0, 0, 0.0, "registers"),
        (512, 128, 0, 1, 0.25, "registers"),
        # 96 * 32 = 3072: 21 warps in all registers together, but 5 in each quarter.
        (32, 96, 0, 20, 0.3125, "registers"),
    ],
)
def test_the_scarcest_resource_decides(
    threads: int, registers: int, shared_bytes: int, blocks: int, share: float, limited_by: str
) -> None:
    found = occupancy(HOPPER, threads=threads, registers=registers, shared_bytes=shared_bytes)
    assert (found.blocks, found.share, found.limited_by) == (blocks, share, limited_by)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, []),
        ({"shared_bytes": 232449}, ["a block needs 232449 bytes of shared memory, the limit is 232448"]),
        ({"threads": 2048, "registers": 32}, ["a block needs 2048 threads, the limit is 1024"]),
        ({"registers": 256, "threads": 32}, ["a block needs 256 registers of a thread, the limit is 255"]),
        # 1024 threads of 65 registers: 32 warps of 2304, allocated in steps of 256.
        ({"threads": 1024, "registers": 65}, ["a block needs 73728 registers, the limit is 65536"]),
        # 9 warps take as many as 12, three in each quarter: 12 of 5632.
        ({"threads": 9 * 32, "registers": 170}, ["a block needs 67584 registers, the limit is 65536"]),
        ({"tmem_columns": 640}, ["a block needs 640 columns of tensor memory, the limit is 512"]),
    ],
)
def test_only_what_the_hardware_does_not_have_is_refused(change: dict[str, int], wrong: list[str]) -> None:
    fits = {"threads": 1024, "registers": 64, "shared_bytes": 232448, "tmem_columns": 512}
    assert BLACKWELL.violations({**fits, **change}) == wrong


def test_whatever_has_no_block_resident_is_refused_and_the_other_way_round() -> None:
    for warps in (1, 2, 4, 6, 8, 9, 12, 16, 24, 32, 33):
        for registers in (16, 64, 65, 96, 128, 168, 255):
            for shared_bytes in (0, 232448, 232449):
                block = {"threads": 32 * warps, "registers": registers, "shared_bytes": shared_bytes}
                refused = HOPPER.violations({**block, "tmem_columns": 0})
                # An SM holds more threads than a block may have, so that no count of blocks tells of those.
                fits = occupancy(HOPPER, **block).blocks > 0 and warps <= 32
                assert bool(refused) != fits, (block, refused)


def test_tensor_memory_limits_blocks_on_blackwell() -> None:
    found = occupancy(BLACKWELL, threads=128, registers=32, shared_bytes=0, tmem_columns=256)
    assert (found.blocks, found.limited_by) == (2, "tensor memory")


def test_a_warp_that_is_not_full_counts_whole() -> None:
    assert occupancy(HOPPER, threads=33, registers=32, shared_bytes=0).share == 1.0
    assert occupancy(HOPPER, threads=65, registers=16, shared_bytes=0).share == 21 * 3 / 64


def test_an_a100_holds_163_kib_in_a_block() -> None:
    assert occupancy(AMPERE, threads=128, registers=32, shared_bytes=163 << 10).blocks == 1
    assert occupancy(AMPERE, threads=128, registers=32, shared_bytes=(163 << 10) + 1).blocks == 0
