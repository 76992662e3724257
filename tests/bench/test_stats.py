"""Ratios, choices and bars."""

from __future__ import annotations

import pytest

from bench.stats import Bar, Ratio, Sense, best, halves, paired_ratio


def test_a_ratio_is_taken_pair_by_pair_so_that_drift_cancels() -> None:
    theirs = [100.0, 50.0, 25.0, 400.0, 10.0]
    ratio = paired_ratio([2 * rate for rate in theirs], theirs)
    assert ratio == Ratio(2.0, 2.0, 2.0, 5)


def test_the_interval_holds_most_medians_widens_with_noise_and_repeats_with_the_seed() -> None:
    calm = paired_ratio([1.0, 1.01, 0.99, 1.0, 1.02, 0.98], [1.0] * 6)
    noisy = paired_ratio([1.0, 1.5, 0.5, 1.0, 2.0, 0.2], [1.0] * 6)
    assert calm.low < calm.median < calm.high
    assert noisy.high - noisy.low > 5 * (calm.high - calm.low)
    assert noisy == paired_ratio([1.0, 1.5, 0.5, 1.0, 2.0, 0.2], [1.0] * 6)
    assert noisy != paired_ratio([1.0, 1.5, 0.5, 1.0, 2.0, 0.2, 1.0], [1.0] * 7)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


def test_what_is_chosen_on_one_half_is_measured_on_the_other() -> None:
    lucky, steady = [9.0, 1.0, 9.0, 1.0], [5.0, 5.0, 5.0, 5.0]
    chosen = best({"lucky": halves(lucky)[0], "steady": halves(steady)[0]})
    assert chosen == "lucky"
    assert halves(lucky)[1] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sense", "ratio", "met"),
    [
        ("at least", Ratio(1.5, 1.43, 1.6, 15), True),
        ("at least", Ratio(1.5, 1.42, 1.6, 15), False),  # the interval reaches further than 5 % below
        ("at least", Ratio(1.49, 1.48, 1.6, 15), False),
        ("at most", Ratio(1.5, 1.0, 1.57, 15), True),
        ("at most", Ratio(1.5, 1.0, 1.58, 15), False),
        ("at most", Ratio(1.51, 1.0, 1.52, 15), False),
    ],
)
def test_a_bar_needs_its_median_and_most_of_its_interval(sense: Sense, ratio: Ratio, met: bool) -> None:
    bar = Bar("speed-up", sense, 1.5, ratio)
    assert bar.met is met
    assert bar.as_json()["met"] is met
