"""What stands between a model's program and this machine, each layer attacked here and now."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import resources

from evotune.doctor.row import Row, fail, ok, warn
from evotune.doctor.software import installed
from evotune.errors import DeviceError, Rejected
from evotune.program import Sandbox
from evotune.program.jail import LAYERS
from evotune.program.launcher import LANDLOCK_CREATE_RULESET, LANDLOCK_VERSION

NAMES = {"limits": "resource limits", "landlock": "Landlock", "seccomp": "seccomp"}
REINSTALL = "pip install --force-reinstall pydantic-monty==1.4.0"
FIX = "use Linux 5.13 or later, in a container that allows it; --isolation strict refuses to run without"
DEATH_S = 5.0  # a signal takes microseconds; a loaded machine takes its time

# The middle process starts the last, which asks to die with it, and dies as `kill -9` would have it.
_LAST = "{launcher}\nimport time\ndie_with_parent({parent})\nprint('ready', flush=True)\ntime.sleep(60)\n"
_MIDDLE = """
import os, subprocess, sys
text = sys.stdin.read().replace("{parent}", str(os.getpid()))
nothing = subprocess.DEVNULL
last = subprocess.Popen([sys.executable, "-ISE", "-c", text], stdin=nothing, stdout=subprocess.PIPE, stderr=nothing)
last.stdout.readline()
print(last.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def walls() -> list[Row]:
    """Monty and the layers of the jail."""
    monty = installed("pydantic-monty")
    if monty is None:
        missing = "not installed: of a model's answers only JSON is used"
        return [warn("Monty", missing, "pip install pydantic-monty==1.4.0")]
    with Sandbox() as sandbox:
        try:
            protection = sandbox.protection()
        except (Rejected, DeviceError) as error:
            return [fail("Monty", f"{monty} does not hold: {error}", REINSTALL)]
    rows = [ok("Monty", f"{monty} withstood loops, memory, recursion, files, environment and sockets")]
    for layer in LAYERS:
        abi = f", ABI {_landlock_abi()}" if layer == "landlock" else ""
        if layer in protection.proven:
            rows.append(ok(NAMES[layer], f"attacked and held{abi}"))
        else:
            rows.append(warn(NAMES[layer], protection.unproven[layer] + abi, FIX))
    return rows


def death_with_the_parent() -> list[Row]:
    """Whether a jailed process goes when evotune is killed."""
    name = "parent death"
    launcher = resources.files("evotune.program").joinpath("launcher.py").read_text(encoding="utf-8")
    text = _LAST.replace("{launcher}", launcher)
    done = subprocess.run(
        [sys.executable, "-ISE", "-c", _MIDDLE], input=text, capture_output=True, text=True, timeout=20, check=False
    )
    pid = int(done.stdout or 0)
    if not pid:
        return [warn(name, f"could not be tried: {done.stderr.strip()[-200:]}")]
    deadline_s = time.monotonic() + DEATH_S
    while _runs(pid):
        if time.monotonic() > deadline_s:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return [warn(name, "a process outlived the one that started it; kill leftovers by hand", FIX)]
        time.sleep(0.005)
    return [ok(name, "a jailed process died with the one that started it")]


def _runs(pid: int) -> bool:
    """Whether a process is there and not a zombie: whoever inherits it may be slow to bury it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123 - one read of one line
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _landlock_abi() -> int | str:
    found = ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION)
    return found if found > 0 else "none"
