"""When to learn: rarely while nothing changes, at once when the text does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import DepthRule, Plan
from router.cadence import ENOUGH, LONGEST_MS, PAUSE_MS, Cadence

SEEDS = range(20)


def round_of(accepted: list[int], ms: float = 10.0) -> RoundOutcome:
    rows = tuple(RowOutcome(index, number, 4, (2,) * 4, (0.5,) * 4) for index, number in enumerate(accepted))
    return RoundOutcome(Plan(DepthRule((2,)), (4,) * len(rows)), rows, 100.0, verify_ms=ms)


def play(cadence: Cadence, num_rows: int, rate: float, rounds: int, rng: random.Random) -> list[int]:
    """The rounds after which learning was due. rate: that a token is accepted, if all before it are."""
    due = []
    for turn in range(rounds):
        cadence.observe(round_of([_accepted(rate, rng) for _ in range(num_rows)]))
        if cadence.is_due(num_rows):
            due.append(turn)
            cadence.digested(changed=False)
    return due


def _accepted(rate: float, rng: random.Random) -> int:
    return next((number for number in range(4) if rng.random() > rate), 4)


def rounds_until(
    happens: Callable[[Cadence], bool],
    cadence: Cadence,
    rate: float,
    num_rows: int,
    rng: random.Random,
    ms: float = 0.0,
) -> int:
    for turn in range(1, 200):
        cadence.observe(round_of([_accepted(rate, rng) for _ in range(num_rows)], ms=ms))
        if happens(cadence):
            return turn
    return 200


@pytest.mark.parametrize("num_rows", [1, 8, 32])
def test_learning_waits_for_rounds_and_for_time(num_rows: int) -> None:
    cadence = Cadence(every=12)
    pause = min(PAUSE_MS * num_rows, LONGEST_MS)
    every = {1: 12, 8: 5, 32: 5}[num_rows]
    for _ in range(every):
        assert not cadence.is_due(num_rows)
        cadence.observe(round_of([2] * num_rows, ms=0.9 * pause / every))
    assert not cadence.is_due(num_rows)
    cadence.observe(round_of([2] * num_rows, ms=0.2 * pause))
    assert cadence.is_due(num_rows)


def test_while_nothing_changes_learning_is_rarer() -> None:
    rng = random.Random(1)
    calm, restless = Cadence(1), Cadence(1)
    restless_due = 0
    for _ in range(400):
        restless.observe(round_of([_accepted(0.7, rng)]))
        if restless.is_due(1):
            restless_due += 1
            restless.digested(changed=True)
    assert len(play(calm, 1, 0.7, 400, rng)) < 0.8 * restless_due


@pytest.mark.parametrize(("num_rows", "rounds"), [(1, 40), (8, 8)])
def test_harder_text_surprises_within_few_rounds(num_rows: int, rounds: int) -> None:
    waits = []
    for seed in SEEDS:
        rng, cadence = random.Random(seed), Cadence(12)
        play(cadence, num_rows, 0.75, 150, rng)
        waits.append(rounds_until(lambda own: own.is_surprised, cadence, 0.15, num_rows, rng))
    assert sorted(waits)[len(waits) // 2] <= rounds


@pytest.mark.parametrize("num_rows", [1, 8])
def test_text_that_stays_as_it_is_seldom_surprises(num_rows: int) -> None:
    surprised = 0
    for seed in SEEDS:
        rng, cadence = random.Random(seed), Cadence(12)
        for _ in range(300):
            cadence.observe(round_of([_accepted(0.7, rng) for _ in range(num_rows)], ms=0.0))
            surprised += cadence.is_surprised
    assert surprised < 0.02 * 300 * len(SEEDS)


def test_nothing_surprises_before_enough_is_known() -> None:
    cadence = Cadence(1)
    for accepted in [4] * (ENOUGH // 2) + [0] * (ENOUGH // 2 - 1):
        cadence.observe(round_of([accepted]))
        assert not cadence.is_surprised
    assert play(cadence, 1, 0.0, 0, random.Random(0)) == []


def test_plain_rounds_neither_surprise_nor_calm() -> None:
    cadence = Cadence(1)
    for _ in range(100):
        cadence.observe(RoundOutcome(Plan(None, (0,)), (RowOutcome(0, 0, 0),), 10.0, verify_ms=1.0))
    assert not cadence.is_surprised
    assert cadence.num_rounds == 100


def test_slow_rounds_are_learned_from_sooner() -> None:
    cadence = Cadence(12)
    for expected in (5, 2):
        assert rounds_until(lambda own: own.is_due(8), cadence, 0.7, 8, random.Random(1), ms=200.0) == expected
        cadence.digested(changed=False)
    assert cadence.is_slow
