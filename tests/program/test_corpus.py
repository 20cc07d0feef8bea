"""What hostile, broken and good programs can do to the process that asks."""

from __future__ import annotations

import builtins
import locale
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evotune.errors import Rejected
from evotune.program import Sandbox
from evotune.space import ConfigSpace
from tests.program import corpus

SPACE = ConfigSpace.from_dict(corpus.SPACE, corpus.CONSTRAINTS)
REPOSITORY = Path(__file__).parents[2]
SECRET = "planted-8c1f4e"
# What nothing ends runs forever, and Monty alone would let a program sleep for 10 s. That all take a second at most
# is measured where nobody else is: `benchmarks/reliability.py corpus`.
MOST_SECONDS = 8.0


@dataclass
class Surroundings:
    """Everything that a program could touch, and what has happened to it."""

    folder: Path
    server: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    datagrams: socket.socket = field(default_factory=lambda: socket.socket(type=socket.SOCK_DGRAM))

    def __post_init__(self) -> None:
        self.server.setblocking(False)
        self.datagrams.setblocking(False)
        self.datagrams.bind(self.server.getsockname())
        self.secret.write_text(SECRET)
        self.before = host_state()

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def secret(self) -> Path:
        return self.folder / "secret"

    def place(self, program: str) -> str:
        values = {"canary": self.canary, "secret": self.secret, "port": self.server.getsockname()[1]}
        for name, value in values.items():
            program = program.replace("{" + name + "}", str(value))
        return program

    def effects(self) -> list[str]:
        found = [f"{p.name} exists" for p in self.folder.iterdir() if p != self.secret]
        if not self.secret.exists() or self.secret.read_text() != SECRET:
            found.append("secret changed")
        try:
            self.server.accept()[0].close()
            found.append("port called")
        except BlockingIOError:
            pass
        try:
            self.datagrams.recv(1)
            found.append("datagram sent")
        except BlockingIOError:
            pass
        found += [f"{name} changed" for name, value in host_state().items() if value != self.before[name]]
        return found


def host_state() -> dict[str, object]:
    """What belongs to this process and a program could have changed if it ran in it."""
    os.umask(mask := os.umask(0o77))
    limits = [
        resource.getrlimit(what) for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU)
    ]
    return {
        "folder": Path.cwd(),
        "environment": {n: v for n, v in os.environ.items() if n != "PYTEST_CURRENT_TEST"},
        "umask": mask,
        "limits": limits,
        "affinity": os.sched_getaffinity(0),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "path": list(sys.path),
        "random": random.getstate(),
        "locale": locale.setlocale(locale.LC_ALL),
        "modules": {name: id(sys.modules.get(name)) for name in ("math", "os", "builtins", "socket")},
        "builtins": (builtins.open, builtins.print, builtins.__import__),
    }


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    monkeypatch.setenv("EVOTUNE_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    there = Surroundings(tmp_path)
    yield there
    there.server.close()
    there.datagrams.close()


def children() -> set[int]:
    """Processes that this one started and that still run."""
    me = str(os.getpid())
    return {int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _parent_of(p) == me}


def _parent_of(stat: Path) -> str:
    try:
        state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return ""
    return "" if state == "Z" else parent


def outcome(sandbox: Sandbox, program: str) -> dict[str, object] | Rejected:
    start = time.monotonic()
    try:
        return dict(sandbox.run(program, SPACE))
    except Rejected as error:
        return error
    finally:
        assert time.monotonic() - start < MOST_SECONDS, program[:200]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as box:
        box.protection()
        yield box


def test_the_corpus_is_large_and_nothing_in_it_is_there_twice() -> None:
    hostile = [program for programs in corpus.HOSTILE.values() for program in programs]
    assert len(set(hostile)) == len(hostile) >= 220
    assert len(corpus.HOSTILE) >= 15
    assert len(set(corpus.LEGITIMATE)) == len(corpus.LEGITIMATE) >= 44


@pytest.mark.parametrize("category", corpus.HOSTILE)
def test_a_hostile_program_is_rejected_and_touches_nothing(
    category: str, sandbox: Sandbox, surroundings: Surroundings, capfd: pytest.CaptureFixture[str]
) -> None:
    for program in corpus.HOSTILE[category]:
        text = surroundings.place(program)
        result = outcome(sandbox, text)
        assert isinstance(result, Rejected), f"accepted {text[:300]!r} as {result}"
        assert result.stage in ("parse", "validate")
        assert result.stage == "validate" or len(result.reason) <= 300
        assert len(result.reason) <= 2000
        assert result.reason.isascii()
        assert result.reason.isprintable()
        assert SECRET not in result.reason
        assert surroundings.effects() == [], text[:300]
    assert capfd.readouterr() == ("", "")


def test_a_program_that_hides_its_failure_has_still_done_nothing(
    sandbox: Sandbox, surroundings: Surroundings
) -> None:
    for program in corpus.SWALLOWING:
        result = outcome(sandbox, surroundings.place(program))
        assert isinstance(result, Rejected) or result == corpus.LEGAL
        assert surroundings.effects() == [], program


@pytest.mark.parametrize("program", corpus.LEGITIMATE)
def test_a_fair_program_gives_its_configuration(program: str, sandbox: Sandbox) -> None:
    config = sandbox.run(program, SPACE)
    assert config == corpus.LEGAL
    assert [type(v) for v in config.values()] == [type(v) for v in corpus.LEGAL.values()]


def test_no_process_is_left_behind(sandbox: Sandbox, surroundings: Surroundings) -> None:
    sandbox.close()
    before = children()
    with Sandbox() as box:
        for program in corpus.HOSTILE["time"] + corpus.HOSTILE["processes"]:
            outcome(box, surroundings.place(program))
        box.protection()
        assert len(children() - before) <= 1, "besides the prepared worker nothing may be running"
    end = time.monotonic() + 5  # a killed process needs a moment
    while children() - before and time.monotonic() < end:
        time.sleep(0.02)
    assert children() - before == set()


def test_each_program_has_a_process_of_its_own(sandbox: Sandbox) -> None:
    sandbox.close()
    before = children()
    with Sandbox() as box:
        seen: list[int] = []
        for _ in range(3):
            box.run(corpus.LEGITIMATE[1], SPACE)
            box.protection()  # waits until the next worker is there
            seen += children() - before
    assert len(seen) == len(set(seen)) == 3


# A process of its own: the high-water mark of children is one number for all that ever were.
MEASURE = """
import resource
from evotune.errors import Rejected
from evotune.program import Sandbox
from tests.program.test_corpus import SPACE, corpus
def peak(who):
    return resource.getrusage(who).ru_maxrss
with Sandbox() as box:
    box.protection()
    before = peak(resource.RUSAGE_SELF)
    for category in ("memory", "odd results", "parser", "output", "recursion"):
        for program in corpus.HOSTILE[category]:
            try:
                box.run(program, SPACE)
            except Rejected:
                pass
    grown = peak(resource.RUSAGE_SELF) - before
print(grown, peak(resource.RUSAGE_CHILDREN))
"""


def test_memory_stays_bounded_in_both_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    grown_kib, worker_kib = map(int, done.stdout.split())
    assert grown_kib < 32 << 10
    assert worker_kib < 150 << 10


# Harmless for the machine that runs the tests, and enough to show that the checker is not blind.
SEEN = {"files": [0, 2, 4, 13], "environment": [3, 8, 9], "processes": [0, 1, 15], "sockets": [0, 6]}
# With no sandbox around it, in a process whose state nobody misses.
BARE = """
from tests.program.test_corpus import host_state
before = host_state()
exec({program!r} + "\\nget_kernel_config()")
raise SystemExit(3 if host_state() != before else 0)
"""


@pytest.mark.parametrize(("category", "index"), [(c, i) for c, all_of in SEEN.items() for i in all_of])
def test_the_same_program_has_its_effect_without_a_sandbox(
    category: str, index: int, surroundings: Surroundings
) -> None:
    code = BARE.format(program=surroundings.place(corpus.HOSTILE[category][index]))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, cwd=REPOSITORY)
    assert surroundings.effects() or done.returncode == 3, done.stderr
