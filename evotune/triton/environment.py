"""What a launch finds around it: the wish of the user, the device, and the code that is launched."""

from __future__ import annotations

import inspect
import os
import sys
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from evotune.errors import DeviceError, UsageError, nearest

VARIABLE = "EVOTUNE"
Mode = Literal["search", "cached", "off"]
MODES: tuple[Mode, ...] = ("search", "cached", "off")
_triton: Any = import_module("triton")  # optional, so not known to whoever checks types
DRIVERS = [Path("/sys/module/nvidia/version"), Path("/sys/module/amdgpu/version")]


def mode() -> Mode:
    """What a launch may do to get its configuration."""
    found = os.environ.get(VARIABLE, "search")
    if found not in MODES:
        raise UsageError(f"{VARIABLE}={found!r}{nearest(found, MODES)} is not one of {', '.join(MODES)}")
    return found


def is_interpreting() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return bool(_triton.knobs.runtime.interpret)


def is_told_to_print() -> bool:
    """Whether Triton is told to say what its autotuner finds (TRITON_PRINT_AUTOTUNING=1)."""
    return bool(_triton.knobs.autotuning.print)


def is_capturing() -> bool:
    """Whether a CUDA graph is being captured, during which nothing can be timed."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def is_broken() -> bool:
    """Whether the device refuses everything from now on, as it does after a fault inside a kernel."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def describe_device() -> dict[str, str]:
    """Name of the device in use, and versions of all that makes code for it and runs it.

    Raises:
        DeviceError: There is none.
    """
    torch: Any = sys.modules.get("torch")
    found = {"triton": _triton.__version__, "torch": torch.__version__ if torch else "not used"}
    if is_interpreting():
        return {"device": "Triton's interpreter", **found}
    if torch and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        try:
            name = str(_triton.runtime.driver.active.get_current_target())
        except RuntimeError as error:
            raise DeviceError(f"Triton finds no GPU ({error}); TRITON_INTERPRET=1 runs kernels on a CPU") from error
    # Variables that change what Triton makes of the same code.
    switches = import_module("triton._C.libtriton").get_cache_invalidating_env_vars()
    return {"device": name, **found, "driver": _driver_version(), "switches": str(sorted(switches.items()))}


@lru_cache(maxsize=1)
def _driver_version() -> str:
    found = [path.read_text().strip() for path in DRIVERS if path.is_file()]
    return " ".join(found) or "unknown"


def source_hash(kernel: Any) -> str:
    """Changes with the kernel and with everything of the user's that it calls.

    In the interpreter, where Triton does not know what it calls, with the kernel alone.
    """
    while not inspect.isfunction(kernel):
        if (key := getattr(kernel, "cache_key", None)) is not None:
            return str(key)
        kernel = kernel.fn
    return sha256(inspect.getsource(kernel).encode()).hexdigest()
