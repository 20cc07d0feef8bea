"""Damages a journal byte by byte, and tells what evotune makes of it."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evotune.errors import UsageError
from evotune.journal import Journal
from evotune.trial import Candidate, Fidelity, Measurement, Trial

# 24 bytes of header, then frames: SQLite's file format, section 4.1.
WAL_HEADER, FRAME_HEADER = 32, 24
TRIALS = 12


@dataclass(frozen=True)
class Journals:
    """A journal whose tail is still in its log, as after a kill, and the same at rest.

    ``trials`` are all that was acknowledged; ``page`` is the size of a page in bytes.
    """

    killed: Path
    rested: Path
    trials: list[Trial]
    page: int


def make(folder: Path) -> Journals:
    """Journals of a few trials."""
    path = folder / "source" / "j.db"
    with Journal(path) as journal:
        run = journal.open_run("toy", "hash", {"seed": 0})
        trials = [_trial(n) for n in range(TRIALS)]
        for trial in trials:
            run.begin(Trial(trial.number, trial.candidate))
            run.append(trial)
        killed = _copy(path, folder / "killed")
        page = int(journal.read("PRAGMA page_size")[0][0])
    return Journals(killed, _copy(path, folder / "rested"), trials, page)


def _trial(number: int) -> Trial:
    candidate = Candidate({"tile": 16 << number % 4, "layout": "nt"}, "", "random")
    return Trial(
        number, candidate, (Measurement(Fidelity(3, "high", 50), "measured", (1.0 + number, 2.0 + number)),)
    )


def _copy(journal: Path, folder: Path) -> Path:
    """A journal as a kill would leave it; the shared index is rebuilt from the log."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in journal.parent.glob("j.db*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, folder)
    return folder / "j.db"


def verdict(journal: Path, trials: list[Trial]) -> str:
    """What a run finds: ``all``, ``fewer`` (the first few, unchanged), ``refused``, or ``WRONG``."""
    try:
        with Journal(journal) as opened:
            run = opened.open_run("toy", "hash", {"seed": 0})
            found = list(run)
            begun = [trial for trial, _ in run.interrupted()]
            rest = (*run.rejections(), *run.notes("any"), *run.calls(), *run.offers())
    except UsageError:
        return "refused"
    # At most the next trial may be there as an intent.
    intents = [Trial(t.number, t.candidate) for t in trials[len(found) :][: len(begun)]]
    if found != trials[: len(found)] or begun != intents or rest:
        return "WRONG"
    return "all" if found == trials else "fewer"


def damage(
    journal: Path, suffix: str, offsets: Iterable[int], change: Callable[[bytes, int], bytes], trials: list[Trial]
) -> Counter[str]:
    """Verdicts over damages of one file of a journal, each on a copy of its own."""
    out: Counter[str] = Counter()
    for offset in offsets:
        copy = _copy(journal, journal.parent.parent / "damaged")
        file = copy.with_name(copy.name + suffix)
        file.write_bytes(change(file.read_bytes(), offset))
        out[verdict(copy, trials)] += 1
    return out


def cut(content: bytes, offset: int) -> bytes:
    """Only what lies before."""
    return content[:offset]


def flip(content: bytes, offset: int) -> bytes:
    """One bit of another value."""
    return content[:offset] + bytes([content[offset] ^ 1 << offset % 8]) + content[offset + 1 :]


def zero_from(content: bytes, offset: int) -> bytes:
    """Zeros to the end, as a file system may leave what was not written in time."""
    return content[:offset] + bytes(len(content) - offset)


def survey(folder: Path, share: float, rng: random.Random) -> Iterator[tuple[str, Counter[str]]]:
    """Verdicts by kind of damage, at every byte of the last page or at a share of them."""
    journals = make(folder)

    def last(path: Path, size: int) -> list[int]:
        end = path.stat().st_size
        return sorted(o for o in range(max(0, end - size), end) if rng.random() < share)

    wal = Path(f"{journals.killed}-wal")
    frame = journals.page + FRAME_HEADER
    for name, change in (("cut", cut), ("zeros", zero_from), ("flip", flip)):
        yield f"log, {name}", damage(journals.killed, "-wal", last(wal, frame), change, journals.trials)
    # A checkpoint that was interrupted leaves a half-written page and the whole log behind.
    torn = _half_checkpointed(journals, folder)
    for name, change in (("cut", cut), ("zeros", zero_from), ("flip", flip)):
        found = damage(torn, "", last(torn, journals.page), change, journals.trials)
        yield f"file with its log, {name}", found
    for name, change in (("cut", cut), ("zeros", zero_from)):
        found = damage(journals.rested, "", last(journals.rested, journals.page), change, journals.trials)
        yield f"file alone, {name}", found


def _half_checkpointed(journals: Journals, folder: Path) -> Path:
    torn = _copy(journals.killed, folder / "torn")
    shutil.copy(journals.rested, torn)
    return torn
