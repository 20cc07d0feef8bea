"""Long runs and large journals: how memory and time per evaluation grow."""

from __future__ import annotations

import gc
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from evotune.journal import Journal
from evotune.process.memory import resident_bytes
from evotune.session import tune
from evotune.settings import Settings
from evotune.trial import Trial
from evotune.tuner import Tuner
from tests.program.corpus import SPACE


@dataclass
class Course:
    """Memory in use and seconds that have gone by after each evaluation; an observer of a run."""

    rss_bytes: list[int] = field(default_factory=list[int])
    at_s: list[float] = field(default_factory=list[float])

    def on_trial(self, trial: Trial, tuner: Tuner, *, is_best: bool) -> None:
        if len(self.at_s) % 50 == 0:
            gc.collect()  # what is waiting to be freed is not growth
        self.rss_bytes.append(resident_bytes(os.getpid()))
        self.at_s.append(time.process_time())

    def on_note(self, text: str) -> None:
        """Not counted."""

    def growth(self, after: int) -> float:
        """Share by which memory grew from evaluation ``after`` to the end."""
        return self.rss_bytes[-1] / self.rss_bytes[after - 1] - 1.0

    def ms_each(self, first: int, last: int) -> float:
        """Milliseconds of processor time per evaluation, between two of them."""
        return 1e3 * (self.at_s[last - 1] - self.at_s[first - 1]) / (last - first)


def long_run(journal: Path, recording: str, evaluations: int, search: str) -> Course:
    """A replayed run without a model."""
    course = Course()
    settings = Settings.model_validate(
        {
            "run": {"max_evaluations": evaluations, "search": search, "journal": str(journal)},
            "llm": {"provider": "none"},
        }
    )
    tune(recording, settings, observer=course)
    return course


def fill(path: Path, runs: int, trials: int) -> list[str]:
    """A journal of runs of so many trials each, all finished but the last; their ids.

    Rows are written together: a commit each, as a tuner makes them, would take an hour for a million.
    """
    rng = random.Random(0)
    with Journal(path) as journal:
        ids = [journal.open_run("toy", "hash", {"seed": seed, "target": "cpu"}).id for seed in range(runs)]
        for run_id in ids:
            numbers = range(trials)
            journal.write(
                f"INSERT INTO trial VALUES ({','.join('?' * 11)})",
                [(run_id, n, "random", None, "", _config(rng), 0.5, "{}", n, 1e9 + n, None) for n in numbers],
                ("INSERT INTO attempt VALUES (?,?,?,?)", [(run_id, n, 1, 1e9 + n) for n in numbers]),
                (
                    f"INSERT INTO measurement VALUES ({','.join('?' * 11)})",
                    [
                        (run_id, n, 3, "high", 50, "measured", _samples(rng), None, None, None, "{}")
                        for n in numbers
                    ],
                ),
            )
        journal.write("UPDATE run SET owner=NULL WHERE id=?", [(run_id,) for run_id in ids])
        result = json.dumps({"evaluations": trials, "best": None, "speedup": None, "stopped": "evaluations"})
        journal.write("UPDATE run SET result=? WHERE id=?", [(result, run_id) for run_id in ids[:-1]])
    return ids


def _config(rng: random.Random) -> str:
    return json.dumps({name: rng.choice(values) for name, values in SPACE.items()})


def _samples(rng: random.Random) -> str:
    return json.dumps([rng.uniform(0.5, 1.5) for _ in range(15)])
