"""What a surrogate makes of measurements from elsewhere."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from evotune.errors import UsageError
from evotune.space import ConfigSpace
from evotune.surrogate import Source, Surrogate
from evotune.surrogate.features import Encoding
from evotune.surrogate.kernel import Prior, matern52
from evotune.surrogate.nearby import PRIOR_SHARE
from evotune.surrogate.source import Guide
from evotune.surrogate.view import FAILED_ELSEWHERE

SPACE = ConfigSpace.from_dict(
    {"tile": [8, 16, 32, 64, 128, 256], "unroll": [1, 2, 4, 8], "warps": [1, 2, 4, 8], "layout": ["nn", "nt"]},
    ["tile * unroll <= 1024"],
)
EVERYTHING = [SPACE.config(i) for i in range(SPACE.cardinality)]


def here(config) -> float:
    t, u, w = (math.log2(config[k]) for k in ("tile", "unroll", "warps"))
    return 0.3 * abs(t - 6) + 0.2 * (u - 2) ** 2 + 0.1 * (w - 1) ** 2 + 0.4 * (config["layout"] == "nn")


def elsewhere(config) -> float:
    """Twice as slow, with another best number of warps."""
    t, u, w = (math.log2(config[k]) for k in ("tile", "unroll", "warps"))
    return 0.7 + 0.25 * abs(t - 6) + 0.2 * (u - 2) ** 2 + 0.1 * (w - 2) ** 2 + 0.5 * (config["layout"] == "nn")


def evaluations_to_the_best(source: Source | None, seed: int) -> int:
    """Of the default, an opening if there is no source, and then the surrogate's choices."""
    surrogate = Surrogate(SPACE, seed=seed, source=source)
    best, n = min(map(here, EVERYTHING)), 0
    opening = [SPACE.default] if source else [SPACE.default, *surrogate.start(8, given=[SPACE.default])]
    while True:
        config = opening.pop(0) if opening else surrogate.suggest(1)[0]
        n += 1
        surrogate.observe(config, here(config))
        if here(config) == best:
            return n


def source(loss=elsewhere, configs=EVERYTHING) -> Source:
    return Source.of(SPACE, [(c, loss(c)) for c in configs])


def guide(of: Source) -> Guide:
    encoding = Encoding(SPACE, SPACE.keys)
    return Guide(of, encoding, Prior.additive(encoding.dimensions), matern52)


def test_a_source_saves_evaluations():
    warm = [evaluations_to_the_best(source(), seed) for seed in range(2)]
    cold = [evaluations_to_the_best(None, seed) for seed in range(2)]
    assert max(warm) < min(cold)


def test_a_source_that_says_the_opposite_or_nothing_costs_few_evaluations():
    cold = np.mean([evaluations_to_the_best(None, seed) for seed in range(2)])
    shuffled = dict(zip(map(str, EVERYTHING), Random(0).sample(EVERYTHING, len(EVERYTHING)), strict=True))
    for lie in (lambda c: -elsewhere(c), lambda c: elsewhere(shuffled[str(c)])):
        assert np.mean([evaluations_to_the_best(source(lie), seed) for seed in range(2)]) < cold + 12


def test_agreement_is_expected_first_and_then_measured():
    truth = guide(source(here))
    keys = np.array([SPACE.key(c) for c in Random(1).sample(EVERYTHING, 40)])
    losses = np.array([here(SPACE.from_key(k)) for k in keys])
    first = truth.agreement(keys[:1], losses[:1])
    assert first > 0.5
    assert truth.agreement(keys, losses) > 0.95
    assert first > truth.agreement(keys[:4], -losses[:4]) > truth.agreement(keys, -losses) == 0.0
    noise = np.random.default_rng(0).standard_normal(40)
    assert truth.agreement(keys, noise) < 0.4


def test_a_surrogate_tells_the_agreement_once_something_was_measured():
    surrogate = Surrogate(SPACE, seed=0, source=source())
    assert surrogate.agreement is None
    surrogate.observe(SPACE.default, None)
    assert surrogate.agreement is None, "a failure agrees with nothing"
    for config in Random(1).sample(EVERYTHING, 12):
        surrogate.observe(config, here(config))
    assert surrogate.agreement > 0.5
    cold = Surrogate(SPACE, seed=0)
    cold.observe(SPACE.default, 1.0)
    assert cold.agreement is None


def test_what_the_source_did_not_measure_is_predicted():
    kept = Random(3).sample(EVERYTHING, 90)
    rest = [c for c in EVERYTHING if c not in kept]
    expected = guide(source(configs=kept)).expect(np.array([SPACE.key(c) for c in rest]))
    assert np.corrcoef(expected, [elsewhere(c) for c in rest])[0, 1] > 0.9


def test_parameters_of_one_side_only_do_not_matter():
    larger = [{**c, "stages": s} for c in EVERYTHING for s in (1, 2)]
    averaged = Source.of(SPACE, [(c, elsewhere(c) + 0.1 * c["stages"]) for c in larger])
    keys = SPACE.keys
    np.testing.assert_allclose(guide(averaged).expect(keys), guide(source()).expect(keys), atol=1e-9)
    smaller = [{k: v for k, v in c.items() if k != "warps"} for c in EVERYTHING if c["warps"] == 1]
    partial = guide(Source.of(SPACE, [(c, elsewhere({**c, "warps": 1})) for c in smaller]))
    same = [SPACE.key({"tile": 64, "unroll": 2, "warps": w, "layout": "nt"}) for w in (1, 2, 4, 8)]
    assert len(set(partial.expect(np.array(same)))) == 1


def test_values_that_the_space_lacks_are_left_out():
    trials = [(c, elsewhere(c)) for c in EVERYTHING] + [({**EVERYTHING[0], "tile": 512}, 9.0)]
    assert len(Source.of(SPACE, trials).loss) == len(EVERYTHING)


def test_too_little_in_common_is_refused_with_what_was_found_and_wanted():
    with pytest.raises(UsageError, match=r"no parameter in common: it has \['x'\], wanted .*'tile'"):
        Source.of(SPACE, [({"x": 1}, 1.0)])
    with pytest.raises(UsageError, match=r"3 of its configurations ran .* 4 are wanted"):
        Source.of(SPACE, [(c, elsewhere(c)) for c in EVERYTHING[:3]] + [(c, None) for c in EVERYTHING[3:]])


def test_favourites_are_good_and_apart():
    surrogate = Surrogate(SPACE, seed=0, source=source())
    found = surrogate.favourites_elsewhere(4)
    order = sorted(EVERYTHING, key=elsewhere)
    assert found[0] == order[0]
    assert all(c in order[:30] for c in found)
    points = SPACE.encode(found)
    nearest = (((points[:, None] - points[None]) ** 2).sum(2) + 9 * np.eye(4)).min()
    top = SPACE.encode(order[:4])
    assert nearest > (((top[:, None] - top[None]) ** 2).sum(2) + 9 * np.eye(4)).min()


def test_what_failed_elsewhere_is_less_likely_to_be_tried():
    best = min(EVERYTHING, key=elsewhere)
    failing = Source.of(SPACE, [(c, None if c == best else elsewhere(c)) for c in EVERYTHING])
    assert failing.failed(np.array([SPACE.key(best), SPACE.key(SPACE.default)])).tolist() == [True, False]

    def score(of: Source) -> float:
        surrogate = Surrogate(SPACE, seed=0, source=of)
        for config in Random(1).sample([c for c in EVERYTHING if c != best], 10):
            surrogate.observe(config, here(config))
        return float(surrogate.score([best])[0])

    never_tried = Source.of(SPACE, [(c, elsewhere(c)) for c in EVERYTHING if c != best])
    assert score(never_tried) == pytest.approx(score(failing) - math.log(FAILED_ELSEWHERE), abs=1e-3)
    assert 0 < FAILED_ELSEWHERE * PRIOR_SHARE < 1


def test_losses_of_another_level_and_scale_do_not_matter():
    plain = Surrogate(SPACE, seed=0, source=source())
    scaled = Surrogate(SPACE, seed=0, source=source(lambda c: elsewhere(c) + 50))
    for config in Random(2).sample(EVERYTHING, 9):
        plain.observe(config, here(config))
        scaled.observe(config, here(config) - 7)
    assert plain.suggest(3) == scaled.suggest(3)
