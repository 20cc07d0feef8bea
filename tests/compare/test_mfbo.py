"""The multi-fidelity search in comparisons."""

import math

from evotune.baselines import RandomSearch
from evotune.compare import methods, synthetic
from evotune.compare.mfbo_pattern import MfboPatternSearch
from evotune.compare.runs import evaluator_of, open_space, run_search
from evotune.proposers import Feedback


def ranks(search, n):
    found = []
    for number in range(n):
        found.append(search.ask(()))
        loss = math.log(synthetic.latency_ms(found[-1].config))
        search.tell([Feedback(number, found[-1], loss, 1e-5, found[-1].fidelity_rank or 3)])
    return [c.fidelity_rank for c in found], found


class Told(RandomSearch):
    """Remembers what it is told."""

    def tell(self, feedback):
        self.heard = [*getattr(self, "heard", []), *feedback]
        super().tell(feedback)


def test_searches_of_the_synthetic_landscape_are_told_noise_and_judged_without_it():
    recording = open_space("synthetic")
    search = Told(recording.space, 0)
    run = run_search(recording, "told", lambda *_: search, 42, 20)
    errors = [f.loss - math.log(synthetic.latency_ms(f.config)) for f in search.heard]
    assert all(0 < abs(error) < 0.05 for error in errors)
    assert {f.fidelity_rank for f in search.heard} == {3}
    assert all(ms == synthetic.latency_ms(config) for config, ms in run.evaluations)


def test_the_multi_fidelity_search_has_the_ladder_of_the_synthetic_landscape():
    recording = open_space("synthetic")
    run = run_search(recording, "mfbo", methods.factory("mfbo"), 42, 60)
    again = [
        config for i, (config, _) in enumerate(run.evaluations) if config in [c for c, _ in run.evaluations[:i]]
    ]
    assert again
    assert all(ms == synthetic.latency_ms(config) for config, ms in run.evaluations)


def test_a_recording_is_replayed_as_it_is_and_measured_once_each():
    recording = open_space("conv_A100")
    assert len(evaluator_of(recording, 0).fidelities) == 1
    for method in ("mfbo", "mfbo-pattern"):
        run = run_search(recording, method, methods.factory(method), 0, 70)
        assert len({recording.space.key(config) for config, _ in run.evaluations}) == 70
        assert all(ms == recording.row(config).time_ms for config, ms in run.evaluations)


def test_the_schedule_is_followed_by_pattern_search_from_its_best():
    search = MfboPatternSearch(synthetic.space(), 1, ranks=[1, 2, 3], evaluations=200)
    found, candidates = ranks(search, 90)
    handed_over = found.index(None)
    assert 30 < handed_over <= 54
    assert set(found[:handed_over]) == {1, 2, 3}
    assert set(found[handed_over:]) == {None}
    first = candidates[handed_over]
    best = min(range(handed_over), key=lambda n: synthetic.latency_ms(candidates[n].config))
    assert first.origin == "mutation"
    assert candidates[first.parent].config == candidates[best].config
