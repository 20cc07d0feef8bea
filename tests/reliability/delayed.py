"""The command line of evotune, with evaluations that take a moment more and leave a mark each.

WITNESS=FILE DELAY_S=0.02 python tests/reliability/delayed.py run …

A script and no module, so that the package that is installed is the one that runs.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from evotune.cli import main
from evotune.cpu.evaluator import CpuEvaluator
from evotune.replay import ReplayEvaluator
from evotune.space import Config
from evotune.trial import Static


def mark(evaluator: type[CpuEvaluator] | type[ReplayEvaluator]) -> None:
    """Compiling is the part of an evaluation that finals do not repeat."""
    compiled = evaluator.compile

    def compile_later(self, config: Config) -> Static:
        with Path(os.environ["WITNESS"]).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {time.process_time()} {json.dumps(dict(config))}\n")
        time.sleep(float(os.environ["DELAY_S"]))
        return compiled(self, config)

    evaluator.compile = compile_later


if __name__ == "__main__":
    mark(CpuEvaluator)
    mark(ReplayEvaluator)
    main()
