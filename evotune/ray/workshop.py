"""What stands on a node without a device for the run: a compiler, for the devices of others.

Nothing here knows Ray: the fleet makes an actor of a workshop, in a process of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evotune.errors import Rejected
from evotune.evaluator import STATIC, Artifact, Compiler, Device
from evotune.process import Scratch
from evotune.space import Config
from evotune.supervisor import failed
from evotune.trial import Fidelity, Measurement

# For which a failure is kept back: a node that goes down kills compilers and workers a moment before the actor
# itself, and what they died of is not the candidate's fault.
CONFIRM_S = 1.0


@dataclass(frozen=True)
class About:
    """What an actor tells when it is ready.

    ``fidelities`` are those it measures at, none in a workshop; ``default_ms`` is None where the default
    configuration was not timed, or fails.
    """

    device: Device
    fidelities: tuple[Fidelity, ...] = ()
    default_ms: float | None = None


class Workshop:
    """Compiles several configurations at once.

    Args:
        open_compiler: Opens the compiler, given a folder to keep files in.
    """

    def __init__(self, open_compiler: Callable[[Path], Compiler]) -> None:
        self._open_compiler = open_compiler
        self._folder = Scratch("ray")
        self._stopped = threading.Event()

    def open(self) -> About:
        """Start what compiles.

        Raises:
            UsageError: It cannot be compiled here.
        """
        self._compiler = self._open_compiler(self._folder.path)
        return About(self._compiler.device)

    def compile(self, config: Config) -> Artifact | Measurement | None:
        """A compiled configuration or where it failed; None if its turn came after :meth:`stop`."""
        if self._stopped.is_set():
            return None
        try:
            return self._compiler.pack(config)
        except Rejected as rejected:
            time.sleep(CONFIRM_S)
            return failed(STATIC, rejected.stage, rejected.reason)

    def stop(self) -> None:
        """Drop the jobs whose turn has not come yet."""
        self._stopped.set()

    def close(self) -> None:
        """End all processes and delete all files."""
        self._stopped.set()
        if hasattr(self, "_compiler"):  # it may not have opened
            self._compiler.close()
        self._folder.cleanup()
