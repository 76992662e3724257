"""The filter against textbook formulas and numeric integration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.filters import Filter, begin, sigmoid

LEVEL, OFFSETS = 1.0, (0.3, 0.5, 0.1)
ARMS = ((0, 1), (0, 2), (0, 3))


def fresh() -> Filter:
    return begin([0.2, 0.0, 0.1, -0.1], [LEVEL, *OFFSETS], ARMS)


@pytest.mark.parametrize("arm", range(3))
def test_a_value_moves_the_belief_as_the_textbook_says(arm: int) -> None:
    """Of a sum of causes, in information form; what then binds the causes to each other is left out."""
    belief, row = fresh(), np.isin(range(4), ARMS[arm]).astype(float)
    mean, cov = np.array(belief.means), np.diag(belief.variances)
    after = np.linalg.inv(np.linalg.inv(cov) + np.outer(row, row) / 0.2)
    found = belief.measured(arm, 0.7, 0.2)
    assert found.means == pytest.approx(after @ (np.linalg.inv(cov) @ mean + row * 0.7 / 0.2))
    assert found.variances == pytest.approx(after.diagonal())


@pytest.mark.parametrize("seed", range(10))
def test_what_is_seen_again_and_again_is_believed(seed: int) -> None:
    rng, belief = np.random.default_rng(seed), fresh()
    truth = rng.normal(0, LEVEL) + rng.normal(0, OFFSETS)
    for _ in range(300):
        arm = int(rng.integers(3))
        belief = belief.measured(arm, float(truth[arm] + rng.normal(0, 0.3)), 0.09)
    assert belief.values == pytest.approx(truth.tolist(), abs=0.15)


@pytest.mark.parametrize(("successes", "trials"), [(3, 4), (5, 8), (20, 40), (1, 1), (60, 100)])
def test_counts_move_log_odds_about_to_the_most_likely_ones(successes: int, trials: int) -> None:
    belief = fresh()
    before, doubt = belief.value(1), belief.doubt(1)
    odds = np.linspace(-8, 8, 160_001)
    rates = 1 / (1 + np.exp(-odds))
    likely = (
        -((odds - before) ** 2) / (2 * doubt**2) + successes * np.log(rates) + (trials - successes) * np.log1p(-rates)
    )
    after = belief.counted(1, successes, trials)
    assert after.value(1) == pytest.approx(odds[likely.argmax()], abs=0.1)
    assert after.doubt(1) < doubt
    assert (after.value(0) - belief.value(0)) * (after.value(1) - before) >= 0  # the level is shared


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.9, 0.98])
def test_rates_far_from_what_was_guessed_are_learned_from_counts(rate: float) -> None:
    rng, belief = np.random.default_rng(1), fresh()
    for _ in range(200):
        belief = belief.counted(0, float(rng.binomial(12, rate)), 12)
    assert sigmoid(belief.value(0)) == pytest.approx(rate, abs=0.03)


def test_what_one_arm_shows_tells_more_of_itself_than_of_another() -> None:
    belief = fresh()
    after = belief.counted(0, 0, 50)
    assert after.value(0) < after.value(2) < belief.value(2)
    assert after.doubt(0, 0) == 0.0
    assert after.doubt(1, 0) < after.doubt(1)
    assert after.doubt(1, 0) == pytest.approx(math.hypot(OFFSETS[1], math.sqrt(after.variances[1])))


def test_what_one_arm_shows_tells_more_of_those_that_share_a_cause_with_it() -> None:
    belief = begin([0.0] * 5, [0.1, 0.5, 0.2, 0.2, 0.2], ((0, 1, 2), (0, 1, 3), (0, 4)))
    for _ in range(30):
        belief = belief.measured(0, 1.0, 0.01)
    assert belief.value(0) == pytest.approx(1.0, abs=0.1)
    assert belief.value(1) > 0.7 > 0.2 > belief.value(2) > 0


def test_a_hiccup_is_no_change_and_what_lasts_is_one() -> None:
    steady = begin([0.0, 0.0], [0.3, 0.1], ((0, 1),))
    for _ in range(500):
        steady = steady.decayed(0.001).measured(0, 0.0, 0.01)
    assert steady.measured(0, 5.0, 0.01).value(0) < 0.05
    slower = steady
    for _ in range(60):
        slower = slower.decayed(0.001).measured(0, 1.6, 0.01)
    assert slower.value(0) == pytest.approx(1.6, abs=0.1)


def test_belief_gives_way_to_what_is_usual_and_the_first_cause_sooner_if_so_told() -> None:
    belief = fresh().counted(0, 0, 60)
    kept, left = belief.decayed(1e-9), belief.decayed(40.0)
    assert kept.variances == pytest.approx(belief.variances)
    assert left.means == pytest.approx(belief.usual)
    assert left.variances == pytest.approx(belief.spread)
    level = belief.decayed(1e-9, 40.0)
    assert level.means[0] == pytest.approx(belief.usual[0])
    assert level.means[1:] == pytest.approx(belief.means[1:])


def test_what_is_believed_for_long_becomes_usual() -> None:
    belief = fresh().measured(0, 2.0, 0.01)
    settled = belief.decayed(1e-9, settled=0.25)
    assert settled.usual[0] == pytest.approx(belief.usual[0] + 0.25 * (belief.means[0] - belief.usual[0]))
    assert settled.usual[1:] == belief.usual[1:]
