"""Runs for several models of GPUs at once, each in a process of its own, with an incumbent of its own.

Timings of different GPUs say nothing about each other, so that one run measures on GPUs of one model.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from evotune.errors import DeviceError, UsageError
from evotune.gpu.detect import Gpu
from evotune.process import Scratch
from evotune.session import find_gpus
from evotune.settings import Settings

ENVIRONMENT = "EVOTUNE_"
# The command, in a process with this one's import path, that ends with this one.
_BOOT = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from evotune.process.child import die_with; die_with(int(sys.argv.pop(1))); "
    "runpy.run_module('evotune', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Ended:
    """How the run for a model ended: its exit code, what it reported, and else why it did not."""

    gpu: str
    exit_code: int
    result: Mapping[str, Any] | None
    why: str | None

    def to_json(self) -> dict[str, Any]:
        """The object of one model that ``--json`` prints."""
        return {"gpu": self.gpu, "exit_code": self.exit_code, "why": self.why, "result": self.result}


def find_models(settings: Settings, gpus: Callable[[Settings], Sequence[Gpu]] = find_gpus) -> list[str]:
    """Names of the models of GPUs that a run could measure on, each once.

    Raises:
        UsageError: The settings leave no choice, or are for something that no GPU measures.
        DeviceError: There is no GPU.
    """
    run = settings.run
    wrong = [f"--target {run.target} is no GPU's"] if run.target in ("cpu", "replay") else []
    if run.gpu_model is not None:
        wrong.append(f"--gpu-model {run.gpu_model} chooses one; give one of the two")
    if run.shapes is not None:
        wrong.append("--shapes runs on one GPU; leave it out")
    if run.engine == "ray" and run.ray_address is None:
        wrong.append("with --engine ray its runs share a cluster; give --ray-address")
    if wrong:
        raise UsageError(f"--per-model: {'; '.join(wrong)}")
    found = dict.fromkeys(gpu.name for gpu in gpus(settings))
    if not found:
        raise DeviceError("--per-model finds no GPU; leave it out to tune on the CPU")
    return list(found)


def tune_each(
    name: str,
    settings: Settings,
    gpus: Sequence[str],
    on_event: Callable[[str, Mapping[str, Any]], None],
    options: Sequence[str] = (),
) -> list[Ended]:
    """Run for each model at the same time; Ctrl-C lets each report what it has found so far.

    Args:
        name: Of the kernel.
        settings: Of each run.
        gpus: Names of the models.
        on_event: Hears what happens, with the model that it happens to; see
            :class:`evotune.progress.JsonLines`.
        options: More options of ``evotune run``.
    """
    heard: queue.Queue[tuple[_Child, Mapping[str, Any] | None]] = queue.Queue()
    with ExitStack() as stack:
        scratch = Scratch("models")
        stack.callback(scratch.cleanup)
        children: list[_Child] = []
        for i, gpu in enumerate(gpus):
            children.append(_Child(name, settings, gpu, scratch.path / str(i), options))
            stack.callback(children[-1].kill)
        for child in children:
            threading.Thread(target=child.listen, args=(heard,), daemon=True).start()
        running, interrupted = len(children), False
        while running:
            try:
                child, event = heard.get()
                if event is None:
                    running -= 1
                else:
                    on_event(child.gpu, event)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                for child in children:
                    child.interrupt()
        return [child.ended() for child in children]


class _Child:
    """The process of one model's run, which ends with this one."""

    def __init__(self, name: str, settings: Settings, gpu: str, folder: Path, options: Sequence[str]) -> None:
        self.gpu = gpu
        self._said: list[str] = []
        folder.mkdir()
        self._result = folder / "result.json"
        run = settings.run.model_copy(update={"gpu_model": gpu})
        values = settings.model_copy(update={"run": run}).model_dump(exclude_unset=True)
        values["run"]["gpu_model"] = gpu
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(values))
        path = [str(Path(p).absolute()) for p in sys.path]
        argv = [sys.executable, "-I", "-c", _BOOT, json.dumps(path), str(os.getpid()), "run", name, *options]
        with self._result.open("w") as stdout:
            self._process = subprocess.Popen(
                [*argv, "--config", str(config), "--json", "--progress", "json"],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                # What it says is in the file already, where flags have won.
                env={k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT)},
                start_new_session=True,  # Ctrl-C reaches it once, from here
            )

    def listen(self, heard: queue.Queue[Any]) -> None:
        """Pass its events on; None is the last."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                event = _object(line)
                if event is not None and "event" in event:
                    heard.put((self, event))
                else:  # a kernel may print there too
                    self._said.append(line.strip())
        self._process.wait()
        heard.put((self, None))

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """If it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def ended(self) -> Ended:
        # What a kernel starts may print on stdout; the result is the last line.
        result = _object(self._result.read_text().strip().rpartition("\n")[2])
        why = next((said.removeprefix("error: ") for said in self._said if said.startswith("error: ")), None)
        if result is None and why is None:
            why = self._said[-1] if self._said else f"its process ended with {self._process.returncode}"
        return Ended(self.gpu, self._process.returncode, result, why)


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None if the text is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None
