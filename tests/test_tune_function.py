"""``evotune.tune``: three lines, and what they promise."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evotune
from evotune import history, showing
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

    first = evotune.tune(counted, SPACE, max_evaluations=10, finals=0, journal=tmp_path / "j.db")
    for _ in range(2):
        again = evotune.tune(counted, SPACE, max_evaluations=15, finals=0, journal=tmp_path / "j.db")
        assert len(calls) == 15
        assert again.history[:10] == first.history


def noisy(seed: int, times: Callable[[dict], float] = lambda config: 1.0) -> Callable[[dict], float]:
    """A function whose calls scatter by 5 %."""
    rng = np.random.default_rng(seed)
    return lambda config: times(config) * math.exp(0.05 * rng.standard_normal())


def test_noise_is_not_taken_for_speed() -> None:
    for seed in range(4):
        tuned = evotune.tune(noisy(seed), SPACE, max_evaluations=20, seed=seed)
        assert min(ms for _, ms in tuned.history) < 0.95
        assert tuned.latency_ms == pytest.approx(1.0, abs=0.06)  # six calls, each good to 0.05
        assert tuned.ci95_ms[0] <= 1.0 <= tuned.ci95_ms[1]
        assert tuned.speedup_ci95[0] <= 1.0 <= tuned.speedup_ci95[1]


def test_a_real_gain_is_found_in_noise() -> None:
    tuned = evotune.tune(noisy(0, latency_ms), SPACE, max_evaluations=30)
    default_ms = latency_ms(tuned.history[0][0])
    assert tuned.config == {"block": 64, "warps": 4, "mode": "b"}
    assert tuned.speedup_ci95[0] > 1.0
    assert tuned.speedup == pytest.approx(default_ms, rel=0.1)


def test_finals_are_on_top_and_alternate() -> None:
    calls: list[dict] = []

    def counted(config: dict) -> float:
        calls.append(config)
        return latency_ms(config)

    tuned = evotune.tune(counted, SPACE, max_evaluations=15, finals=6)
    finals, default = calls[15:], tuned.history[0][0]
    assert len(tuned.history) == 15
    assert len(finals) == 6 * 6
    for first, second in ((finals[:4], finals[4:8]), (finals[8:12], finals[12:16]), (finals[16:20], finals[20:24])):
        assert first == second[::-1]
        assert default in first
    assert finals[24:28] == [tuned.config, default, default, tuned.config]


def test_without_finals_nothing_is_called_again_and_no_interval_is_claimed(tmp_path: Path) -> None:
    calls: list[dict] = []
    path = tmp_path / "j.db"
    tuned = evotune.tune(
        lambda config: calls.append(config) or latency_ms(config), SPACE, max_evaluations=15, finals=0, journal=path
    )
    run = history.load(path)
    said = " ".join(showing.run_text(run, path).split())
    assert "interval" not in said
    assert "speed-up" not in said
    assert "chosen and judged by the same timings" in said
    assert "standard error" not in showing.trial_text(run, run.best_trial)
    assert len(calls) == 15
    assert (tuned.ci95_ms, tuned.speedup, tuned.speedup_ci95) == (None, None, None)
    assert tuned.latency_ms == min(ms for _, ms in tuned.history)


def test_a_finished_search_is_not_held_again(tmp_path: Path) -> None:
    once = noisy(0)
    first = evotune.tune(once, SPACE, max_evaluations=10, journal=tmp_path / "j.db", key="noisy")
    again = evotune.tune(
        lambda config: pytest.fail("it was called"),
        SPACE,
        max_evaluations=10,
        journal=tmp_path / "j.db",
        key="noisy",
    )
    assert again == first
    more = evotune.tune(once, SPACE, max_evaluations=14, journal=tmp_path / "j.db", key="noisy")
    assert more.history[:10] == first.history
    assert len(more.history) == 14


@pytest.mark.parametrize("finals", [0, 6])
def test_a_latency_comes_back_as_it_was_given(finals: int) -> None:
    assert 1.0 / (1.0 / 49.0) != 49.0
    tuned = evotune.tune(lambda config: 49.0, {"x": [1, 2]}, finals=finals)
    assert tuned.latency_ms == 49.0
    assert [ms for _, ms in tuned.history] == [49.0, 49.0]


def test_the_search_ends_with_its_time() -> None:
    def slow(config: dict) -> float:
        time.sleep(0.02)
        return latency_ms(config)

    assert 1 <= len(evotune.tune(slow, SPACE, max_seconds=0.05, finals=0).history) < 8
    with pytest.raises(RuntimeError, match="no valid configuration in 0 evaluations"):
        evotune.tune(slow, SPACE, max_seconds=1e-9)


def test_it_learns_from_another_function(tmp_path: Path) -> None:
    def scaled(by: float) -> Callable[[dict], float]:
        return lambda config: by * latency_ms(config)

    evotune.tune(scaled(1.0), SPACE, max_evaluations=25, finals=0, journal=tmp_path / "j.db")
    warm = evotune.tune(scaled(3.0), SPACE, max_evaluations=3, warm_start=tmp_path / "j.db")
    assert warm.config == {"block": 64, "warps": 4, "mode": "b"}


def test_ctrl_c_ends_it_and_the_same_call_goes_on(tmp_path: Path) -> None:
    calls: list[dict] = []

    def stopped(config: dict) -> float:
        calls.append(config)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return latency_ms(config)

    with pytest.raises(KeyboardInterrupt):
        evotune.tune(stopped, SPACE, max_evaluations=10, finals=0, journal=tmp_path / "j.db")
    tuned = evotune.tune(stopped, SPACE, max_evaluations=10, finals=0, journal=tmp_path / "j.db")
    assert calls[5] == calls[6]
    assert tuned.history == [(config, latency_ms(config)) for config in calls[:5] + calls[6:]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"finals": -1},
        {"finals": 1.5},
        {"finals": 5},
        {"constraints": [5]},
        {"constraints": None},
        {"key": 3, "journal": "j.db"},
        {"max_evaluations": 0},
        {"max_seconds": -1.0},
        {"seed": -1},
        {"max_usd": 0.0},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", ".")):
        evotune.tune(latency_ms, SPACE, **wrong)


def test_a_data_frame_has_a_row_for_each_evaluation() -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    tuned = evotune.tune(latency_ms, SPACE, max_evaluations=5)
    frame = tuned.to_pandas()
    assert list(frame.columns) == ["block", "warps", "mode", "latency_ms"]
    assert frame["latency_ms"].min() == tuned.latency_ms


def test_importing_evotune_imports_neither_numpy_nor_rich() -> None:
    code = "import sys, evotune; assert not {'numpy', 'rich', 'pydantic'} & set(sys.modules); evotune.tune"
    subprocess.run([sys.executable, "-c", code], check=True)
