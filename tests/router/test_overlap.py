"""What drafting ahead would bring, against the law put together by hand from curves made by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from protocol.plan import DepthRule
from router.law import Law
from router.overlap import overlaps
from router.predict import Predictor
from router.tables import tables
from tests.router.curves import curves, draft_cost, verify_cost

RULES = (DepthRule((2,)), DepthRule((6,)), DepthRule((2, 6), (0.5,)))
LENGTH, LINK, OVERHEAD = 5, 0.3, 0.2
HAZARDS = tuple(np.linspace(start, 0.5, LENGTH) for start in (0.7, 0.9, 0.8))


def predictor(linked: bool = True) -> Predictor:
    return Predictor(tables(curves(link=LINK, overhead=OVERHEAD), RULES, LENGTH, 32), linked)


@pytest.mark.parametrize("num_rows", [1, 4, 20])
def test_every_rule_and_length_is_the_law_of_its_own_costs_and_hits(num_rows: int) -> None:
    found = overlaps(predictor(), HAZARDS, num_rows, context=256, room=4)
    assert [(one.rule, one.length) for one in found] == list(product(RULES, range(1, 5)))
    for one in found:
        rule, length = RULES.index(one.rule), one.length
        depth = (2, 6, 4)[rule]
        survival = [float(np.prod(HAZARDS[rule][:number])) for number in range(1, length + 2)]
        verify = verify_cost(num_rows, num_rows * (1 + length))
        wait = LINK + draft_cost(num_rows, depth, length)
        ahead = LINK + draft_cost(num_rows, depth, length + 1)
        round_ms = max(verify, ahead) + (1 - survival[-1]) * wait + OVERHEAD
        tokens = num_rows * (1 + sum(survival[:-1]))
        assert one.law.hits == pytest.approx(survival[-1])
        assert one.tokens == pytest.approx(tokens)
        assert one.goodput == pytest.approx(1e3 * tokens / round_ms)


def test_the_longest_draft_is_followed_by_a_token_like_its_last() -> None:
    (*_, last) = overlaps(predictor(), HAZARDS, 1, context=256, room=99)
    assert last.length == LENGTH
    assert last.law.hits == pytest.approx(float(np.prod(HAZARDS[2])) * 0.5)


def test_without_room_for_a_draft_there_is_nothing_to_overlap() -> None:
    assert overlaps(predictor(), HAZARDS, 1, context=256, room=0) == ()


def test_what_hides_behind_verification_costs_nothing_and_what_does_not_is_waited_for() -> None:
    hidden, shown = Law(10, 4, 1, hits=1.0), Law(10, 14, 1, hits=1.0)
    assert (hidden.in_turn_ms, hidden.mirror_ms, shown.mirror_ms) == (15, 11, 15)
    assert Law(10, 4, 1, hits=0.25).mirror_ms == 10 + 0.75 * 4 + 1
    assert Law(10, 4, 1, hits=0.25, ahead_ms=12).mirror_ms == 12 + 0.75 * 4 + 1
    assert Law(10, 4, 1, hits=0.0).speedup == 1.0
