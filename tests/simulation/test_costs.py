"""Prices of passes against the curves that they are read from."""

from __future__ import annotations

import numpy as np
import pytest

from model.batch import BatchRow, RaggedBatch, build_batch
from simulation.costs import PoolCharge, overheads, pass_ms
from tests.simulation.curves import linear_curves

EXITS = (2, 4, 6)
CURVES = linear_curves((2.0, 0.1, 0.5), (0.05, 0.01, 0.002), EXITS, prefill=(1.0, 0.02), overhead_ms=0.3)


def batch(*spans: tuple[int, int]) -> RaggedBatch:
    return build_batch([BatchRow(np.arange(stop), stop - start) for start, stop in spans])


def test_a_pass_of_the_target_costs_what_the_curve_says_and_chunks_what_they_add() -> None:
    for rows, width, context in ((1, 1, 64), (4, 5, 500), (8, 9, 8000)):
        verified = [(context, context + width)] * rows
        wanted = 2.0 + 0.1 * rows * width + 0.5 * rows * context / 1000
        assert CURVES.verify_ms(rows, rows * width, context) == pytest.approx(wanted)
        assert pass_ms(CURVES, batch(*verified)) == pytest.approx(wanted)
        assert pass_ms(CURVES, batch(*verified, (16, 116))) == pytest.approx(wanted + 2.0)
    assert pass_ms(CURVES, batch((0, 100))) == pytest.approx(CURVES.prefill_ms(100))
    assert list(overheads(CURVES, 3)) == pytest.approx([0.3] * 4)


def test_layer_groups_add_up_to_the_curve_of_an_exit() -> None:
    charge = PoolCharge(CURVES, slower=2.0)
    for rows, new in ((1, 1), (4, 1), (4, 9)):
        for ends in ((0, 2), (2, 4), (4, 6)):
            charge(*ends, batch(*[(20, 20 + new)] * rows))
        assert charge.take() == pytest.approx(2 * CURVES.draft_ms(rows, 6, 1, new))
    for _ in range(5):
        charge(0, 4, batch(*[(20, 21)] * 4))
    assert charge.take() == pytest.approx(2 * CURVES.draft_ms(4, 4, 5))
