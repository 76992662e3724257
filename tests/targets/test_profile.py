"""Timers over a real tiny target: what they run is what they are asked for, and they leave nothing behind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from model.pages import PageLedger
from protocol.errors import ConfigError
from targets.model import ForwardRow, TargetModel
from targets.profile import PassShape, VerifyAxes, overhead_ms, pass_timer, verify_axes
from targets.scoring import Picks
from tests.targets.conftest import LoadTarget


def test_the_grid_reaches_as_far_as_the_memory_does() -> None:
    assert verify_axes(16, PageLedger(1000, 64), 4096) == VerifyAxes(
        (1, 2, 4, 8, 16), (1, 2, 3, 5, 6, 9), (64, 256, 1024)
    )
    assert verify_axes(6, PageLedger(12, 64), 4096) == VerifyAxes((1, 2, 4, 6), (1, 2, 3, 5, 6, 9), (64, 119))
    assert verify_axes(2, PageLedger(4, 2), 4096) == VerifyAxes((1, 2), (1, 2, 3), (1,))
    assert verify_axes(8, PageLedger(3, 64), 20).num_rows == (1, 2, 3)
    assert verify_axes(8, PageLedger(3, 64), 20).num_positions == 20
    full = PageLedger(1, 16)
    full.open(0)
    full.reserve(0, 1)
    with pytest.raises(ConfigError, match="raise kv_mb"):
        verify_axes(1, full, 100)


def test_the_largest_pass_of_any_grid_fits() -> None:
    for num_pages, page_size, max_batch in itertools.product((1, 2, 5, 40), (2, 16, 64), (1, 4, 7)):
        ledger = PageLedger(num_pages, page_size)
        axes = verify_axes(max_batch, ledger, 300)
        for name in range(axes.num_rows[-1]):
            ledger.open(name)
            assert ledger.reserve(name, axes.num_positions)


Calls = list[list[ForwardRow]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The rows of each pass."""
    seen, pick = Calls(), TargetModel.scored_picks

    def record(model: TargetModel, rows: Sequence[ForwardRow], *how: Any) -> Picks:
        seen.append(list(rows))
        return pick(model, rows, *how)

    monkeypatch.setattr(TargetModel, "scored_picks", record)
    return seen


def test_a_timed_pass_is_the_one_asked_for_and_takes_its_time(load: LoadTarget, calls: Calls) -> None:
    model = load(num_positions=1024, page_size=16)
    with pass_timer(model, num_rows=3, num_positions=50) as measure:
        assert model.ledger.num_free == 64 - 3 * 4
        milliseconds = [measure(PassShape(2, 5, 40, num_logits=5)), measure(PassShape(3, 50, 0, num_logits=1))]
    assert min(milliseconds) > 0
    shapes = [[(row.start, len(row.tokens), row.num_logits) for row in rows] for rows in calls]
    assert shapes == [[(40, 5, 5)] * 2, [(0, 50, 1)] * 3]
    assert len({row.sequence_id for row in calls[1]}) == 3


def test_milliseconds_are_read_from_the_clock(load: LoadTarget) -> None:
    ticks = iter([10.0, 10.25])
    with pass_timer(load(), num_rows=1, num_positions=20, clock=lambda: next(ticks)) as measure:
        assert measure(PassShape(1, 1, 10, num_logits=1)) == pytest.approx(250)


def test_pages_are_as_they_were_found_among_sequences_of_others_and_after_an_error(load: LoadTarget) -> None:
    model = load(num_positions=256, page_size=16)
    model.ledger.open(0)
    model.ledger.reserve(0, 40)
    with pytest.raises(KeyboardInterrupt), pass_timer(model, num_rows=2, num_positions=50):
        raise KeyboardInterrupt
    with (
        pytest.raises(ConfigError, match="does not hold 4 rows of 64 positions; raise kv_mb"),
        pass_timer(model, 4, 64),
    ):
        pass
    overhead_ms(model, num_rows=2)
    assert model.ledger.sequences == (0,)
    assert model.ledger.num_free == 16 - 3
    model.ledger.check()


def test_overhead_is_the_step_without_its_pass(load: LoadTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the pass moves."""
    now = [0.0]
    model = load()
    pick = TargetModel.scored_picks

    def slow(one: TargetModel, rows: Sequence[ForwardRow], *how: Any) -> Picks:
        now[0] += 5.0
        return pick(one, rows, *how)

    monkeypatch.setattr(TargetModel, "scored_picks", slow)
    assert overhead_ms(model, 3, clock=lambda: now[0]) == 0
    assert now[0] == 35.0  # a prefill and six rounds
    assert overhead_ms(model, 3) > 0


def test_rounds_of_the_overhead_carry_drafts(load: LoadTarget, calls: Calls) -> None:
    overhead_ms(load(), 2)
    assert [[len(row.tokens) for row in rows] for rows in calls[1:]] == [[5, 5]] * 6
