from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evotune.errors import DeviceError
from evotune.process import Worker, child_environment, run_killable

FAULTS = {
    "ok": ("value", ""),
    "raise": ("error", "bad config"),
    "unprintable": ("error", "Unprintable"),
    "segv": ("crash", "SIGSEGV"),
    "exit0": ("crash", "exited with status 0"),
    "sysexit": ("crash", "exited with status 3"),
    "sigkill": ("crash", "SIGKILL"),
    "abort": ("crash", "SIGABRT"),
    "hang": ("timeout", "no reply within 0.4 s"),
    "hang_gil": ("timeout", "no reply within 0.4 s"),
    "sigstop": ("timeout", "no reply within 0.4 s"),
    "partial_then_hang": ("timeout", "no reply within 0.4 s"),
    "garbage": ("protocol", "4294967295 bytes"),
    "not_json": ("protocol", "not JSON"),
    "reply_twice": ("protocol", "more than one reply"),
    "stale_id": ("protocol", "not asked"),
    "close_channel": ("crash", "closed its channel"),
    "grandchild_keeps_pipe": ("crash", "exited with status 1"),
    "not_serialisable": ("error", "JSON serializable"),
    "not_a_number": ("error", "JSON compliant"),
    "huge": ("error", "over the limit"),
    "fork": ("value", ""),
    "drip": ("timeout", "no reply within 0.4 s"),
    "pickle": ("protocol", "not JSON"),
    "grow": ("crash", "took more than 256 MiB of memory"),
    "stdout_spam": ("value", ""),
}


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "cpu"))
        yield


@pytest.fixture(scope="module")
def left_by_a_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickle") / "was loaded"


@pytest.fixture(scope="module")
def worker(left_by_a_pickle: Path) -> Iterator[Worker]:
    environment = {"EVOTUNE_TEST_FILE": str(left_by_a_pickle)}
    with Worker("faulty_worker:entry", max_resident_bytes=256 << 20, environment=environment) as shared:
        yield shared


def processes_in_group(group: int | None) -> list[str]:
    """Living processes of a group, from /proc; zombies that nobody reaps here do not count."""
    found: list[str] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[2] == str(group) and fields[0] not in "ZX":
            found.append(stat.parent.name)
    return found


def is_gone(pid: str) -> bool:
    """Dead, even if nobody has reaped it yet: a zombie has no command line."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def eventually(condition: object, timeout_s: float = 5.0) -> bool:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_and_the_next_request_succeeds(
    worker: Worker, fault: str, left_by_a_pickle: Path
) -> None:
    assert worker.call("ok", 10).value == 1.25
    group = worker.pid
    reply = worker.call(fault, 0.4 if FAULTS[fault][0] == "timeout" else 10)
    kind, message = FAULTS[fault]
    assert (reply.kind, message in reply.message) == (kind, True), reply
    assert reply.killed == (worker.pid is None)
    if reply.killed:
        assert eventually(lambda: not processes_in_group(group))
    assert worker.call("ok", 10).value == 1.25
    assert not left_by_a_pickle.exists()


def test_an_unanswered_request_costs_its_deadline_and_little_more(worker: Worker) -> None:
    worker.call("ok", 10)
    started = time.monotonic()
    assert worker.call("hang", 0.2).kind == "timeout"
    assert time.monotonic() - started < 5  # not the 60 s of the sleep


def test_a_child_survives_what_it_reports_itself(worker: Worker) -> None:
    worker.call("ok", 10)
    pid = worker.pid
    assert worker.call("raise", 10).error == "ValueError"
    assert worker.call("ok", 10).ok
    assert worker.pid == pid


def test_stray_bytes_after_a_reply_never_answer_the_next_request(worker: Worker) -> None:
    worker.call({"do": "spam_later"}, 10)
    pid = worker.pid
    time.sleep(0.3)
    assert worker.call({"do": "echo", "x": 1}, 10).value == {"do": "echo", "x": 1}
    assert worker.pid != pid


def test_a_child_that_died_while_idle_is_replaced(worker: Worker) -> None:
    worker.call("ok", 10)
    group = worker.pid
    assert group
    os.kill(group, signal.SIGKILL)
    assert eventually(lambda: not processes_in_group(group))
    assert worker.call("ok", 10).value == 1.25


def test_the_end_of_what_a_dying_child_wrote_is_in_the_message() -> None:
    with Worker("faulty_worker:entry") as worker:
        worker.call("stdout_spam", 10)
        reply = worker.call("exit0", 10)
    assert reply.message.startswith("exited with status 0; it wrote: xxx")
    assert len(reply.message) < 400


def test_keys_and_tokens_never_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "CUDA_ACCESS_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"]
    for name in secrets:
        monkeypatch.setenv(name, "canary-7f3a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with Worker("faulty_worker:entry", environment={"OMP_NUM_THREADS": "1"}) as worker:
        seen = worker.call({"do": "environment"}, 10).value
    assert "canary-7f3a" not in str(seen)
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("1", "1")
    assert "canary-7f3a" not in run_killable(["env"], 10).output
    assert set(child_environment()).isdisjoint(secrets)


@pytest.mark.parametrize(("setup", "said"), [("refuse", "refused"), ("hang", "no reply"), ("die", "status 7")])
def test_a_worker_that_cannot_be_set_up_is_a_fault_of_the_machine(setup: str, said: str) -> None:
    worker = Worker("faulty_worker:entry", setup, setup_timeout_s=1.0)
    with pytest.raises(DeviceError, match=said):
        worker.call("ok", 10)
    assert worker.pid is None


def test_an_oversized_request_is_refused_before_it_is_sent(worker: Worker) -> None:
    worker.call("ok", 10)
    with pytest.raises(ValueError, match="over the limit"):
        worker.call("x" * (2 << 20), 10)
    assert worker.call("ok", 10).ok


def test_ctrl_c_during_a_request_leaves_no_child_and_no_stale_reply(worker: Worker) -> None:
    worker.call("ok", 10)
    group = worker.pid
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.call("hang", 30)
    assert eventually(lambda: not processes_in_group(group))
    assert worker.call("ok", 10).value == 1.25


def test_a_worker_outlives_the_thread_that_started_it() -> None:
    """PR_SET_PDEATHSIG counts the creating thread as the parent, not its process."""
    with Worker("faulty_worker:entry") as worker:
        thread = threading.Thread(target=lambda: worker.call("ok", 10))
        thread.start()
        thread.join()
        pid = worker.pid
        time.sleep(0.2)
        assert worker.call("ok", 10).ok
        assert worker.pid == pid


@pytest.mark.parametrize("request_", ["'ok'", "'hang_gil'"])
def test_a_worker_dies_with_its_parent_however_it_is_killed(request_: str) -> None:
    script = f"""
        import sys, threading
        sys.path.insert(0, {str(Path(__file__).parent / "cpu")!r})
        from evotune.process import Worker
        worker = Worker("faulty_worker:entry")
        worker.call("ok", 10)
        print(worker.pid, flush=True)
        worker.call({request_}, 60)
        threading.Event().wait()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert processes_in_group(group)
        parent.kill()
    assert eventually(lambda: not processes_in_group(group))


def test_a_finished_command_gives_its_status_and_the_start_of_its_output() -> None:
    done = run_killable(["sh", "-c", "echo first; echo second >&2; exit 3"], 10)
    assert (done.returncode, done.output) == (3, "first\nsecond\n")
    flood = run_killable(["sh", "-c", "echo first; head -c 1000000 /dev/zero"], 10, max_output_bytes=100)
    assert (flood.returncode, len(flood.output), flood.output[:5]) == (0, 100, "first")
    assert run_killable(["/no/such/compiler"], 10).returncode == 127


def test_a_command_that_passes_its_deadline_leaves_no_grandchild(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    done = run_killable(["sh", "-c", f"sleep 60 & echo $! >{pids}; sleep 60"], 0.3)
    assert done.returncode is None
    assert eventually(lambda: is_gone(pids.read_text().strip()))


def test_a_command_ends_although_a_grandchild_holds_its_output(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    done = run_killable(["sh", "-c", f"sleep 60 & echo $! >{pids}; exit 5"], 30)
    assert done.returncode == 5
    assert done.seconds < 10
    assert eventually(lambda: is_gone(pids.read_text().strip()))


def test_commands_in_several_threads_stop_when_told() -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(run_killable, ["sleep", "60"], 60, stop=stop) for _ in range(3)]
        time.sleep(0.1)
        stop.set()
        assert [r.result().returncode for r in running] == [None] * 3
        assert all(r.result().seconds < 30 for r in running)  # not the 60 s of the deadline
