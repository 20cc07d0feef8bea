"""The GPU's evaluator without GPUs: this machine's CPU measures, and a fake takes the compiler's place."""

from __future__ import annotations

from typing import Any

from evotune.errors import Rejected
from evotune.gpu.compiler import Compiled
from evotune.gpu.evaluator import CudaEvaluator
from evotune.gpu.target import Target

FACTS = {"threads": 128, "registers": 64, "shared_bytes": 0, "tmem_columns": 0}


class FakeCompiler:
    """Takes every configuration but two; counts what it is asked."""

    asked: list[Any]

    def __init__(self, *args: object, **options: object) -> None:
        self.asked = []

    def compile(self, config: Any, target: Target) -> Compiled:
        self.asked.append(config)
        if config.get("variant") == "refused_by_compiler":
            raise Rejected("compile", "ptxas does not like it")
        facts = {**FACTS, "shared_bytes": 240_000 if config.get("variant") == "too_large" else 0}
        return Compiled(1.5, facts, (facts,))

    def close(self) -> None:
        pass


class CpuEvaluator(CudaEvaluator):
    worker_entry = "cpu_device:open_session"
