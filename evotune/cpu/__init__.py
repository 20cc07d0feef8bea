"""The CPU target: C code compiled here, checked, and timed on one core."""

from evotune.cpu.compiler import CpuCompiler
from evotune.cpu.evaluator import CpuEvaluator
from evotune.cpu.toolchain import Compiler, find_compiler

__all__ = ["Compiler", "CpuCompiler", "CpuEvaluator", "find_compiler"]
