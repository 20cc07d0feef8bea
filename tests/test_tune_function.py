"""``evotune.tune``: three lines, and what they promise."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evotune
from evotune.errors import UsageError

SPACE = {"block": [16, 32, 64, 128, 256], "warps": [1, 2, 4, 8], "mode": ["a", "b"]}


def latency_ms(config: dict) -> float:
    return (
        1.0 + abs(math.log2(config["block"] / 64)) + abs(math.log2(config["warps"] / 4)) + (config["mode"] == "a")
    )


def test_three_lines_find_the_optimum_of_a_small_space() -> None:
    tuned = evotune.tune(latency_ms, SPACE, max_evaluations=40)
    assert tuned.config == {"block": 64, "warps": 4, "mode": "b"}
    assert tuned.latency_ms == pytest.approx(1.0)
    assert len({tuple(c.values()) for c, _ in tuned.history}) == len(tuned.history) <= 40


def test_half_of_the_space_suffices() -> None:
    assert evotune.tune(latency_ms, SPACE, max_evaluations=20).latency_ms == pytest.approx(1.0)


def test_what_fails_never_wins_and_everybody_hears_of_it() -> None:
    heard = []

    def broken(config: dict) -> float | None:
        if config["block"] == 64:
            raise MemoryError("too large")
        return None if config["mode"] == "b" else math.nan if config["warps"] == 1 else latency_ms(config)

    tuned = evotune.tune(broken, SPACE, max_evaluations=30, on_evaluation=lambda *heard_: heard.append(heard_))
    assert tuned.config["mode"] == "a"
    assert tuned.config["block"] != 64
    assert [n for n, _, _ in heard] == list(range(len(tuned.history)))
    assert [(c, ms) for _, c, ms in heard] == list(tuned.history)
    assert None in {ms for _, ms in tuned.history}


def test_a_latency_that_is_none_says_so() -> None:
    with pytest.raises(RuntimeError, match="must be positive"):
        evotune.tune(lambda config: -1.0, SPACE, max_evaluations=4)
    with pytest.raises(UsageError, match="cannot be called"):
        evotune.tune(3.0, SPACE)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({1: [1, 2]}, "parameter name 1 is not a Python identifier"),
        ({"x": np.array([1, 2])}, "int64; use bool, int, float or str; .tolist()"),
        ({"x": [1.0, math.nan]}, "nan is not finite"),
    ],
)
def test_a_space_that_cannot_be_used_is_refused_in_words(space: dict, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        evotune.tune(lambda config: 1.0, space)


@pytest.mark.parametrize(
    ("returned", "message"),
    [(math.nan, "a latency of nan ms"), (np.ones(2), "returned a ndarray; give one number"), ("fast", "a str")],
)
def test_what_is_no_latency_is_named(returned: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        evotune.tune(lambda config: returned, {"x": [1, 2]})


def test_the_same_call_resumes_from_a_journal(tmp_path: Path) -> None:
    calls = []

    def counted(config: dict) -> float:
        calls.append(config)
        return latency_ms(config)

    first = evotune.tune(counted, SPACE, max_evaluations=10, journal=tmp_path / "j.db")
    again = evotune.tune(counted, SPACE, max_evaluations=15, journal=tmp_path / "j.db")
    assert len(calls) == 15
    assert again.history[:10] == first.history


def test_a_data_frame_has_a_row_for_each_evaluation() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    tuned = evotune.tune(latency_ms, SPACE, max_evaluations=5)
    frame = tuned.to_pandas()
    assert list(frame.columns) == ["block", "warps", "mode", "latency_ms"]
    assert frame["latency_ms"].min() == tuned.latency_ms


def test_importing_evotune_imports_neither_numpy_nor_rich() -> None:
    code = "import sys, evotune; assert not {'numpy', 'rich', 'pydantic'} & set(sys.modules); evotune.tune"
    subprocess.run([sys.executable, "-c", code], check=True)
