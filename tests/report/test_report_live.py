"""The page while a run goes on: served to this machine alone, with news of the run."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from evotune.errors import UsageError
from evotune.journal import Journal
from evotune.report.belief import Belief
from evotune.report.live import Live, server_of
from tests.report.histories import DESCRIPTION, HIGH, timed, trial


def add(run, number):
    """A trial that was begun and has ended."""
    made = trial(number, {"tile": number, "stages": number % 3}, timed(HIGH, 19.0 - number))
    run.begin(made)
    run.append(made)


@pytest.fixture
def run(tmp_path):
    with Journal(tmp_path / "j.db") as journal:
        found = journal.open_run("toy", "cafe", DESCRIPTION)
        add(found, 0)
        yield found


@contextmanager
def served(path):
    with server_of(Live(path, None), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def get(port, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_trial_that_ends_is_news(run):
    with served(run.journal.path) as port:
        before = json.loads(get(port, "/state.json")[1])
        assert (before["evaluations"], before["is_running"]) == (1, True)
        assert json.loads(get(port, "/state.json")[1]) == before
        add(run, 1)
        after = json.loads(get(port, "/state.json")[1])
        assert after["evaluations"] == 2
        assert after["revision"] != before["revision"]
        status, page = get(port, "/")
        assert status == 200
        assert f'data-revision="{after["revision"]}"' in page
        assert "state.json" in page


def test_the_end_of_a_run_is_news(run):
    live = Live(run.journal.path, None)
    before = live.state()
    run.release()
    after = live.state()
    assert (before["is_running"], after["is_running"]) == (True, False)
    assert before["revision"] != after["revision"]


def test_it_stays_with_the_run_that_was_the_latest_when_it_began(run):
    live = Live(run.journal.path, None)
    add(run.journal.open_run("other", "cafe", DESCRIPTION), 0)
    add(run, 1)
    assert live.state()["evaluations"] == 2


def test_learning_is_not_repeated_for_every_trial(run, monkeypatch):
    learned = []

    def learns(history, space):
        learned.append(len(history.trials))
        return Belief(1, 1, {}, [], [], None, True)

    monkeypatch.setattr("evotune.report.view.belief", learns)
    live = Live(run.journal.path, None)
    for number in range(1, 8):
        add(run, number)
    live.page()
    add(run, 8)
    live.page()
    add(run, 9)
    live.page()
    run.release()
    live.page()
    add(run, 10)
    live.page()
    assert learned == [8, 10, 11]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", ""])
def test_another_host_name_is_turned_down(run, host):
    with served(run.journal.path) as port:
        for path in ("/", "/state.json"):
            status, text = get(port, path, host)
            assert status == 403
            assert "toy" not in text


def test_there_is_nothing_else_to_be_had(run):
    with served(run.journal.path) as port:
        assert get(port, "/", f"localhost:{port}")[0] == 200
        assert [get(port, path)[0] for path in ("/j.db", "/../j.db", "/?x=1")] == [404, 404, 404]


def test_a_journal_that_goes_away_is_said_and_not_fatal(run, tmp_path):
    path = run.journal.path
    with served(path) as port:
        path.rename(tmp_path / "elsewhere.db")
        status, text = get(port, "/state.json")
        assert status == 503
        assert "no journal" in text
        (tmp_path / "elsewhere.db").rename(path)
        assert get(port, "/state.json")[0] == 200


def test_a_taken_port_is_wrong_use(run):
    live = Live(run.journal.path, None)
    with (
        server_of(live, 0) as server,
        pytest.raises(UsageError, match="is taken by another program; give another --port"),
    ):
        server_of(live, server.server_port)


@pytest.mark.slow
def test_ctrl_c_ends_it_and_not_the_run(run):
    command = [sys.executable, "-m", "evotune", "report", "--watch", "--journal", str(run.journal.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[0]
        port = int(url.rstrip("/").rpartition(":")[2])
        assert get(port, "/state.json")[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "not served any more; the run is not touched\n"
    assert Live(run.journal.path, None).state()["is_running"]


@pytest.mark.slow
def test_the_command_writes_the_latest_run_beside_you_and_says_where(run, tmp_path):
    command = [sys.executable, "-m", "evotune", "report", "--journal", str(run.journal.path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"run {run.id}: report.html\n", "")
    assert run.id in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "nowhere/x.html"], "no folder"),
        (["--watch", "--out", "x.html"], "--watch writes no file"),
        (["--port", "80"], "--port is for --watch"),
        (["r-nothing"], "no journal at"),
    ],
)
def test_wrong_use_is_said_and_exits_with_2(tmp_path, arguments, said):
    command = [sys.executable, "-m", "evotune", "report", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
