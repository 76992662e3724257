"""What is told of the router against the router itself, and against arithmetic."""

from __future__ import annotations

import json
import random

import pytest

from protocol.plan import DepthRule
from router.choose import evaluate, survivals
from router.explain import Option, constant_hazards, describe, options, rule_name
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed, Off, Table
from router.predict import Predictor
from router.tables import tables
from tests.router.curves import curves, draft_cost, verify_cost
from tests.router.game import Game

EXITS = (2, 4, 6)
RULES = (*(DepthRule((exit_,)) for exit_ in EXITS), DepthRule(EXITS, (0.5, 0.5)))
LENGTH = 6


def predictor(**costs: float) -> Predictor:
    return Predictor(tables(curves(**costs), RULES, LENGTH, 16), linked=True)


def lines(rate: float = 0.7, num_rows: int = 4, room: int = LENGTH, **costs: float) -> tuple[Option, ...]:
    hazards = constant_hazards(RULES, LENGTH, {2: rate, 6: min(rate + 0.1, 1.0)})
    return options(predictor(**costs), hazards, num_rows, 200.0, room)


def test_every_rule_is_told_at_every_length_with_its_best_budget_and_off_comes_first() -> None:
    off, *others = lines()
    assert (off.rule, off.lengths, off.budget) == (None, (0,) * 4, False)
    uniform = [(option.rule, option.lengths) for option in others if not option.budget]
    assert uniform == [(rule, (length,) * 4) for rule in RULES for length in range(1, LENGTH + 1)]
    assert [option.rule for option in others if option.budget] == [*RULES]
    assert sum(option.chosen for option in (off, *others)) == 1


def test_a_line_is_what_arithmetic_says() -> None:
    found = lines(rate=0.7, num_rows=4, link=0.3, overhead=0.2)
    (line,) = (each for each in found if (each.rule, each.lengths, each.budget) == (DepthRule((4,)), (3,) * 4, False))
    assert line.cost.draft_ms == pytest.approx(draft_cost(4, 4, 3))
    assert line.cost.verify_ms == pytest.approx(verify_cost(4, 4 * 4))
    assert line.cost.other_ms == pytest.approx(0.3 + 0.2)
    assert line.tokens == pytest.approx(4 * (1 + 0.75 + 0.75**2 + 0.75**3))
    assert line.goodput == pytest.approx(1e3 * line.tokens / line.cost.total_ms)


def test_the_choice_is_the_best_of_all_lines_and_its_parts_add_up() -> None:
    rng = random.Random(4)
    for _ in range(40):
        costs = {name: 10 ** rng.uniform(-3, 0) for name in ("token", "layer", "row", "link", "overhead")}
        found = lines(rng.uniform(0.05, 0.95), rng.choice([1, 3, 16]), **costs)
        (choice,) = (option for option in found if option.chosen)
        assert choice.goodput == pytest.approx(max(option.goodput for option in found))
        assert choice.budget == (choice.rule is not None)


def test_budgets_cost_and_bring_what_the_same_lengths_would() -> None:
    rng = random.Random(5)
    for _ in range(20):
        costs = {name: 10 ** rng.uniform(-3, 0) for name in ("token", "layer", "row", "link", "overhead")}
        rate, num_rows = rng.uniform(0.05, 0.95), rng.choice([1, 3, 16])
        hazards = constant_hazards(RULES, LENGTH, {4: rate})
        for option in options(predictor(**costs), hazards, num_rows, 200.0, LENGTH):
            if option.rule is not None:
                number = RULES.index(option.rule)
                survival = survivals(hazards[number], [1.0] * num_rows, [LENGTH] * num_rows)
                arm = evaluate(predictor(**costs), number, survival, option.lengths, 200.0)
                assert (option.tokens, option.goodput) == pytest.approx((arm.tokens, arm.goodput))


def test_nothing_is_longer_than_what_the_sequences_may_still_commit() -> None:
    assert max(max(option.lengths) for option in lines(0.95, room=2)) == 2
    (only,) = lines(room=0)
    assert only.rule is None
    assert only.chosen


def test_a_cascade_accepts_as_a_depth_between_its_exits() -> None:
    two, four, six, ladder = constant_hazards(RULES, 3, {2: 0.5, 6: 0.7})
    assert [float(each[0]) for each in (two, four, six, ladder)] == pytest.approx([0.5, 0.6, 0.7, 0.6])
    assert {len(set(each.tolist())) for each in (two, four, six, ladder)} == {1}


def test_policies_that_learn_nothing_tell_what_they_do() -> None:
    assert describe(Off()) == {"policy": "off"}
    assert describe(Fixed(RULES[1], 4)) == {"policy": "fixed", "rule": "depth 4", "length": 4}
    told = describe(Table(RULES[3], ((1, 6), (8, 0))))
    assert told == {"policy": "table", "rule": "cascade 2-4-6", "table": {"1": 6, "8": 0}}
    assert rule_name(None) == "off"


def test_a_live_router_tells_what_it_has_learned_and_what_it_chose_from() -> None:
    goodput = Goodput(curves(overhead=0.05), GoodputConfig(RULES, EXITS, length=LENGTH, max_rows=4))
    fresh = describe(goodput)
    assert (fresh["arm"], fresh["arms"], fresh["forecast"]["num_rounds"]) == (None, [], 0)
    assert set(fresh["corrections"]["rest"].values()) == {1.0}
    true = Predictor(tables(curves(overhead=0.05), RULES, LENGTH, 4))
    Game(goodput, true, lambda turn: {2: 0.8, 4: 0.82, 6: 0.84}, 2, random.Random(6), spread=0.5).play(400)
    told = describe(goodput)
    assert json.loads(json.dumps(told)) == told
    assert [arm["rule"] for arm in told["arms"]] == ["off", *map(rule_name, RULES)]
    assert told["arm"] in told["arms"]
    assert told["arm"]["tokens_per_second"] == pytest.approx(
        1e3 * told["arm"]["tokens"] / told["arm"]["round_ms"], 0.01
    )
    played = next(rule for rule in told["rules"] if rule["rule"] == told["arm"]["rule"])
    assert played["hazards"][0] == pytest.approx(0.8, abs=0.1)
    assert played["evidence_tokens"] > 10
    assert told["forecast"]["realised"] == pytest.approx(told["forecast"]["predicted"], rel=0.2)
    assert set(told["confidence_powers"]) == {"2", "4", "6"}
