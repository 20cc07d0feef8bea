"""What a supervisor makes of workers that fail in every way; test_process.py has the faults themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evotune.errors import DeviceError
from evotune.process import Worker
from evotune.supervisor import Subject, Supervisor
from evotune.trial import Fidelity

pytestmark = pytest.mark.slow  # it starts four processes for each fault
LOW = Fidelity(1, "low", 5)
OK = Subject("ok", "ok")
CLASSES = {
    "segv": "crash",
    "abort": "crash",
    "exit0": "crash",
    "sysexit": "crash",
    "sigkill": "crash",
    "close_channel": "crash",
    "grandchild_keeps_pipe": "crash",
    "grow": "crash",
    "garbage": "crash",
    "not_json": "crash",
    "pickle": "crash",
    "reply_twice": "crash",
    "stale_id": "crash",
    "wrong_shape": "crash",
    "too_few": "crash",
    "no_object": "crash",
    "hang": "timeout",
    "sigstop": "timeout",
    "drip": "timeout",
}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Worker]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "cpu"))
    environment = {"EVOTUNE_TEST_FILE": str(tmp_path / "was loaded")}
    with Worker("faulty_worker:measuring", max_resident_bytes=256 << 20, environment=environment) as worker:
        assert worker.start().ok
        yield worker


@pytest.mark.parametrize("fault", CLASSES)
def test_a_fault_is_classified_the_next_one_is_measured_and_two_kills_are_enough(
    worker: Worker, fault: str, tmp_path: Path
) -> None:
    supervisor, guilty = Supervisor([worker], 0.8 if CLASSES[fault] == "timeout" else 20.0), Subject(fault, fault)
    kills = 0
    while not (found := supervisor.measure(guilty, LOW)).reason or "quarantined" not in found.reason:
        assert (found.failed_stage, bool(found.reason)) == (CLASSES[fault], True)
        kills += 1
        assert kills <= 2
        assert supervisor.measure(OK, LOW).samples_ms == (1.25,)
    assert found.failed_stage == CLASSES[fault]
    starts = worker.starts
    assert "quarantined" in str(supervisor.measure(guilty, LOW).reason)
    assert worker.starts == starts
    assert not (tmp_path / "was loaded").exists()


@pytest.mark.parametrize("harmless", ["stdout_spam", "fork"])
def test_what_does_not_spoil_the_answer_is_measured(worker: Worker, harmless: str) -> None:
    assert Supervisor([worker], 20.0).measure(Subject(harmless, harmless), LOW).ok


def test_a_wrong_result_is_the_candidates_fault_and_costs_no_process(worker: Worker) -> None:
    supervisor = Supervisor([worker], 20.0)
    for _ in range(3):
        found = supervisor.measure(Subject("incorrect", "incorrect"), LOW)
        assert (found.failed_stage, found.reason) == ("incorrect", "3 of 4 values are wrong")
    assert worker.starts == 1


def test_an_error_of_the_worker_itself_is_the_machines_fault(worker: Worker) -> None:
    supervisor = Supervisor([worker], 20.0)
    with pytest.raises(DeviceError, match="bad config"):
        supervisor.measure(Subject("raise", "raise"), LOW)
    assert supervisor.measure(OK, LOW).ok
