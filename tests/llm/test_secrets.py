"""A planted key is searched for everywhere: files, both streams, prompts, and all child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evotune.llm.secret import Secret
from tests.test_cli import write_kernel

from .conftest import PLANTED_KEY
from .fake_server import GOOD, FakeServer, error

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler named cc")


class Watch(threading.Thread):
    """Reads the environments of all descendants of a process, for as long as it runs.

    Between fork and exec a child still shows its parent's, key and all. So one that looks like its
    parent is believed to be something of its own only once it has looked so for longer than that takes.
    """

    FORK_S = 1.0

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._alike: dict[int, float] = {}
        self.found: dict[int, bytes] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            family = {self._pid}
            for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda p: int(p.name)):
                try:
                    parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    if parent in family:
                        family.add(int(path.name))
                        self._look(int(path.name), parent)
                except (OSError, IndexError):
                    continue

    def _look(self, pid: int, parent: int) -> None:
        # The command line first: what it has become by then, its environment has, too.
        command, forked = (Path(f"/proc/{p}/cmdline").read_bytes() for p in (pid, parent))
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        since = self._alike.setdefault(pid, time.monotonic())
        if command != forked or time.monotonic() - since > self.FORK_S:
            self.found[pid] = environ


@needs_compiler
@pytest.mark.parametrize("source", ["environment", "key file"])
def test_a_planted_key_is_nowhere_but_in_the_requests(source: str, server: FakeServer, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    kernel = write_kernel(work / "twice.py")
    # A compiler that writes down what it was given, to be sure of the shortest-lived children, too.
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "cc"
    wrapper.write_text(f'#!/bin/sh\nenv >> {work}/compilers\nexec {shutil.which("cc")} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    echo = error(500, f"failed for Authorization: Bearer {PLANTED_KEY}")
    server.script = [GOOD, echo, echo]
    server.answer = '```python\ndef get_kernel_config():\n    return {"unroll": 4, "wide": True}\n```'
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("EVOTUNE_", "OPENAI", "ANTHROPIC"))}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OPENAI_API_KEY": PLANTED_KEY}
    if source == "key file":
        (tmp_path / "key").write_text(PLANTED_KEY, encoding="utf-8")
        (tmp_path / "key").chmod(0o600)
        environment |= {"EVOTUNE_LLM_KEY_FILE": str(tmp_path / "key")}
        del environment["OPENAI_API_KEY"]
    command = [sys.executable, "-m", "evotune", "run", str(kernel), "--provider", "openai", "--model", "m", "-v"]
    command += ["--base-url", f"{server.url}/v1", "--json", "--target", "cpu", "--journal", "j.db"]
    started = subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watch = Watch(started.pid)
    watch.start()
    out, err = started.communicate(timeout=120)
    watch.over.set()
    watch.join()
    assert started.returncode == 0, err
    assert f"Bearer {PLANTED_KEY}" in {v for r in server.requests for v in r.headers.values()}
    assert PLANTED_KEY not in out + err
    assert not any(PLANTED_KEY in str(r.body) or PLANTED_KEY in r.path for r in server.requests)
    files = [f for f in work.rglob("*") if f.is_file()]
    assert {"j.db", "compilers"} <= {f.name for f in files}
    assert not [f.name for f in files if PLANTED_KEY.encode() in f.read_bytes()]
    assert len(watch.found) >= 2, "no child was seen"
    assert not [pid for pid, environ in watch.found.items() if PLANTED_KEY.encode() in environ]


def test_a_key_in_an_exception_of_anyone_is_not_shown() -> None:
    shown = f"{Secret(PLANTED_KEY)!r} {Secret(PLANTED_KEY).redact(f'x {PLANTED_KEY} sk-abcdefghij Bearer abcdefg')}"
    assert shown == "Secret(***) x *** *** ***"
