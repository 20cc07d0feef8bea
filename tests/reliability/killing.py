"""Kills a run at random moments and lets it go on, again and again, and counts what that cost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("delayed.py")
DELAY_S = 0.02
LIFE_S = 120.0
# Of all kills, those that strike whenever they like: while Python starts, or while the journal is read.
ANY_MOMENT = 0.3

Trials = dict[int, tuple[dict[str, Any], float | None]]


@dataclass
class Toll:
    """What the kills of one run cost.

    Args:
        kills: Processes that were killed, by what they were doing: ``starting`` or ``working``.
        acknowledged: Trials that were told to somebody before a kill or after the last.
        lost: Those of them that the journal did not have, or had otherwise, right after a kill or at the end.
        repeated: Evaluations that were begun and had to be begun again.
        quarantined: Trials that were left out because the tuner died twice while they were evaluated.
        resume_s: From the start of a process that goes on until its first evaluation began.
        resume_cpu_s: The same in processor time, which others on the machine do not lengthen.
        left: Processes that outlived the tuner by more than five seconds.
        best_ms: The best so far, as it was told, over all processes.
    """

    kills: dict[str, int] = field(default_factory=lambda: {"starting": 0, "working": 0})
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list[str])
    repeated: int = 0
    quarantined: int = 0
    resume_s: list[float] = field(default_factory=list[float])
    resume_cpu_s: list[float] = field(default_factory=list[float])
    left: list[int] = field(default_factory=list[int])
    best_ms: list[float] = field(default_factory=list[float])
    trials: Trials = field(default_factory=dict[int, tuple[dict[str, Any], "float | None"]])

    @property
    def is_monotone(self) -> bool:
        return self.best_ms == sorted(self.best_ms, reverse=True)


class Ballistic:
    """A run of ``evotune`` in a folder, killed so many times and then left to end."""

    def __init__(self, folder: Path, arguments: list[str], seed: int, delay_s: float = DELAY_S) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._delay_s = delay_s
        self._journal = folder / "j.db"
        self._witness = folder / "witness"
        self._command = [sys.executable, str(SCRIPT), "run", *arguments]
        self._command += ["--progress", "json", "--json", "--journal", str(self._journal)]
        self._told: Trials = {}
        self._lives = 0
        self.toll = Toll()

    def run(self, kills: int) -> Toll:
        """What the kills cost; fewer of them if the run ends before."""
        while sum(self.toll.kills.values()) < kills and self._live(is_killed=True):
            self._compare()
        self._live(is_killed=False)
        self._compare()
        toll = self.toll
        toll.trials = read_trials(self._journal)
        toll.acknowledged = len(self._told)
        with closing(sqlite3.connect(self._journal)) as db:
            query = "SELECT COUNT(*) FROM measurement WHERE reason LIKE 'the tuner died%'"
            toll.quarantined = int(db.execute(query).fetchone()[0])
        toll.repeated = len(self._marks()) - (len(toll.trials) - toll.quarantined)
        return toll

    def _marks(self) -> list[str]:
        """When each evaluation began, by two clocks, and of what; by the evaluator's own account."""
        return self._witness.read_text(encoding="utf-8").splitlines() if self._witness.exists() else []

    def _live(self, *, is_killed: bool) -> bool:
        """One process; whether it was killed."""
        self._lives += 1
        log = self._folder / f"{self._lives}.jsonl"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVOTUNE_", "OPENAI_", "ANTHROPIC_"))}
        environment = {**kept, "WITNESS": str(self._witness), "DELAY_S": str(self._delay_s)}
        marks = len(self._marks())
        start = time.monotonic()
        with log.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                self._command, cwd=ROOT, env=environment, stderr=stderr, stdout=subprocess.DEVNULL
            )
        try:
            killed = is_killed and self._kill(process, log)
            code = process.wait(LIFE_S)
        finally:
            process.kill()
            process.wait()
        assert killed or code == 0, log.read_text(encoding="utf-8")[-2000:]
        self._hear(log)
        if self._lives > 1 and (new := self._marks()[marks:]):
            at_s, cpu_s = map(float, new[0].split()[:2])
            self.toll.resume_s.append(at_s - start)
            self.toll.resume_cpu_s.append(cpu_s)
        return killed

    def _kill(self, process: subprocess.Popen[bytes], log: Path) -> bool:
        """Strike at a random moment; whether the process still ran."""
        if self._rng.random() < ANY_MOMENT:
            time.sleep(self._rng.uniform(0, 2.0))
        else:
            while '"trial"' not in log.read_text(encoding="utf-8") and process.poll() is None:
                time.sleep(0.005)
            time.sleep(self._rng.uniform(0, 8 * self._delay_s))
        if process.poll() is not None:
            return False
        # Stopped, it starts nothing more while its children are counted.
        process.send_signal(signal.SIGSTOP)
        children = descendants(process.pid)
        process.kill()
        process.wait()
        self.toll.kills["working" if '"trial"' in log.read_text(encoding="utf-8") else "starting"] += 1
        self.toll.left += survivors(children)
        return True

    def _hear(self, log: Path) -> None:
        """Take in what a process has told; a line that its death cut off was told to nobody."""
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            event = json.loads(line)
            if event["event"] == "trial":
                number = event["number"] - 1
                if number in self._told:
                    self.toll.lost.append(f"trial {number} was acknowledged and evaluated again")
                self._told[number] = (event["config"], event["latency_ms"])
                if event["best_ms"] is not None:
                    self.toll.best_ms.append(event["best_ms"])

    def _compare(self) -> None:
        """Look for everything that was told in a copy: opening the journal itself would already mend it."""
        if not self._journal.exists():
            assert not self._told
            return
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in self._folder.glob("j.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        found = read_trials(copy / "j.db")
        for number, told in self._told.items():
            if found.get(number) != told:
                self.toll.lost.append(f"trial {number}: told {told}, found {found.get(number)}")


def read_trials(journal: Path) -> Trials:
    """Trials with an outcome and their latency at the highest fidelity of the search, without evotune's help."""
    with closing(sqlite3.connect(journal)) as db:
        if not db.execute("SELECT name FROM sqlite_master WHERE name='trial'").fetchall():
            return {}
        out: Trials = {}
        for number, config in db.execute("SELECT number, config FROM trial WHERE done_order IS NOT NULL"):
            query = "SELECT samples_ms FROM measurement WHERE trial=? AND rank<4 ORDER BY rank DESC"
            samples = json.loads(db.execute(query, (number,)).fetchone()[0])
            out[number] = (json.loads(config), statistics.median(samples) if samples else None)
        return out


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return found + [deeper for child in found for deeper in descendants(child)]


def survivors(pids: list[int], patience_s: float = 5.0) -> list[int]:
    """Those that still run when patience ends."""
    end = time.monotonic() + patience_s
    while (left := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def open_to_all(folder: Path) -> None:
    """Let another user into one of pytest's folders, which are for their owner alone."""
    common = Path(tempfile.gettempdir())
    for one in (folder, *folder.parents):
        if common in one.parents:
            one.chmod(0o755)
