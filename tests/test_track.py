"""Trackers hear of every evaluation, real ones too where they are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evotune.errors import UsageError
from evotune.track import Tracking, flat, open_tracker
from evotune.trial import Candidate, Fidelity, Measurement, Trial

MADE: list[Recorder] = []


class Recorder:
    def __init__(self) -> None:
        self.heard: list[Any] = []
        MADE.append(self)

    def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.heard.append(("begin", name, dict(parameters)))

    def log(self, number: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> None:
        self.heard.append(("log", number, dict(values), dict(labels)))

    def end(self, result: Mapping[str, Any]) -> None:
        self.heard.append(("end", dict(result)))


def test_nested_values_get_names_with_dots() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "e": [1]}


def test_an_unknown_tracker_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="mlflow"):
        open_tracker("mlfow")
    with pytest.raises(UsageError, match="cannot be imported"):
        open_tracker("no_such_module:make")


def test_a_tracker_of_ones_own_is_made() -> None:
    assert isinstance(open_tracker(f"{__name__}:Recorder"), Recorder)
    assert MADE


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(name: str) -> None:
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UsageError, match="pip install"):
        open_tracker(name)


class Failing(Recorder):
    def log(self, number: int, values: Mapping[str, float], labels: Mapping[str, Any]) -> None:
        raise ConnectionError("gone")


def test_a_tracker_that_fails_is_left_alone_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Failing()
    tracking = Tracking(tracker, "run", {"a": 1})
    measured = Measurement(Fidelity(1, "low", 1), "replayed", (1.0,))
    trial = Trial(0, Candidate({"a": 1}, "", "random"), (measured,))
    tuner = SimpleNamespace(incumbent=trial)
    for _ in range(2):
        tracking.on_trial(trial, tuner, is_best=True)
    tracking.end({})
    assert [h[0] for h in tracker.heard] == ["begin"]
    assert caplog.text.count("gone") == 1


def test_a_tracker_that_does_not_begin_ends_the_run_before_its_work() -> None:
    class Closed(Recorder):
        def begin(self, name: str, parameters: Mapping[str, Any]) -> None:
            raise PermissionError("no such project")

    with pytest.raises(UsageError, match="no such project"):
        Tracking(Closed(), "run", {})


@pytest.mark.slow
def test_a_run_tells_its_tracker_of_every_evaluation_and_of_its_result(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import json\n"
        "class Mine:\n"
        "    def begin(self, name, parameters): self.tell('begin', name, dict(parameters))\n"
        "    def log(self, number, values, labels): self.tell('log', number, dict(values), dict(labels))\n"
        "    def end(self, result): self.tell('end', dict(result))\n"
        "    def tell(self, *what): open('heard', 'a').write(json.dumps(what) + '\\n')\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "evotune", "run", "conv_A100", "--provider", "none", "--max-evaluations", "12"]
    done = subprocess.run(
        [*command, "--track", "mine:Mine", "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
    assert [h[0] for h in heard] == ["begin", *["log"] * 12, "end"]
    assert heard[0][2]["search"] == "evotune"
    assert min(h[2]["latency_ms"] for h in heard[1:-1] if "latency_ms" in h[2]) == heard[-2][2]["best_ms"]
    assert heard[-1][1]["evaluations"] == 12
