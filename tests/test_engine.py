import importlib.util
import sys
import threading
import time

import pytest

from evotune.engine import AHEAD, InlineEngine, Job, LocalEngine, ahead
from evotune.errors import DeviceError, Rejected, UsageError
from evotune.evaluator import Artifact, Device
from evotune.trial import Fidelity, Measurement, Static

LOW, HIGH = Fidelity(1, "low", 5), Fidelity(3, "high", 50)


class ToyEvaluator:
    """``ms`` is the latency; negative ones fail to compile, zero breaks the device."""

    fidelities = (LOW, HIGH)
    device = Device("toy", "toy")
    provenance = "measured"

    def __init__(self):
        self.measuring = 0

    def compile(self, config):
        if config["ms"] < 0:
            raise Rejected("compile", "negative")
        return Static(0.1)

    def pack(self, config):
        return Artifact(self.compile(config), {})

    def accept(self, config, artifact):
        pass

    def measure(self, config, fidelity):
        self.measuring += 1
        together = self.measuring
        time.sleep(0.001)
        self.measuring -= 1
        if config["ms"] == 0:
            raise DeviceError("gone")
        return Measurement(fidelity, "measured", (float(config["ms"]),) * 3, context={"together": together})

    def interleave(self, configs, fidelity):
        return [self.measure(c, fidelity) for c in configs]

    def close(self):
        pass


@pytest.fixture(params=["inline", "local", "ray"])
def engine(request):
    if request.param == "inline":
        made = InlineEngine(ToyEvaluator())
    elif request.param == "local":
        made = LocalEngine(ToyEvaluator(), compile_jobs=2)
    else:
        made = request.getfixturevalue("ray_engine")
    yield made
    made.cancel()


@pytest.fixture(scope="module")
def ray_here():
    """Ray on this machine alone."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (the extra ray has it)")
    import ray

    from evotune.ray.cluster import connected

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connected(None):
        yield


@pytest.fixture
def ray_engine(ray_here):
    from evotune.ray import Fleet, RayEngine
    from evotune.ray.fleet import Plan

    fleet = Fleet(Plan(lambda folder: ToyEvaluator(), None, {"ms": 1}, job_limit_s=10), on_note=print)
    fleet.start()
    yield RayEngine(fleet, evaluations=60)
    fleet.close()


def collect(engine, n):
    out = []
    deadline_s = time.monotonic() + 10
    while len(out) < n and time.monotonic() < deadline_s:
        out += engine.completed(timeout_s=0.1)
    return {o.number: o for o in out}


def most_together(done):
    """How many were being measured at once at most."""
    return max(m.context["together"] for outcome in done.values() for m in outcome.measurements)


def test_every_job_has_one_outcome_and_one_is_measured_at_a_time(engine):
    for n in range(8):
        engine.submit(Job(n, {"ms": n + 1}, None))
    done = collect(engine, 8)
    assert sorted(done) == list(range(8))
    assert [done[n].measurements[-1].latency_ms for n in range(8)] == [n + 1.0 for n in range(8)]
    assert most_together(done) == 1


def test_what_cannot_win_is_not_measured_carefully(engine):
    engine.submit(Job(0, {"ms": 5}, 1.0))
    engine.submit(Job(1, {"ms": 1}, 1.0))
    done = collect(engine, 2)
    assert [m.fidelity for m in done[0].measurements] == [LOW]
    assert [m.fidelity for m in done[1].measurements] == [LOW, HIGH]


def test_a_job_for_one_fidelity_is_measured_there_alone_and_need_not_beat_anything(engine):
    engine.submit(Job(0, {"ms": 5}, 1.0, HIGH.rank))
    assert [m.fidelity for m in collect(engine, 1)[0].measurements] == [HIGH]


def test_a_fidelity_that_the_target_does_not_offer_is_refused(engine):
    engine.submit(Job(0, {"ms": 5}, None, 2))
    with pytest.raises(UsageError, match=r"fidelity 2; the target offers 1 \(low\), 3 \(high\)"):
        collect(engine, 1)


def test_a_rejected_configuration_is_an_outcome_not_an_error(engine):
    engine.submit(Job(0, {"ms": -1}, None))
    (measured,) = collect(engine, 1)[0].measurements
    assert (measured.failed_stage, measured.reason) == ("compile", "negative")


def test_a_device_fault_reaches_whoever_collects(engine):
    engine.submit(Job(0, {"ms": 0}, None))
    with pytest.raises(DeviceError):
        collect(engine, 1)


def test_as_many_are_measured_at_once_as_there_are_devices():
    class Meeting(ToyEvaluator):
        """A measurement ends when another one has begun."""

        meet = threading.Barrier(2, timeout=10)

        def measure(self, config, fidelity):
            if fidelity is LOW:
                self.meet.wait()
            return super().measure(config, fidelity)

    engine = LocalEngine(Meeting(), compile_jobs=2, measure_jobs=2)
    try:
        assert engine.slots == 4
        for n in range(8):
            engine.submit(Job(n, {"ms": n + 1}, None))
        done = collect(engine, 8)
        assert sorted(done) == list(range(8))
        assert most_together(done) == 2
    finally:
        engine.cancel()


def test_compiling_ahead_is_bounded_by_cores_by_what_is_worth_it_and_by_the_budget():
    assert [ahead(cores, 1, 60) for cores in (1, 2, 4, 64)] == [1, 2, AHEAD, AHEAD]
    assert [ahead(16, devices, 600) for devices in (1, 4, 8, 32)] == [AHEAD, AHEAD, 2, 1]
    assert [ahead(64, 1, evaluations) for evaluations in (5, 10, 20, 40, 60)] == [1, 1, 1, 3, AHEAD]
    assert ahead(64, 8, 60) == 1


def test_cancelling_twice_is_safe_and_leaves_no_thread():
    engine = LocalEngine(ToyEvaluator(), compile_jobs=2)
    for n in range(50):
        engine.submit(Job(n, {"ms": 1}, None))
    engine.cancel()
    engine.cancel()
    assert not [t for t in threading.enumerate() if t.name.startswith(("evotune-compile", "evotune-measure"))]
