"""The filter against textbook formulas and numeric integration."""

from __future__ import annotations

import numpy as np
import pytest

from router.filters import Filter, Floats, begin, sigmoid

LEVEL, OFFSETS = 1.0, (0.3, 0.5, 0.1)


def fresh() -> Filter:
    return begin([0.2, 0.0, 0.1, -0.1], [LEVEL, *OFFSETS])


def textbook(mean: Floats, cov: Floats, arm: int, value: float, variance: float) -> tuple[Floats, Floats]:
    """Of an observation of level + offset, in information form."""
    row = np.zeros(len(mean))
    row[[0, 1 + arm]] = 1.0
    inverse = np.linalg.inv(cov)
    after = np.linalg.inv(inverse + np.outer(row, row) / variance)
    return after @ (inverse @ mean + row * value / variance), after


@pytest.mark.parametrize("seed", range(10))
def test_values_move_the_belief_as_the_textbook_says(seed: int) -> None:
    rng, belief = np.random.default_rng(seed), fresh()
    mean, cov = belief.mean, belief.cov
    for _ in range(12):
        arm, variance = int(rng.integers(3)), float(rng.uniform(0.05, 0.5))
        value = float(mean[0] + mean[1 + arm] + rng.normal(0, 0.3))  # within what is clipped
        belief = belief.measured(arm, value, variance)
        mean, cov = textbook(mean, cov, arm, value, variance)
    assert belief.mean == pytest.approx(mean)
    assert belief.cov == pytest.approx(cov)


@pytest.mark.parametrize(("successes", "trials"), [(3, 4), (0, 2), (20, 40), (1, 1), (90, 100)])
def test_counts_move_log_odds_to_the_most_likely_ones(successes: int, trials: int) -> None:
    belief = fresh()
    before, doubt = float(belief.arms[1]), float(belief.doubts(None)[1])
    odds = np.linspace(-8, 8, 160_001)
    rates = sigmoid(odds)
    likely = (
        -((odds - before) ** 2) / (2 * doubt**2) + successes * np.log(rates) + (trials - successes) * np.log1p(-rates)
    )
    after = belief.counted(1, successes, trials)
    assert float(after.arms[1]) == pytest.approx(odds[likely.argmax()], abs=0.02)
    assert float(after.doubts(None)[1]) < doubt
    assert (float(after.arms[0]) - float(belief.arms[0])) * (float(after.arms[1]) - before) > 0  # the level is shared


def test_what_one_arm_shows_tells_more_of_itself_than_of_another() -> None:
    belief = fresh()
    after = belief.counted(0, 0, 50)
    assert after.arms[0] < after.arms[2] < belief.arms[2]
    assert after.doubts(0)[0] == 0.0
    assert after.doubts(0)[1] < after.doubts(None)[1]


def test_what_one_arm_shows_tells_more_of_those_that_are_related_to_it() -> None:
    belief = begin([0.0] * 4, [0.1, 0.2, 0.2, 0.2], related=(0, 1), relation=0.5)
    for _ in range(30):
        belief = belief.measured(0, 1.0, 0.01)
    assert belief.arms[0] == pytest.approx(1.0, abs=0.1)
    assert belief.arms[1] > 0.7 > 0.2 > belief.arms[2] > 0


def test_a_hiccup_is_no_change_and_what_lasts_is_one() -> None:
    steady = begin([0.0, 0.0], [0.3, 0.1])
    for _ in range(50):
        steady = steady.decayed(0.001).measured(0, 0.0, 0.01)
    hiccup = steady.measured(0, 2.0, 0.01)
    assert (hiccup.num_changes, float(hiccup.arms[0]) < 0.05) == (0, True)
    slower = steady
    for _ in range(6):
        slower = slower.decayed(0.001).measured(0, 0.7, 0.01)
    assert slower.num_changes >= 1
    assert float(slower.arms[0]) == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_seldom_taken_for_a_change(seed: int) -> None:
    rng, belief = np.random.default_rng(seed), begin([0.0, 0.0], [1.0, 0.2])
    for _ in range(1000):
        belief = belief.decayed(0.001).counted(0, float(rng.binomial(8, 0.7)), 8)
    assert belief.num_changes <= 2
    assert float(sigmoid(belief.arms)[0]) == pytest.approx(0.7, abs=0.06)


def test_belief_gives_way_to_the_prior_and_the_level_sooner_if_so_told() -> None:
    belief = fresh().counted(0, 0, 60)
    kept, left = belief.decayed(1e-9), belief.decayed(40.0)
    assert kept.cov == pytest.approx(belief.cov)
    assert left.mean == pytest.approx(belief.prior)
    assert left.cov == pytest.approx(belief.spread, abs=1e-9)
    level = belief.decayed(1e-9, 40.0)
    assert level.mean[0] == pytest.approx(belief.prior[0])
    assert level.mean[1:] == pytest.approx(belief.mean[1:])
