"""Memory and time over many evaluations; `benchmarks/reliability.py long` and `million` go further."""

from __future__ import annotations

from pathlib import Path

import pytest

from evotune import history
from evotune.journal import Journal
from tests.reliability.growth import fill, long_run


@pytest.mark.slow
def test_memory_does_not_grow_with_the_evaluations(tmp_path: Path) -> None:
    course = long_run(tmp_path / "j.db", "recordings/conv_A100", 600, "random")
    assert len(course.rss_bytes) == 600
    # Trials are kept, some KiB each; nothing else may be. The whole promise is a fifth in 4,500 evaluations.
    assert course.growth(after=300) < 0.1


def test_of_a_large_journal_only_the_run_that_is_wanted_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, before, last = fill(tmp_path / "j.db", runs=20, trials=50)
    fetched: list[int] = []
    read = Journal.read

    def counting(self: Journal, statement: str, *values: object) -> list[tuple[object, ...]]:
        rows = read(self, statement, *values)
        fetched.append(len(rows))
        return rows

    monkeypatch.setattr(Journal, "read", counting)
    assert len(history.load(tmp_path / "j.db", before).trials) == 50
    assert sum(fetched) < 8 * 50, "rows of other runs were read"
    fetched.clear()
    with Journal(tmp_path / "j.db") as journal:
        run = journal.open_run("toy", "hash", {"seed": 19, "target": "cpu"})
        assert run.id == last
        assert len(list(run)) == 50
    assert sum(fetched) < 4 * 50, "rows of other runs were read"
