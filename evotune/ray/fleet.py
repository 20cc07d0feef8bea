"""Who works in a cluster: stations where devices are, workshops elsewhere; alike, or set aside."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (Ray is optional, and its types are partial.)
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from evotune.errors import DeviceError, UsageError
from evotune.evaluator import Compiler, Portable, installed_version
from evotune.ray.cluster import Node, detect_gpus, nodes, start_actor
from evotune.ray.station import Station
from evotune.ray.workshop import About, Workshop
from evotune.space import Config

POLL_S = 1.0  # how late a node that joins is noticed
START_S = 120.0  # by then the first measure, and those that are not ready join when they are
TELL_S = 10.0  # after which a person hears what is waited for
SETUP_S = 1000.0  # a GPU's worker computes references on the CPU first; see evotune.gpu.evaluator
REJOIN_S = 60.0  # for which a run without any node waits for one
CLOSE_S = 10.0
MARGIN_S = 60.0  # on top of a deadline, for a busy network
STARTS = 3  # of a device, before it is left alone
# How much faster or slower a device may become than the others since its calibration. Four simulated nodes on
# a busy machine stayed within it for 200 s (benchmarks/results/ray.md); a GPU was never asked.
DRIFT_BOUND = 1.25


@dataclass(frozen=True)
class Place:
    """Room for one actor: for a station at one of a node's devices, or for a workshop, if ``index`` is None."""

    node_id: str
    index: int | None


@dataclass
class Member:
    """A station or a workshop as the driver knows it. ``compile_slots`` is how many it compiles at once."""

    place: Place
    node: Node
    actor: Any
    compile_slots: int
    about: About
    opening_s: float
    drift: float = 1.0

    @property
    def measures(self) -> bool:
        """Whether it is a station."""
        return self.place.index is not None

    @property
    def name(self) -> str:
        """For people."""
        gpus = self.about.device.facts.get("gpus")
        return f"{self.node.name} ({gpus})" if gpus else self.node.name


@dataclass(frozen=True)
class Plan:
    """What stations and workshops are started for.

    ``open_compiler`` is None if only stations compile. ``limit`` is how many measure at most, None for all
    there are, and ``gpu_model`` the name of GPUs that do. ``job_limit_s`` is how long one job may take,
    compiling and all fidelities included.
    """

    open_evaluator: Callable[[Path], Portable]
    open_compiler: Callable[[Path], Compiler] | None
    default: Config
    job_limit_s: float
    uses_gpus: bool = False
    gpu_model: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class _Starting:
    node: Node
    actor: Any
    compile_slots: int
    opened: Any
    began_s: float


class Fleet:
    """All stations and workshops of one run.

    Args:
        plan: What they are for.
        on_note: Hears who joins, leaves, and is set aside.
    """

    def __init__(self, plan: Plan, on_note: Callable[[str], None]) -> None:
        self.plan = plan
        self.members: list[Member] = []
        self._on_note = on_note
        self._starting: dict[Place, _Starting] = {}
        self._starts: Counter[Place] = Counter()
        self._polled_s = -math.inf
        self._seen_s = math.inf  # when there was somebody the last time
        self._last_loss = "no node has a free device for it; other runs may hold them"
        self._fitting: dict[str, int] = {}

    def start(self) -> None:
        """Start a station on each device there is, and wait until they are ready.

        Raises:
            UsageError: They are not alike, or the kernel cannot be measured as it is.
            DeviceError: None gets ready.
        """
        try:
            self._await_stations()
            if problem := disagreement(self.stations):
                raise UsageError(
                    f"{problem}, and only timings from like devices can be compared; install the same versions "
                    "everywhere, and choose like devices with --target or with another cluster"
                )
            if not self.stations:
                raise DeviceError(f"no station of the Ray cluster is ready: {self._last_loss}")
            self._first = self.stations[0]  # whom all others must be like, also when it is gone
        except BaseException:
            self.close()
            raise
        self._on_note(f"measuring on {len(self.stations)}: {', '.join(m.name for m in self.stations)}")
        self._start_workshops()

    def _await_stations(self) -> None:
        began_s = time.monotonic()
        is_told = False
        self._start_stations()
        while self._awaits_station and time.monotonic() < began_s + (START_S if self.stations else SETUP_S):
            time.sleep(0.1)
            self.members += self._ready(is_start=True)
            self._start_stations()  # in place of those that did not start
            if not is_told and self._starting and time.monotonic() > began_s + TELL_S:
                names = ", ".join(dict.fromkeys(s.node.name for s in self._starting.values()))
                self._on_note(f"waiting for {names}: starting, or other runs hold the devices")
                is_told = True

    def refresh(self) -> None:
        """See who has joined and who is ready; looks at most once in :data:`POLL_S`.

        Raises:
            DeviceError: There is nobody, and nobody comes within :data:`REJOIN_S`.
        """
        if time.monotonic() < self._polled_s + POLL_S:
            return
        self._polled_s = time.monotonic()
        for member in self._ready(is_start=False):
            self.members.append(member)
            self._admit(member)
        has_places = self._start_stations()
        self._start_workshops()
        if self.stations or self._awaits_station:
            self._seen_s = self._polled_s
        elif has_places or self._polled_s > self._seen_s + REJOIN_S:
            raise DeviceError(f"no station is left: {self._last_loss}; the same command resumes")

    @property
    def stations(self) -> list[Member]:
        """Those that measure."""
        return [m for m in self.members if m.measures]

    @property
    def _awaits_station(self) -> bool:
        return any(place.index is not None for place in self._starting)

    def _admit(self, member: Member) -> None:
        if problem := disagreement([self._first, member]):
            self.lose(member, problem, for_good=True)
        else:
            self._on_note(f"{member.name} joins" if member.measures else f"{member.name} compiles for the others")

    def median_ms(self) -> float | None:
        """Latency of the default configuration on the middle one of the devices."""
        known = [m.about.default_ms for m in self.stations if m.about.default_ms is not None]
        return median(known) if known else None

    def has_drifted(self, member: Member) -> bool:
        """Whether a device's speed has changed since its calibration, and that of the others has not."""
        others = [m.drift for m in self.stations if m is not member]
        return bool(others) and abs(math.log(member.drift / median(others))) > math.log(DRIFT_BOUND)

    def lose(self, member: Member, reason: str, *, for_good: bool = False) -> None:
        """Go on without a station, and start another in its place unless that is for good."""
        if member not in self.members:
            return
        self.members.remove(member)
        ray.kill(member.actor)
        if for_good:
            self._starts[member.place] = STARTS
        self._note_loss(f"{member.name} is {'set aside' if for_good else 'lost'}: {reason}")

    def blame(self, member: Member, error: RayError) -> None:
        """Go on without a station whose call failed.

        Raises:
            Exception: It failed for another reason than the device or the node: what the station raised.
        """
        match cause(error):
            case DeviceError() as found:
                self.lose(member, str(found), for_good=True)
            case Lost() as found:
                self.lose(member, str(found))
            case found:
                raise found

    def limit_s(self, member: Member, jobs: int) -> float:
        """How long a station may take for so many jobs; a worker that starts anew takes as long as at first."""
        return jobs * self.plan.job_limit_s + member.opening_s + MARGIN_S

    def ask_one(self, ask: Callable[[Any], Any], jobs: int) -> Any:
        """The first answer of a station, of those nearest to the middle in speed before others.

        Args:
            ask: Calls a method of an actor, and gives the reference.
            jobs: How many jobs' time it may take.

        Raises:
            DeviceError: None answers.
        """
        middle_ms = self.median_ms()

        def off(member: Member) -> float:
            own_ms = member.about.default_ms
            return abs(math.log(own_ms / middle_ms)) if own_ms and middle_ms else math.inf

        for member in sorted(self.stations, key=off):
            try:
                return ray.get(ask(member.actor), timeout=self.limit_s(member, jobs))
            except RayError as error:
                self.blame(member, error)
        raise DeviceError(f"no station is left: {self._last_loss}; the same command resumes")

    def close(self) -> None:
        """End all stations; safe to call twice."""
        members, starting = self.members, self._starting
        self.members, self._starting = [], {}
        if not ray.is_initialized():
            return
        if ending := [m.actor.close.remote() for m in members]:
            ray.wait(ending, num_returns=len(ending), timeout=CLOSE_S)
        for one in (*members, *starting.values()):
            ray.kill(one.actor)

    def _start_stations(self) -> bool:
        """Start stations where there is room; whether the cluster has any device at all."""
        places = [(Place(n.id, i), n) for n in nodes() for i in range(self._devices(n))]
        taken = {place for place in self._taken if place.index is not None}
        free = [(p, n) for p, n in places if p not in taken and self._starts[p] < STARTS]
        room = len(free) if self.plan.limit is None else max(0, self.plan.limit - len(taken))
        for place, node in free[:room]:
            compile_slots = max(1, node.cpus // self._devices(node))
            station = (node.name, self.plan.open_evaluator, self.plan.default)
            self._start(place, node, compile_slots, Station, *station, gpus=int(self.plan.uses_gpus))
        return bool(places)

    def _start_workshops(self) -> None:
        """Start them on nodes where no station is."""
        if self.plan.open_compiler is None:
            return
        busy = {place.node_id for place in self._taken}
        for node in nodes():
            place = Place(node.id, None)
            if node.cpus and node.id not in busy and self._starts[place] < STARTS:
                self._start(place, node, node.cpus, Workshop, self.plan.open_compiler, gpus=0)

    @property
    def _taken(self) -> set[Place]:
        return {*(m.place for m in self.members), *self._starting}

    def _start(self, place: Place, node: Node, compile_slots: int, kind: type, *args: Any, gpus: int) -> None:
        self._starts[place] += 1
        # Beside those that compile: one measures and one waits, and `stop` and `close` must wait for none.
        actor = start_actor(kind, node, *args, gpus=gpus, threads=compile_slots + 4)
        self._starting[place] = _Starting(node, actor, compile_slots, actor.open.remote(), time.monotonic())

    def _devices(self, node: Node) -> int:
        """How many stations have room on a node."""
        if not self.plan.uses_gpus:
            return min(node.cpus, 1)  # of several CPU kernels on one machine each would disturb the others
        if self.plan.gpu_model is None:
            return node.gpus
        if node.id not in self._fitting:
            try:
                found = detect_gpus([node]).get(node.id, [])
            except DeviceError as error:
                self._on_note(str(error))
                found = []
            self._fitting[node.id] = sum(gpu.name == self.plan.gpu_model for gpu in found)
        return self._fitting[node.id]

    def _ready(self, *, is_start: bool) -> list[Member]:
        """Who is ready since the last call; those that will never be are dropped.

        Raises:
            Exception: At the start, what keeps a station from it and is nobody's fault but the caller's.
        """
        ready: list[Member] = []
        for place, starting in list(self._starting.items()):
            if not ray.wait([starting.opened], timeout=0)[0]:
                continue
            try:
                about: Any = ray.get(starting.opened)
            except RayError as error:
                found = cause(error)
                if is_start and place.index is not None and not isinstance(found, (DeviceError, Lost)):
                    raise found from error
                if not isinstance(found, Lost):
                    self._starts[place] = STARTS
                ray.kill(starting.actor)
                self._note_loss(f"{starting.node.name} does not start: {found}")
            else:
                opening_s = time.monotonic() - starting.began_s
                ready.append(Member(place, starting.node, starting.actor, starting.compile_slots, about, opening_s))
            del self._starting[place]
        return ready

    def _note_loss(self, text: str) -> None:
        self._last_loss = text
        self._on_note(text)


class Lost(Exception):
    """An actor that does not answer any more."""


def cause(error: RayError) -> Exception:
    """What a station raised, :class:`Lost` if it is gone, or why it could not even be made."""
    if isinstance(error, RayTaskError):
        return error.cause or error
    text = " ".join(str(error).split())
    if isinstance(error, RayActorError) and error.actor_init_failed:
        mine = installed_version("evotune")
        return UsageError(f"a station cannot be made; is evotune {mine} installed on every node? {text[-300:]}")
    return Lost(text[:300])


def disagreement(members: Sequence[Member]) -> str | None:
    """In what members differ, and their evotune from the driver's, all of it; None if in nothing.

    A workshop tells less: it has no driver.
    """
    told = {"evotune": {installed_version("evotune"): ["the driver"]}}
    for member in members:
        device = member.about.device
        for fact, value in {"device": device.name, **device.versions}.items():
            told.setdefault(fact, {}).setdefault(value, []).append(member.name)
    different = [
        f"{fact} " + ", ".join(f"{value} ({', '.join(where)})" for value, where in values.items())
        for fact, values in told.items()
        if len(values) > 1
    ]
    if not different:
        return None
    return f"these differ: {'; '.join(different)}"
