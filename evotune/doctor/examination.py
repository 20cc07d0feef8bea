"""Runs the examinations: at once where they do not disturb each other, each with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from evotune.doctor.gpus import gpus
from evotune.doctor.machine import clocks, load
from evotune.doctor.model import choice, endpoint, keys
from evotune.doctor.row import Row, fail
from evotune.doctor.software import compilers, gpu_packages, packages, python
from evotune.doctor.storage import disks, journal
from evotune.doctor.walls import death_with_the_parent, walls
from evotune.gpu.detect import detect
from evotune.settings import Settings

DEADLINE_S = 30.0  # zig builds its C library on first use: seconds on idle cores

Examination = Callable[[], Sequence[Row]]


def examine(
    settings: Settings, environ: Mapping[str, str], *, asks_model: bool = False, deadline_s: float = DEADLINE_S
) -> list[Row]:
    """Everything that a run depends on, in a fixed order.

    Args:
        settings: Where the journal is, and which model would be asked.
        environ: Holds the keys.
        asks_model: Ask it one tiny question, which may cost a fraction of a cent.
        deadline_s: After which an examination counts as failed.
    """
    path = Path(settings.run.journal).expanduser()
    examinations: dict[str, Examination] = {
        "Python": python,
        "packages": packages,
        "C compiler": compilers,
        "GPU packages": lambda: gpu_packages(has_gpu=bool(detect())),
        "GPU": gpus,
        "sandbox": walls,
        "parent death": death_with_the_parent,
        "keys": partial(keys, settings, environ),
        "model": partial(choice, settings, environ),
        "journal": partial(journal, path),
        "disks": partial(disks, path),
        "clock": clocks,
    }
    if asks_model:
        examinations["endpoint"] = partial(endpoint, settings, environ)
    # What is timed is timed alone, and after the load was read that this makes.
    return [*run_all(examinations, deadline_s), *run_all({"load": load}, deadline_s)]


def run_all(examinations: Mapping[str, Examination], deadline_s: float) -> list[Row]:
    """The rows of all examinations; one that raises, or does not end, is a row that says so."""
    found: dict[str, Sequence[Row]] = {}

    def run(name: str, examination: Examination) -> None:
        try:
            found[name] = examination()
        except BaseException as error:  # whatever is wrong with one, the others are told
            found[name] = [fail(name, f"could not be examined: {type(error).__name__}: {error}")]

    # Daemons: a driver that hangs must not hold up the end of the process.
    threads = [
        threading.Thread(target=run, args=item, name=f"evotune-doctor-{item[0]}", daemon=True)
        for item in examinations.items()
    ]
    ends_s = time.monotonic() + deadline_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ends_s - time.monotonic()))
    late = f"no answer within {deadline_s:g} s"
    return [row for name in examinations for row in found.get(name) or [fail(name, late)]]
