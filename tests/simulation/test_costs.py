"""Prices of passes against the curves that they are read from."""

from __future__ import annotations

import pytest

from simulation.costs import PoolTimes, TargetTimes
from simulation.curves import linear_curves

EXITS = (2, 4, 6)
CURVES = linear_curves((2.0, 0.1, 0.5), (0.05, 0.01, 0.002), EXITS, prefill=(1.0, 0.02), overhead_ms=0.3)


def test_a_pass_of_the_target_costs_what_the_curve_says_and_chunks_what_they_add() -> None:
    times = TargetTimes(CURVES)
    for rows, tokens, context in ((1, 1, 64.0), (4, 20, 500.0), (8, 72, 8000.0)):
        wanted = 2.0 + 0.1 * tokens + 0.5 * rows * context / 1000
        assert times.pass_ms(rows, tokens, context, ()) == pytest.approx(wanted) == CURVES.verify_ms(rows, tokens, context)
        assert times.pass_ms(rows, tokens, context, [(16, 116)]) == pytest.approx(wanted + 2.0)
    assert times.pass_ms(0, 0, 0.0, [(0, 100)]) == pytest.approx(CURVES.prefill_ms(100))
    assert times.overhead_ms(3) == pytest.approx(0.3)


def test_layer_groups_add_up_to_the_curve_of_an_exit() -> None:
    times = PoolTimes(CURVES, EXITS, slower=2.0)
    for rows, new in ((1, 1), (4, 1), (4, 9)):
        groups = [times.group_ms(*ends, rows, rows * new, True) for ends in ((0, 2), (2, 4), (4, 6))]
        assert sum(groups) == pytest.approx(2 * CURVES.draft_ms(rows, 6, 1, new))
    later = times.group_ms(0, 4, 4, 4, False)
    assert later == pytest.approx(2 * (CURVES.draft_ms(4, 4, 2) - CURVES.draft_ms(4, 4, 1)))
