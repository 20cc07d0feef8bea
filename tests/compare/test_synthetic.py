from statistics import mean, stdev

import pytest

from evotune.compare import synthetic
from evotune.compare.runs import evaluator_of, open_space
from evotune.replay import FIDELITY, ReplayEvaluator

SPACE = synthetic.space()
CONFIGS = [SPACE.config(i) for i in range(SPACE.cardinality)]


def steps(config):
    """Neighbours one value away in one parameter."""
    here = SPACE.key(config)
    return [
        n for n in SPACE.neighbors(config) if sum(abs(a - b) for a, b in zip(here, SPACE.key(n), strict=True)) == 1
    ]


def test_the_one_optimum_is_where_it_is_said_to_be():
    assert len(CONFIGS) == 2500
    ranked = sorted(CONFIGS, key=synthetic.latency_ms)
    assert ranked[0] == synthetic.OPTIMUM
    assert synthetic.latency_ms(ranked[0]) == synthetic.OPTIMUM_MS < synthetic.latency_ms(ranked[1])


def test_there_are_several_valleys_that_a_descent_does_not_leave():
    valleys = [c for c in CONFIGS if all(synthetic.latency_ms(n) > synthetic.latency_ms(c) for n in steps(c))]
    assert synthetic.OPTIMUM in valleys
    assert len(valleys) == 4


def test_the_recording_replays_the_true_latencies_and_says_that_nothing_was_measured():
    recording = open_space("synthetic")
    evaluator = ReplayEvaluator(recording)
    assert "nothing was measured" in evaluator.device.name
    for config in CONFIGS[::97]:
        assert evaluator.measure(config, FIDELITY).latency_ms == synthetic.latency_ms(config)
    assert recording.hash == open_space("synthetic").hash


def test_what_a_formula_says_is_never_called_a_timing():
    measured = synthetic.SyntheticEvaluator(0).measure(synthetic.OPTIMUM, synthetic.FIDELITIES[0])
    assert measured.provenance == "synthetic"
    assert evaluator_of(open_space("synthetic"), 0).provenance == "synthetic"
    assert evaluator_of(open_space("conv_A100"), 0).provenance == "replayed"


def test_noise_falls_with_the_fidelity_and_is_fixed_by_the_seed():
    def errors(seed, fidelity):
        evaluator = synthetic.SyntheticEvaluator(seed)
        return [evaluator.measure(c, fidelity).latency_ms / synthetic.latency_ms(c) - 1 for c in CONFIGS[::10]]

    low, medium, high = synthetic.FIDELITIES
    spreads = [stdev(errors(0, f)) for f in (low, medium, high)]
    assert spreads[0] > 1.4 * spreads[1] > 1.4**2 * spreads[2] > 0
    assert mean(errors(0, high)) == pytest.approx(0, abs=0.003)
    assert errors(1, low) == errors(1, low) != errors(2, low)


def test_samples_spread_as_much_as_the_error_that_they_claim():
    evaluator = synthetic.SyntheticEvaluator(3)
    high = synthetic.FIDELITIES[-1]
    claimed = mean(evaluator.measure(c, high).relative_error for c in CONFIGS[::25])
    actual = stdev(evaluator.measure(c, high).latency_ms / synthetic.latency_ms(c) for c in CONFIGS[::25])
    assert claimed == pytest.approx(actual, rel=0.3)
