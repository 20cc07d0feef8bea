"""Start a process in a session of its own, and end it with all that it started."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evotune.errors import DeviceError

REAP_TIMEOUT_S = 10.0  # SIGKILL acts at once unless the kernel itself is stuck in a driver
POLL_S = 0.05  # how late a death is noticed while a grandchild holds the pipe open

# fmt: off
_ALLOWED = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "OMP_NUM_THREADS",
))
# fmt: on
_ALLOWED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "TRITON_", "TORCH", "HELION_", "ZIG_", "CCACHE_")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL")


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child may know of this process's environment: an allow-list, plus ``extra``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if (name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)) and not is_secret(name)
    }
    return {**kept, **(extra or {})}


def is_secret(name: str) -> bool:
    """Whether a variable of the environment is called like one that holds a key or a password."""
    return any(part in name.upper() for part in _SECRET)


@dataclass(frozen=True)
class Finished:
    """How a command ended; ``returncode`` is None if it was killed, by its deadline or by ``stop``."""

    returncode: int | None
    output: str
    seconds: float


def run_killable(
    argv: Sequence[str],
    timeout_s: float,
    *,
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    max_output_bytes: int = 1 << 16,
) -> Finished:
    """Run a command to its end or kill it, and all that it started, at its deadline.

    May be called from several threads at once. Keeps the first ``max_output_bytes`` of stdout and
    stderr together: of a compiler's messages, the first matter.

    Args:
        argv: The command, without a shell.
        timeout_s: Wall time after which it is killed.
        environment: Added to what :func:`child_environment` lets through.
        stop: Kill it early when this is set.
        max_output_bytes: Output beyond this is read and dropped.
    """
    # A limit on CPU time ends it also when this process is killed and cannot keep the deadline.
    limited = f'ulimit -c 0; ulimit -t {int(timeout_s) + 2}; exec "$@"'
    started = time.monotonic()
    process = subprocess.Popen(
        ["/bin/sh", "-c", limited, "sh", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(environment),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        output, exited = _watch(process, started + timeout_s, stop, max_output_bytes)
    finally:
        kill_group(process)
        process.stdout.close()
    seconds = time.monotonic() - started
    return Finished(process.returncode if exited else None, output.decode(errors="replace"), seconds)


def _watch(
    process: subprocess.Popen[bytes], deadline: float, stop: threading.Event | None, max_bytes: int
) -> tuple[bytes, bool]:
    """Output so far, and whether the command came to its end."""
    assert process.stdout is not None
    pipe, output, is_open = process.stdout.fileno(), b"", True
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and not (stop and stop.is_set()):
            if is_open and selector.select(min(left, POLL_S)):
                chunk = os.read(pipe, 1 << 16)
                output = (output + chunk)[:max_bytes]
                is_open = bool(chunk)
            elif exit_info(process.pid):  # perhaps although a grandchild still holds the pipe
                return output, True
            elif not is_open:
                time.sleep(1e-3)  # between closing its output and ending
    return output, False


def exit_info(pid: int) -> Any:
    """How a child ended, or None while it runs. It is not reaped, so its number stays taken."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child's group, then reap the child: once reaped, its number may name another group.

    Raises:
        DeviceError: It does not die.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(REAP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"process {process.pid} survives SIGKILL, stuck inside the kernel; the device or its driver hangs"
        ) from None
