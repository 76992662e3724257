"""Calibrated confidence against draws whose probability is a known power of it."""

from __future__ import annotations

import random

import pytest

from router.confidence import Calibration, worth


@pytest.mark.parametrize("power", [0.4, 1.0, 2.5])
def test_the_exponent_is_found(power: float) -> None:
    rng = random.Random(3)
    learned = Calibration()
    for _ in range(1500):
        sure = [rng.uniform(0.1, 0.99) for _ in range(4)]
        learned.observe(2, sure, [rng.random() < one**power for one in sure])
    assert learned.power(2) == pytest.approx(power, rel=0.3)
    assert learned.power(4) == 1.0


def test_a_bound_on_survival_is_a_bound_on_the_product_of_confidences() -> None:
    learned = Calibration()
    for _ in range(200):
        learned.observe(2, [0.9, 0.5], [True, False])
    sure = [0.9, 0.8, 0.95]
    survival = 1.0
    for one in sure:
        survival *= one ** learned.power(2)
    assert learned.floor(2, survival) == pytest.approx(0.9 * 0.8 * 0.95)
    assert learned.floor(2, 0.0) == 0.0
    assert learned.floor(2, 3.0) == 1.0


def test_confidences_of_nought_and_one_are_taken() -> None:
    learned = Calibration()
    for _ in range(100):
        learned.observe(2, [0.0, 1.0], [True, False])
    assert 0.05 <= learned.power(2) <= 20


def test_leading_tokens_are_worth_verifying_up_to_the_first_that_is_not() -> None:
    assert worth([0.9, 0.5, 0.2, 0.6], 0.4) == 2
    assert worth([0.9, 0.5, 0.9], 0.4) == 3
    assert worth([0.1], 0.3) == 0
    assert worth([], 0.3) == 0


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -1.0])
def test_a_confidence_that_is_no_number_teaches_nothing_for_long(strange: float) -> None:
    learned, other = Calibration(), Calibration()
    for calibration, odd in ((learned, strange), (other, 0.5)):
        calibration.observe(2, [0.9, odd], [True, False])
        for _ in range(200):
            calibration.observe(2, [0.9, 0.5], [True, False])
    assert learned.power(2) == pytest.approx(other.power(2), rel=0.1)
    assert 0 < learned.floor(2, 0.5) < 1
