"""What each part of the drafter has yet to see of a batch, against counting token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from protocol.plan import SequenceView
from router.costs import CostCurves
from router.lags import Lags
from tests.router.curves import curves

EXITS = (2, 4, 6)


def feeding() -> CostCurves:
    """A token that is fed costs a hundredth of one that is drafted."""
    made = curves()
    assert made.drafter is not None
    draft = made.drafter.draft
    _, depths, unseen, lengths = draft.points
    ms = []
    for at, cost in enumerate(draft.ms):
        depth = depths[at // (len(unseen) * len(lengths)) % len(depths)]
        ms.append(cost + 0.001 * depth * (unseen[at // len(lengths) % len(unseen)] - 1))
    return replace(made, drafter=replace(made.drafter, draft=replace(draft, ms=tuple(ms))))


def row(num_tokens: int, id_: int = 0, num_unseen: int = 1) -> SequenceView:
    return SequenceView(num_tokens, remaining=100, id=id_, num_unseen=num_unseen)


@pytest.mark.parametrize("seed", range(20))
def test_each_exit_catches_up_on_the_tokens_that_its_own_layers_have_not_run(seed: int) -> None:
    rng, costs = random.Random(seed), feeding()
    lags = Lags(costs, EXITS)
    lengths = [rng.randint(50, 400) for _ in range(3)]
    run = {(at, exit_): 0 for at in range(3) for exit_ in EXITS}
    for _ in range(rng.randint(1, 6)):
        depth, drafted = rng.choice(EXITS), rng.sample(range(3), rng.randint(1, 3))
        lags.drafted([row(lengths[at], at) for at in drafted], depth)
        run |= {(at, exit_): lengths[at] for at in drafted for exit_ in EXITS if exit_ <= depth}
        lengths = [length + rng.randint(0, 60) for length in lengths]
    told = lags.catch_up_ms([row(length, at) for at, length in enumerate(lengths)])
    by_hand, total = [], 0.0
    for above, exit_ in zip((0, *EXITS), EXITS, strict=False):
        missing = sum(max(lengths[at] - run[at, exit_], 1) for at in range(3)) / 3
        each = (costs.catch_up_ms(3, exit_, 256) - (costs.catch_up_ms(3, above, 256) if above else 0.0)) / 256
        total += each * missing if missing > 16 else 0.0
        by_hand.append(total)
    assert told == pytest.approx(by_hand)


def test_what_the_pool_has_lost_is_missing_again() -> None:
    lags = Lags(feeding(), EXITS)
    lags.drafted([row(200)], 6)
    assert lags.catch_up_ms([row(203)]) == [0.0, 0.0, 0.0]
    lost = lags.catch_up_ms([row(203, num_unseen=203)])
    assert lost == Lags(feeding(), EXITS).catch_up_ms([row(203)])
    assert 0 < lost[0] < lost[1] < lost[2]


def test_sequences_that_left_are_forgotten_once_they_are_many() -> None:
    lags = Lags(feeding(), EXITS)
    lags.drafted([row(200, id_) for id_ in range(40)], 6)
    lags.keep([row(200, 1), row(200, 2)])
    assert lags.catch_up_ms([row(200, 1)]) == [0.0, 0.0, 0.0]
    assert lags.catch_up_ms([row(200, 7)])[0] > 0
