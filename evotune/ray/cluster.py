"""The connection to Ray: which nodes there are, what devices they have, and where stations start."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (Ray is optional, and its types are partial.)
from __future__ import annotations

import logging
import os
import random
import re
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import TextIOBase
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evotune.errors import DeviceError, UsageError
from evotune.gpu.detect import Gpu, detect, visible
from evotune.process.command import is_secret

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
DETECT_TIMEOUT_S = 120.0  # Ray starts a process for it, and a driver that is not loaded yet takes its time
# Where Ray is started for this run alone: it must not report to its makers, and its processes, which measure,
# must not give way to all others (it starts them with niceness 15).
STARTED_WITH = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@dataclass(frozen=True)
class Node:
    """One machine of the cluster; ``name`` is for people."""

    id: str
    name: str
    cpus: int
    gpus: int


@contextmanager
def connected(address: str | None) -> Generator[None, None, None]:
    """Ray, reached at an address, or started on this machine if that is None; left as it was if it is connected.

    Raises:
        UsageError: There is no cluster at the address, or one of another version.
    """
    with redirect_stdout(_Log()):  # Ray prints what its daemons say, at any time
        if ray.is_initialized():
            yield
            return
        if given := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
            _require_answer(given[1], int(given[2]))
        kept, drawn = dict(os.environ), random.getstate()
        os.environ.update({name: value for name, value in STARTED_WITH.items() if name not in kept})
        try:
            # Without an address, Ray takes whatever cluster runs here; with this one it starts its own.
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise UsageError(f"Ray does not start here: {error}") from error
            advice = "; RAY_AUTH_MODE must be the same here as where the cluster was started: token, or disabled"
            raise UsageError(f"Ray is not reached at --ray-address {address}: {error}{advice}") from error
        finally:
            random.setstate(drawn)  # Ray draws its ports from the caller's generator
            for name in STARTED_WITH.keys() - kept.keys():
                del os.environ[name]
        try:
            yield
        finally:
            ray.shutdown()


def _require_answer(host: str, port: int) -> None:
    """Ray itself knocks for more than five minutes where nobody is."""
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UsageError(f"nobody answers at --ray-address {host}:{port}: {error}; is Ray running there?") from None


class _Log(TextIOBase):
    """A stream that goes to the log."""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if text.strip():
            _log.info("%s", text.rstrip())
        return len(text)


def nodes() -> list[Node]:
    """Those that are alive, in a fixed order."""
    found: list[Node] = []
    for told in ray.nodes():
        if told["Alive"]:
            name = f"{told['NodeManagerHostname']}-{told['NodeID'][:6]}"
            resources = told["Resources"]
            found.append(Node(told["NodeID"], name, int(resources.get("CPU", 0)), int(resources.get("GPU", 0))))
    return sorted(found, key=lambda node: node.id)


def detect_gpus(there: Sequence[Node]) -> dict[str, list[Gpu]]:
    """Those that Ray hands out, as their nodes describe them, by the nodes' ids.

    Raises:
        DeviceError: A node does not answer.
    """
    look: Any = ray.remote(_gpus_here)
    asked = {n: look.options(**_on(n), num_cpus=0).remote() for n in there if n.gpus}
    gpus: dict[str, list[Gpu]] = {}
    for node, reference in asked.items():
        try:
            gpus[node.id] = ray.get(reference, timeout=DETECT_TIMEOUT_S)[: node.gpus]
        except RayError as error:
            raise DeviceError(f"node {node.name} does not tell its GPUs: {error}") from error
    return gpus


def _gpus_here() -> list[Gpu]:
    # Ray hides all GPUs from what has asked for none, by an empty value.
    return visible(detect(), os.environ.get("CUDA_VISIBLE_DEVICES") or None)


def start_actor(kind: type, node: Node, *args: Any, gpus: int, threads: int) -> Any:
    """An actor of a class on a node, with so many of its GPUs for itself, or else with one of its CPUs."""
    made: Any = ray.remote(kind)
    room = {"num_gpus": gpus, "num_cpus": 0 if gpus else 1}
    return made.options(**_on(node), **room, max_concurrency=threads).remote(*args)


def _on(node: Node) -> Mapping[str, Any]:
    """Options that put something on a node, and leave this process's secrets out of its environment.

    Ray that was started from a shell with an API key passes it on to whatever it starts.
    """
    # Ray's own token stays: its processes need it to talk to each other.
    blank = {name: "" for name in os.environ if is_secret(name) and not name.startswith("RAY_")}
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
        "runtime_env": {"env_vars": blank},
    }
