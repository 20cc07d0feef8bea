"""Runs on a Ray cluster of simulated nodes: several nodes' daemons on this machine."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# ruff: noqa: E402
# (What follows imports Ray.)
ray = pytest.importorskip("ray", reason="Ray is not installed (the extra ray has it)")

from ray.cluster_utils import Cluster

from evotune import content
from evotune.cpu import CpuCompiler
from evotune.engine import Job
from evotune.errors import DeviceError, UsageError
from evotune.evaluator import Artifact, Device
from evotune.gpu.detect import Gpu
from evotune.journal import Journal
from evotune.kernel import load_checked
from evotune.ray import Fleet, RayEngine, cluster, fleet
from evotune.ray import subject as ray_subject
from evotune.ray.fleet import Member, Place, Plan, disagreement
from evotune.ray.station import Station
from evotune.ray.workshop import About
from evotune.session import tune
from evotune.settings import load
from evotune.subject import find_subject
from evotune.trial import Fidelity, Measurement, Static, Trial
from evotune.tuner import Result

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NODE: dict[str, Any] = {"object_store_memory": 80 << 20, "include_dashboard": False}
EVALUATIONS = 60
SECRET = "sk-planted-0123456789"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head with two GPUs that nobody has, and three nodes of one core, all started from the driver's shell."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        for name, value in cluster.STARTED_WITH.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 2, **NODE})
        for _ in range(3):
            made.add_node(num_cpus=1, wait=False, **NODE)
        made.wait_for_nodes()
    with cluster.connected(made.address):
        yield made
    made.shutdown()


class Heard:
    """Keeps what it is told, and does something when a trial ends."""

    def __init__(self, on_trial: Callable[[Heard], None] = lambda heard: None) -> None:
        self.notes: list[str] = []
        self.nodes = Counter[str]()
        """Trials by the node that measured them."""
        self._on_trial = on_trial

    def on_trial(self, trial: Trial, tuner: Any, *, is_best: bool) -> None:
        self.nodes[str(trial.measurements[-1].context["node"]).rsplit("-")[-1]] += 1
        self._on_trial(self)

    def on_note(self, text: str) -> None:
        self.notes.append(text)


# -- a whole run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eventful:
    """A run during which a node died and another joined."""

    result: Result
    notes: list[str]
    gone: str
    new: str
    numbers: list[int]
    """Of the trials that ended."""
    contexts: list[dict[str, Any]]
    """Of all measurements."""
    environments: dict[str, str]
    """By command line, of all processes of this machine."""


@pytest.fixture(scope="module")
def eventful(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Eventful:
    folder = tmp_path_factory.mktemp("eventful")
    kernel = folder / "mine.py"
    shutil.copy(content.find("vector_add", content.KERNELS), kernel)
    victim, joined, environments = next(iter(nodes.worker_nodes)), list[str](), dict[str, str]()
    gone = victim.node_id[:6]

    def upset(heard: Heard) -> None:
        if heard.nodes[gone] and heard.nodes.total() >= 3 and not joined:
            environments.update(environments_of_all())
            kernel.unlink()  # nodes do not share the driver's disk
            joined.append(nodes.add_node(num_cpus=1, wait=False, **NODE).node_id[:6])
            nodes.remove_node(victim, allow_graceful=False)
        if joined and not any("joins" in note for note in heard.notes):
            time.sleep(1.0)  # it must come before the run is over

    heard = Heard(upset)
    flags = {"run.engine": "ray", "run.journal": str(folder / "journal.db"), "run.shape": "small"}
    flags |= {"run.max_evaluations": 60, "llm.provider": "none"}
    drawn = random.getstate()  # simulated nodes take their ports from there
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        result = tune(str(kernel), load(None, flags, {}), observer=heard)
    random.setstate(drawn)
    with Journal(folder / "journal.db") as journal:
        numbers = journal.read("SELECT number FROM trial WHERE run=? AND done_order IS NOT NULL", result.run_id)
        contexts = journal.read("SELECT context FROM measurement WHERE run=?", result.run_id)
    told = [json.loads(text) for (text,) in contexts]
    return Eventful(result, heard.notes, gone, joined[0], [n for (n,) in numbers], told, environments)


def environments_of_all() -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_text().replace("\0", " ")
            found[f"{folder.name} {name}"] = (folder / "environ").read_text()
        except OSError:  # it has ended
            pass
    return found


def test_nothing_is_lost_with_a_node(eventful: Eventful) -> None:
    assert eventful.result.best
    assert eventful.result.speedup
    assert not eventful.result.failures
    assert len(eventful.numbers) == len(set(eventful.numbers)) == eventful.result.evaluations == 60
    assert any(f"{eventful.gone} is lost" in note for note in eventful.notes), eventful.notes


def test_every_node_measures_also_one_that_joins(eventful: Eventful) -> None:
    measured = {c["node"].rsplit("-")[-1] for c in eventful.contexts}
    assert len(measured) == 4
    assert {eventful.gone, eventful.new} <= measured


def test_trials_carry_their_calibration_and_the_finals_are_on_one_node(eventful: Eventful) -> None:
    assert len([c for c in eventful.contexts if c.get("calibration", 0) > 0]) >= 60
    finals = [c for c in eventful.contexts if "calibration" not in c]
    assert len({c["node"] for c in finals}) == 1


def test_no_key_reaches_a_station_or_its_worker(eventful: Eventful) -> None:
    everybody = eventful.environments
    ours = [name for name in everybody if "ray::Station" in name or "evotune.cpu.worker" in name]
    assert len(ours) >= 6  # of each one on each node
    assert [name for name in ours if SECRET in everybody[name]] == []
    assert [name for name in everybody if SECRET in everybody[name]], "it was planted nowhere"


def test_a_driver_that_was_killed_resumes(nodes: Cluster, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    argv = [sys.executable, "-m", "evotune", "run", "vector_add", "--engine", "ray", "--provider", "none"]
    argv += ["--ray-address", nodes.address, "--journal", str(journal), "--shape", "small", "--json"]
    argv += ["--max-evaluations", "20", "--search", "random"]
    first = subprocess.Popen([*argv, "--progress", "json"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert first.stderr
    told = [line for _, line in zip(range(9), first.stderr, strict=False)]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stderr.close()
    with Journal(journal) as read:
        acknowledged = read.read("SELECT number, config FROM trial WHERE done_order IS NOT NULL")
    assert acknowledged, told
    second = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert json.loads(second.stdout)["evaluations"] == 20
    with Journal(journal) as read:
        now = read.read("SELECT number, config FROM trial WHERE done_order IS NOT NULL")
    assert set(acknowledged) < set(now)
    assert len(now) == 20


# -- stations that fail -------------------------------------------------------------------------


class Toy:
    """``ms`` is the latency; 13 ends the station's process, 14 takes for ever, 15 fails as the process ends, and
    16 ends the process that compiles it."""

    fidelities = (Fidelity(1, "low", 5),)
    provenance = "measured"
    device = Device("toy", "toy")

    def compile(self, config: Any) -> Static:
        return Static(0.1)

    def pack(self, config: Any) -> Artifact:
        if config["ms"] == 16:
            os._exit(1)
        return Artifact(self.compile(config), {"by": mine().encode()})

    def accept(self, config: Any, artifact: Artifact) -> None:
        self.compiled_by = artifact.files["by"].decode()

    def measure(self, config: Any, fidelity: Fidelity) -> Measurement:
        if config["ms"] == 13:
            os._exit(1)
        if config["ms"] == 15:
            threading.Timer(0.2, os._exit, [1]).start()
            return Measurement(fidelity, "measured", failed_stage="crash", reason="its worker was killed")
        if config["ms"] == 14:
            time.sleep(600)
        context: dict[str, float | str] = {"compiled_by": getattr(self, "compiled_by", mine())}
        return Measurement(fidelity, "measured", (float(config["ms"]),) * 3, context=context)

    def interleave(self, configs: Any, fidelity: Fidelity) -> list[Measurement]:
        return [self.measure(c, fidelity) for c in configs]

    def close(self) -> None:
        pass


def mine() -> str:
    """The node that this process is on."""
    return ray.get_runtime_context().get_node_id()


@pytest.fixture
def start(nodes: Cluster) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def start_one(evaluator: type, notes: list[str], **options: Any) -> Fleet:
        options = {"open_compiler": None, **options}
        plan = Plan(lambda folder: evaluator(), default={"ms": 1}, job_limit_s=0.3, **options)
        made.append(Fleet(plan, notes.append))
        made[-1].start()
        return made[-1]

    yield start_one
    for one in made:
        one.close()


def collect(engine: RayEngine, n: int) -> dict[int, Any]:
    out: list[Any] = []
    deadline_s = time.monotonic() + 30
    while len(out) < n and time.monotonic() < deadline_s:
        out += engine.completed(timeout_s=0.2)
    assert len(out) == n
    return {o.number: o.measurements[-1] for o in out}


def test_a_job_that_costs_two_stations_is_quarantined_and_all_others_are_measured(
    start: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "MARGIN_S", 0.5)
    notes: list[str] = []
    stations = start(Toy, notes)
    for member in stations.members:
        member.opening_s = 0.0
    engine = RayEngine(stations, EVALUATIONS)
    engine.submit(Job(0, {"ms": 13}, None))
    first = collect(engine, 1)
    assert first[0].failed_stage == "crash"
    assert "quarantined" in first[0].reason
    assert "lost 2 times" in first[0].reason
    assert len({note.split()[0] for note in notes if "is lost" in note}) == 2  # it was retried elsewhere
    engine.submit(Job(1, {"ms": 14}, None))
    for n in range(2, 20):
        engine.submit(Job(n, {"ms": n + 20}, None))
    done = collect(engine, 19)
    assert {n: m.latency_ms for n, m in done.items() if m.ok} == {n: n + 20.0 for n in range(2, 20)}
    assert done[1].failed_stage == "crash"
    assert any("no answer before the deadline" in note for note in notes)
    engine.cancel()


def test_what_fails_while_its_station_goes_down_is_not_blamed_for_that(start: Callable[..., Fleet]) -> None:
    engine = RayEngine(start(Toy, []), EVALUATIONS)
    engine.submit(Job(0, {"ms": 15}, None))
    assert "lost 2 times" in collect(engine, 1)[0].reason  # and not that its worker was killed
    engine.cancel()


def test_a_device_that_drifts_from_its_calibration_is_set_aside(
    start: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(Station):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, recalibrate_s=0.0)

    monkeypatch.setattr(fleet, "Station", Impatient)
    hot = cluster.nodes()[0].id if cluster.nodes()[0].cpus else cluster.nodes()[1].id

    class Heating(Toy):
        calls = 0

        def measure(self, config: Any, fidelity: Fidelity) -> Measurement:
            self.calls += 1
            slower = 1.4 if mine() == hot and self.calls > 2 else 1.0
            return Measurement(fidelity, "measured", (config["ms"] * slower,) * 3)

    notes: list[str] = []
    stations = start(Heating, notes)
    before = len(stations.members)
    engine = RayEngine(stations, EVALUATIONS)
    for n in range(12):
        engine.submit(Job(n, {"ms": n + 1}, None))
    done = collect(engine, 12)
    assert all(m.latency_ms == n + 1.0 for n, m in done.items())  # none that the hot one measured
    assert hot not in {m.node.id for m in stations.members}
    assert len(stations.members) == before - 1
    assert any("set aside: it has become 1.40 times as slow" in note for note in notes), notes
    engine.cancel()


def test_nodes_of_two_models_are_refused_by_name(start: Callable[..., Fleet]) -> None:
    odd = cluster.nodes()[-1] if cluster.nodes()[-1].cpus else cluster.nodes()[-2]

    class Mixed(Toy):
        @property
        def device(self) -> Device:
            return Device("toy", "Zen 9" if mine() == odd.id else "Zen 5", {"numpy": "2.0"})

    with pytest.raises(UsageError, match=rf"device .*Zen 9 \({odd.name}\)"):
        start(Mixed, [])


def test_a_station_that_cannot_be_made_names_what_to_install(
    start: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent(Station):
        def __init__(self, *args: Any) -> None:
            raise ModuleNotFoundError("No module named 'evotune'")

    monkeypatch.setattr(fleet, "Station", Absent)
    with pytest.raises(UsageError, match=r"is evotune .* installed on every node\?.*No module named"):
        start(Toy, [], limit=1)


def test_a_fleet_none_of_whose_devices_works_is_a_fault_of_the_machine(start: Callable[..., Fleet]) -> None:
    class Broken(Toy):
        def measure(self, config: Any, fidelity: Fidelity) -> Measurement:
            raise DeviceError("it fell off the bus")

    with pytest.raises(DeviceError, match="it fell off the bus"):
        start(Broken, [], limit=1)


def test_a_device_that_the_run_cannot_use_is_replaced_by_another(start: Callable[..., Fleet]) -> None:
    fits = cluster.nodes()[-1] if cluster.nodes()[-1].cpus else cluster.nodes()[-2]

    class Elsewhere(Toy):
        def measure(self, config: Any, fidelity: Fidelity) -> Measurement:
            if mine() != fits.id:
                raise DeviceError("--gpu-model B200 was asked for and NVIDIA H100 is here")
            return super().measure(config, fidelity)

    notes: list[str] = []
    assert [m.node.id for m in start(Elsewhere, notes, limit=1).stations] == [fits.id]
    assert any("does not start: --gpu-model B200 was asked for" in note for note in notes)


@pytest.mark.parametrize("limit", [None, 1])
def test_each_station_sees_one_gpu_and_no_more_are_taken_than_asked_for(
    start: Callable[..., Fleet], limit: int | None
) -> None:
    class Seeing(Toy):
        @property
        def device(self) -> Device:
            return Device("toy", "toy", facts={"gpus": os.environ["CUDA_VISIBLE_DEVICES"]})

    stations = start(Seeing, [], uses_gpus=True, limit=limit)
    seen = [m.about.device.facts["gpus"] for m in stations.members]
    assert sorted(seen) == ["0", "1"] if limit is None else len(seen) == 1
    assert stations.members[0].name == f"{stations.members[0].node.name} ({seen[0]})"


@pytest.mark.parametrize(("model", "stations"), [("NVIDIA H100", 1), ("NVIDIA B200", 1), ("NVIDIA L4", 0)])
def test_only_nodes_with_gpus_of_the_model_get_stations(
    start: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch, model: str, stations: int
) -> None:
    both = [Gpu(0, "GPU-0", "NVIDIA H100"), Gpu(1, "GPU-1", "NVIDIA B200")]
    monkeypatch.setattr(fleet, "detect_gpus", lambda asked: {node.id: both for node in asked if node.gpus})
    if stations:
        assert len(start(Toy, [], uses_gpus=True, gpu_model=model).stations) == stations
        return
    with pytest.raises(DeviceError, match="no node has a free device for it"):
        start(Toy, [], uses_gpus=True, gpu_model=model)


# -- nodes that only compile ----------------------------------------------------------------------


def wait_for(fleet: Fleet, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        fleet.refresh()
        time.sleep(0.1)


def test_nodes_that_do_not_measure_compile_for_the_one_that_does(start: Callable[..., Fleet]) -> None:
    notes: list[str] = []
    some = start(Toy, notes, limit=1, open_compiler=lambda folder: Toy())
    wait_for(some, lambda: sum("compiles for the others" in note for note in notes) == 2)
    engine = RayEngine(some, EVALUATIONS)
    assert engine.slots == 1 + 3  # one is measured, and each of three nodes has a core
    for n in range(12):
        engine.submit(Job(n, {"ms": n + 20}, None))
    done = collect(engine, 12)
    (station,) = some.stations
    by = Counter(m.context["compiled_by"] for m in done.values())
    assert {m.context["node"] for m in done.values()} == {station.node.name}
    assert len(set(by) - {station.node.id}) == 2, by
    engine.cancel()


def test_a_workshop_that_is_lost_while_it_compiles_costs_its_job_one_more_try_and_no_other(
    start: Callable[..., Fleet],
) -> None:
    notes: list[str] = []
    some = start(Toy, notes, limit=1, open_compiler=lambda folder: Toy())
    wait_for(some, lambda: len(some.members) == 3)
    engine = RayEngine(some, EVALUATIONS)
    engine.submit(Job(0, {"ms": 16}, None))
    for n in range(1, 12):
        engine.submit(Job(n, {"ms": n + 20}, None))
    done = collect(engine, 12)
    assert {n: m.latency_ms for n, m in done.items() if m.ok} == {n: n + 20.0 for n in range(1, 12)}
    assert "lost 2 times" in done[0].reason
    assert len({note.split()[0] for note in notes if "is lost" in note}) == 2
    engine.cancel()


def test_a_workshop_with_other_versions_is_set_aside_and_the_run_goes_on(start: Callable[..., Fleet]) -> None:
    class Older(Toy):
        device = Device("toy", "toy", {"triton": "3.5.0"})

    class Newer(Toy):
        device = Device("toy", "toy", {"triton": "3.6.0", "driver": "580"})  # which only who measures has

    notes: list[str] = []
    some = start(Newer, notes, limit=1, open_compiler=lambda folder: Older())
    wait_for(some, lambda: sum("set aside: these differ: triton 3.6.0" in note for note in notes) == 2)
    assert [m.measures for m in some.members] == [True]
    engine = RayEngine(some, EVALUATIONS)
    engine.submit(Job(0, {"ms": 20}, None))
    assert collect(engine, 1)[0].ok
    engine.cancel()


def test_a_compiler_that_does_not_start_is_no_fault_of_the_run(start: Callable[..., Fleet]) -> None:
    def missing(folder: Path) -> Any:
        raise UsageError("the CPU target needs a C compiler")

    notes: list[str] = []
    some = start(Toy, notes, limit=1, open_compiler=missing)
    wait_for(some, lambda: sum("does not start: the CPU target needs" in note for note in notes) == 2)
    assert len(some.members) == 1


def test_machine_code_that_one_node_made_is_measured_on_another(nodes: Cluster, tmp_path: Path) -> None:
    notes: list[str] = []
    flags = {"run.shape": "small", "run.target": "cpu"}
    shipped = content.find("vector_add", content.KERNELS).read_text()
    (tmp_path / "parts" / "sums").mkdir(parents=True)
    (tmp_path / "parts" / "sums" / "names.py").write_text("NAME = 'sum'\n")
    (tmp_path / "mine.py").write_text(shipped.replace("\nname = ", "\nimport parts.sums.names\nname = ", 1))
    kernel = load_checked(tmp_path / "mine.py")
    assert set(kernel.neighbours) == {"parts/sums/names.py"}
    parcel = ray_subject._pack(kernel, "cpu", load(None, flags, {}), [])
    space = find_subject(str(kernel.path), load(None, flags, {})).space
    shutil.rmtree(tmp_path / "parts")  # nodes share no disk with the driver

    class OnlyAccepts(CpuCompiler):
        """Compiles the default, which the station is calibrated with, and then nothing."""

        def _compile(self, digest: str, source: Any) -> Any:
            assert not self._libraries[digest].done()
            assert len(self._libraries) == 1, "it was to be compiled elsewhere"
            return super()._compile(digest, source)

    def open_evaluator(folder: Path) -> Any:
        from evotune.cpu import evaluator

        evaluator.CpuCompiler = OnlyAccepts
        return parcel.open_evaluator(folder)

    some = Fleet(Plan(open_evaluator, parcel.open_compiler, space.default, 60.0, limit=1), notes.append)
    try:
        some.start()
        wait_for(some, lambda: len(some.members) == 3)
        some.stations[0].compile_slots = 0  # it only measures
        engine = RayEngine(some, EVALUATIONS)
        configs = space.sample(random.Random(0), 6)
        for n, config in enumerate(configs):
            engine.submit(Job(n, config, None))
        done = collect(engine, 6)
        assert all(m.ok for m in done.values()), done
        engine.cancel()
    finally:
        some.close()


# -- without a cluster --------------------------------------------------------------------------


def test_all_that_differs_between_nodes_is_named_with_who_has_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "installed_version", lambda package: "0.1.0")

    def member(name: str, torch: str, driver: str, evotune: str = "0.1.0") -> Member:
        device = Device("cuda", "NVIDIA H100", {"torch": torch, "driver": driver, "evotune": evotune})
        about = About(device)
        return Member(Place(name, 0), cluster.Node(name, name, 8, 1), None, 2, about, 1.0)

    alike = [member("a", "2.13", "580"), member("b", "2.13", "580")]
    assert disagreement(alike) is None
    told = disagreement([*alike, member("c", "2.12", "570", "0.2.0")])
    assert told
    assert "evotune 0.1.0 (the driver, a, b), 0.2.0 (c)" in told
    assert "torch 2.13 (a, b), 2.12 (c); driver 580 (a, b), 570 (c)" in told


def test_an_address_where_nobody_is_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        argv = [sys.executable, "-m", "evotune", "run", "vector_add", "--engine", "ray", "--ray-address", address]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"nobody answers at --ray-address {address}" in done.stderr


def test_a_gpu_that_no_node_has_is_a_fault_of_the_machine(nodes: Cluster, tmp_path: Path) -> None:
    flags = {"run.engine": "ray", "run.target": "h100", "run.journal": str(tmp_path / "journal.db")}
    with pytest.raises(DeviceError, match="target h100 was asked for"):
        tune("vector_add", load(None, flags, {}), observer=Heard())


def test_a_recording_is_not_looked_up_on_a_cluster(tmp_path: Path) -> None:
    flags = {"run.engine": "ray", "run.journal": str(tmp_path / "journal.db")}
    with pytest.raises(UsageError, match="is a recording, whose times are looked up here"):
        tune("recordings/gemm_3090", load(None, flags, {}), observer=Heard())
