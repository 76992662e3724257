"""Slowed devices and the curves that a router is told of them: the same numbers."""

from __future__ import annotations

import pytest

from bench.feed import Counter
from bench.pressure import Devices
from drafters.picks import PassRow
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from targets.model import ForwardRow

DEVICES = Devices(verify=40.0, token=0.5, layer=0.8, row_layer=0.1, step=0.3)
EXITS = (2, 4, 6)


@pytest.mark.parametrize("num_rows", [1, 3, 16])
@pytest.mark.parametrize("length", [1, 4])
def test_the_curves_say_what_the_devices_take(num_rows: int, length: int) -> None:
    curves = DEVICES.curves(EXITS)
    rows = [ForwardRow(row, 10, (1,) * (1 + length), 1 + length) for row in range(num_rows)]
    assert curves.verify_ms(num_rows, num_rows * (1 + length), 300.0) == pytest.approx(DEVICES.verify_ms(rows))
    for exit_ in EXITS:
        drafting = [PassRow(row, (1,), 11, 10, DepthRule((exit_,)), SamplingParams()) for row in range(num_rows)]
        assert curves.draft_ms(num_rows, exit_, length) == pytest.approx(length * DEVICES.draft_ms(drafting))


def test_tokens_count_within_the_measured_time_alone() -> None:
    early, now, late = Counter(60.0, 60.0), Counter(0.0, 60.0), Counter(0.0, 0.0)
    for counter in (early, now, late):
        counter.add(3)
    assert (early.count, now.count, late.count) == (0, 3, 0)
    assert (early.is_over, now.is_over, late.is_over) == (False, False, True)
