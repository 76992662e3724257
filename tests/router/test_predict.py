"""Corrections: a machine that differs from its profile is predicted after a few rounds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import DepthRule, Plan
from router.predict import WAIT_HALF_LIFE_MS, Predictor
from router.tables import tables
from tests.router.curves import curves

RULES = (DepthRule((2,)), DepthRule((6,)))


def outcome(lengths: list[int], draft: float, verify: float, rest: float = 0.1, **more: object) -> RoundOutcome:
    rows = tuple(RowOutcome(i, 0, n, (2,) * n, (0.5,) * n) for i, n in enumerate(lengths))
    plan = Plan(RULES[0] if any(lengths) else None, tuple(lengths))
    return RoundOutcome(plan, rows, 100.0, draft, verify_ms=verify, rest_ms=rest, **more)


@pytest.mark.parametrize("seed", range(5))
def test_held_back_rounds_are_predicted_within_a_tenth_after_the_machine_changed(seed: int) -> None:
    rng = random.Random(seed)
    true = Predictor(tables(curves(overhead=0.2), RULES, 8, 8))
    made = Predictor(tables(curves(overhead=0.2), RULES, 8, 8))
    slow, errors = rng.uniform(0.6, 1.8), []
    for turn in range(120):
        lengths = [rng.randint(0, 6) for _ in range(rng.choice((1, 4, 8)))]
        rule = 0 if any(lengths) else None
        real = true.round(rule, lengths, 100.0)
        noise = rng.uniform(0.9, 1.1)
        if turn >= 100:
            errors.append(abs(made.round(rule, lengths, 100.0).total_ms / (real.total_ms * slow) - 1))
        else:
            seen = outcome(lengths, real.draft_ms * slow * noise, real.verify_ms * slow * noise, real.other_ms * slow)
            made.observe([(seen, rule)])
    assert sorted(errors)[len(errors) // 2] < 0.1


def test_one_hiccup_hardly_moves_a_prediction() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    real = made.round(None, [0], 100.0).total_ms
    for _ in range(20):
        made.observe([(outcome([0], 0, real), None)])
    made.observe([(outcome([0], 0, 500 * real), None)])
    assert made.round(None, [0], 100.0).total_ms < 1.2 * real


def test_a_pass_that_carries_a_prompt_teaches_nothing_of_passes() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    before = made.round(None, [0], 100.0)
    made.observe([(outcome([0], 0, 50.0, num_prefill_tokens=64), None)])
    assert made.round(None, [0], 100.0) == before


def test_a_draft_beside_a_prompt_teaches_nothing_of_drafting() -> None:
    """The pool runs that prompt too."""
    made = Predictor(tables(curves(), RULES, 8, 8))
    before = made.draft_ms(0, [4, 4])
    for _ in range(20):
        made.observe([(outcome([4, 4], 9 * before, 1.0, num_prefill_tokens=64), 0)])
    assert made.draft_ms(0, [4, 4]) == before


def test_the_first_round_of_another_rule_teaches_nothing_of_drafting() -> None:
    """Its layers catch up."""
    made = Predictor(tables(curves(), RULES, 8, 8))
    usual, verify = [made.draft_ms(rule, [4, 4]) for rule in (0, 1)], made.verify_ms(2, 10, 100.0)
    for rule in (0, 1) * 20:
        made.observe([(outcome([4, 4], 5 * usual[rule], verify), rule)])
    assert [made.draft_ms(rule, [4, 4]) for rule in (0, 1)] == usual


def test_the_first_round_in_turn_after_others_ahead_teaches_nothing_of_drafting() -> None:
    """The pool had branches to draft."""
    made = Predictor(tables(curves(), RULES, 8, 8))
    usual, verify = made.draft_ms(0, [4, 4]), made.verify_ms(2, 10, 100.0)
    made.observe([(outcome([4, 4], usual, verify), 0)])
    for overlap in ("mirror", "") * 20:
        seen = outcome([4, 4], 5 * usual, verify)
        made.observe([(replace(seen, plan=replace(seen.plan, overlap=overlap)), 0)])
    assert made.draft_ms(0, [4, 4]) == usual


def test_a_hiccup_of_drafting_is_forgotten_while_nothing_is_drafted() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    usual, verify = made.draft_ms(0, [4, 4]), made.verify_ms(2, 10, 100.0)
    for _ in range(4):
        made.observe([(outcome([4, 4], 4 * usual, verify), 0)])
    after = made.draft_ms(0, [4, 4])
    for _ in range(40):
        made.observe([(outcome([0, 0], 0.0, made.verify_ms(2, 2, 100.0)), None)])
    assert after > 1.5 * usual
    assert made.draft_ms(0, [4, 4]) == pytest.approx(usual, rel=0.05)


def test_waiting_is_followed_and_fades_while_nothing_is_asked() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    for _ in range(40):
        made.observe([(outcome([2], 5.0, 1.0, wait_ms=4.0), 0)])
    assert made.wait_ms == pytest.approx(4.0, rel=0.01)
    for _ in range(20):
        made.observe([(outcome([0], 0, WAIT_HALF_LIFE_MS / 20, rest=0.0), None)])
    assert made.wait_ms == pytest.approx(2.0, rel=0.01)


def test_a_pool_that_does_not_answer_costs_the_time_that_was_spent_on_it() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    for _ in range(40):
        made.observe([(outcome([2], 50.0, 1.0, answered=False), None)])
    assert made.wait_ms == pytest.approx(50.0, rel=0.01)


def test_drafts_that_were_made_ahead_teach_nothing_of_drafting() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    before = made.draft_ms(0, [4, 4])
    for _ in range(20):
        made.observe([(outcome([4, 4], 0.01, made.verify_ms(2, 10, 100.0), ahead=True), 0)])
    assert made.draft_ms(0, [4, 4]) == before


def test_what_is_known_of_wide_passes_is_believed_of_plain_ones() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    before = made.verify_ms(2, 2, 100.0)
    for _ in range(60):
        made.observe([(outcome([4, 4], made.draft_ms(0, [4, 4]), 2 * made.tables.curves.verify_ms(2, 10, 100.0)), 0)])
    assert made.verify_ms(2, 2, 100.0) == pytest.approx(2 * before, rel=0.05)


def test_a_hiccup_of_a_rule_is_forgotten_while_others_draft() -> None:
    made = Predictor(tables(curves(), RULES, 8, 8))
    lengths = [4, 4]
    usual, verify = made.draft_ms(1, lengths), made.verify_ms(2, 10, 100.0)
    deep = Plan(RULES[1], tuple(lengths))
    rows = tuple(RowOutcome(i, 0, 4, (6,) * 4, (0.5,) * 4) for i in range(2))
    for _ in range(10):
        made.observe([(RoundOutcome(deep, rows, 100.0, 3 * usual, verify_ms=verify, rest_ms=0.1), 1)])
    after = made.draft_ms(1, lengths) / made.draft_ms(0, lengths)
    for _ in range(150):
        made.observe([(outcome(lengths, made.draft_ms(0, lengths), verify), 0)])
    later = made.draft_ms(1, lengths) / made.draft_ms(0, lengths)
    profiled = made.tables.curves.draft_ms(2, 6, 4) / made.tables.curves.draft_ms(2, 2, 4)
    assert after > 1.5 * profiled
    assert later == pytest.approx(profiled, rel=0.05)
