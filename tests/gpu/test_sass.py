"""Reading what cuobjdump prints."""

from __future__ import annotations

import pytest

from evotune.gpu.sass import instruction_mix, resources

# cuobjdump 13 of a kernel for sm_100a, shortened; the encodings' second lines are kept once.
TEXT = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function attention_forward:
  REG:189 STACK:264 SHARED:1024 LOCAL:0 CONSTANT[0]:944 TEXTURE:0 SURFACE:0 SAMPLER:0

	code for sm_100a
		Function : attention_forward
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM100 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM100)"
        /*0000*/                   LDC R1, c[0x0][0x37c] ;                      /* 0x0000df00ff017b82 */
                                                                                /* 0x000fe20000000800 */
        /*0060*/               @P1 BRA 0x200 ;                                  /* 0x0000000000641947 */
        /*0070*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;             /* 0x0000000000641947 */
        /*0080*/                   NOP ;                                        /* 0x0000000000007918 */
        /*0090*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR6][R8.64] ; /* 0x0000000000007918 */
        /*00a0*/         @!UP0 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;      /* 0x0000000000007918 */
        /*00b0*/                   STL.64 [R1+0x8], R2 ;                        /* 0x0000000000007918 */
        /*00c0*/                   STL [R1], R2 ;                               /* 0x0000000000007918 */
        /*00d0*/                   LDL.LU.128 R4, [R1+0x10] ;                   /* 0x0000000000007918 */
        /*00e0*/                   LDL.U16 R4, [R1+0x20] ;                      /* 0x0000000000007918 */
        /*00f0*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;    /* 0x0000000000007918 */
        /*10100*/                  HMMA.16816.F32 R8, R4, R2, R8 ;              /* 0x0000000000007918 */
"""


def test_registers_and_stack_are_those_of_the_largest_function() -> None:
    second = "\n Function g:\n  REG:200 STACK:0 SHARED:0 LOCAL:0\n"
    assert resources(TEXT) == {"registers": 189, "stack_bytes": 264}
    assert resources(TEXT + second) == {"registers": 200, "stack_bytes": 264}


def test_text_without_resource_usage_is_not_read_as_none_used() -> None:
    with pytest.raises(ValueError, match="no resource usage"):
        resources("cuobjdump fatal: not a valid file")


def test_instructions_are_counted_by_kind_and_spills_by_width() -> None:
    mix = instruction_mix(TEXT)
    assert mix["instructions"] == 11
    assert mix["spill_bytes"] == 8 + 4 + 16 + 2
    counted = {k: n for k, n in mix.items() if n and k not in ("instructions", "spill_bytes")}
    assert counted == {"global_loads": 1, "async_copies": 1, "tcgen05_mma": 1, "wgmma": 1, "mma_sync": 1}
