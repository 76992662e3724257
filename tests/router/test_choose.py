"""Budgets against all budgets, on costs made by hand."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from protocol.plan import DepthRule
from router.choose import best, evaluate, off, survivals
from router.predict import Predictor
from router.tables import tables
from tests.router.curves import curves, draft_cost, verify_cost

RULES = tuple(DepthRule((exit_,)) for exit_ in (2, 4, 6))


def predictor(length: int = 3, max_rows: int = 8, **costs: float) -> Predictor:
    return Predictor(tables(curves(**costs), RULES, length, max_rows))


def test_a_round_costs_what_the_curves_say() -> None:
    made = predictor(length=5)
    for rule, lengths in ((0, [3]), (1, [5, 5, 5]), (2, [1] * 8)):
        rows, length = len(lengths), lengths[0]
        cost = made.round(rule, lengths, context=200)
        assert cost.draft_ms == pytest.approx(draft_cost(rows, RULES[rule].exits[0], length))
        assert cost.verify_ms == pytest.approx(verify_cost(rows, rows * (1 + length)))


def test_a_ragged_round_pays_at_each_position_for_the_rows_that_get_there() -> None:
    made = predictor(length=4)
    by_hand = sum(draft_cost(sum(length > j for length in (4, 1, 2)), 2, 1) for j in range(4))
    assert made.draft_ms(0, [4, 1, 2]) == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(30))
def test_the_budget_is_the_best_of_all_budgets(seed: int) -> None:
    rng = random.Random(seed)
    made = predictor(token=rng.uniform(0.02, 0.5), layer=rng.uniform(0.01, 0.2), row=rng.uniform(0.0, 0.05))
    rows, rule = rng.randint(1, 4), rng.randrange(3)
    hazards = np.asarray([rng.uniform(0.2, 0.95)] * 3)
    survival = survivals(
        hazards, [rng.uniform(0.5, 1.2) for _ in range(rows)], [rng.randint(0, 3) for _ in range(rows)]
    )
    if not survival.any():
        survival[0, 0] = 0.5
    chosen = best(made, np.stack([survival] * 3), context=100)[rule]
    arms = [
        evaluate(made, rule, survival, lengths, context=100)
        for lengths in product(range(4), repeat=rows)
        if any(lengths) and all(survival[row, length - 1] > 0 for row, length in enumerate(lengths) if length)
    ]
    assert chosen.goodput == pytest.approx(max(arm.goodput for arm in arms), rel=1e-3)
    assert evaluate(made, rule, survival, chosen.lengths, 100).goodput == pytest.approx(chosen.goodput, rel=1e-3)


def test_tokens_go_to_the_sequences_that_are_likelier_to_keep_them() -> None:
    survival = survivals(np.asarray([0.8] * 3), [0.5, 3.0], [3, 3])
    chosen = best(predictor(), survival[None], context=100)[0]
    assert chosen.lengths[0] > chosen.lengths[1]


def test_no_sequence_is_given_more_than_it_has_room_for() -> None:
    survival = survivals(np.asarray([0.99] * 3), [1.0] * 4, [0, 1, 2, 3])
    assert all(a <= b for a, b in zip(best(predictor(), survival[None], 100)[0].lengths, (0, 1, 2, 3), strict=True))


def test_off_costs_a_plain_step() -> None:
    arm = off(predictor(overhead=0.5), 4, context=100)
    assert (arm.rule, arm.lengths, arm.tokens) == (None, (0,) * 4, 4.0)
    assert arm.round_ms == pytest.approx(verify_cost(4, 4) + 0.5)


def test_a_busy_pool_makes_a_round_longer_and_off_does_not_pay_for_it() -> None:
    made = predictor()
    before = made.round(0, [2], 100).total_ms, off(made, 1, 100).round_ms
    made.wait_ms = 3.0
    assert made.round(0, [2], 100).total_ms == pytest.approx(before[0] + 3)
    assert off(made, 1, 100).round_ms == pytest.approx(before[1])


@pytest.mark.parametrize("seed", range(10))
def test_a_step_is_paid_when_any_draft_gets_there_for_those_that_do(seed: int) -> None:
    """Against rounds that are drawn, drafts stopped at random."""
    rng, made = np.random.default_rng(seed), predictor(length=4, row=0.05, layer=0.2)
    reach = np.cumprod(rng.uniform(0.5, 1.0, (3, 4)), axis=1)
    survival = np.minimum(survivals(reach, rng.uniform(0.6, 1.2, 6).tolist(), [4] * 6), reach[:, None, :])
    for rule, arm in enumerate(best(made, survival, 100, drafted=reach)):
        drawn = []
        for _ in range(2000):
            goes_on = rng.random((6, 4)) < reach[rule] / np.concatenate([[1.0], reach[rule, :-1]])
            stops = np.cumprod(goes_on, axis=1).sum(axis=1)
            drawn.append(made.draft_ms(rule, np.minimum(stops, arm.lengths).tolist()))
        verified = 6 + sum(reach[rule, :length].sum() for length in arm.lengths)
        by_hand = np.mean(drawn) + np.interp(verified, *made.verify_line(6, 100, wide=True))
        assert arm.round_ms == pytest.approx(by_hand, rel=0.02)
