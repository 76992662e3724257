"""Whole simulations against arithmetic: what rounds take, what is accepted, and that nothing depends on chance."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.plan import Mode
from router.policy import Fixed, Off, Policy
from simulation.scenarios import Scenario, run
from simulation.simulate import Circumstances, PoolSpec
from simulation.text import Acceptance, drawn
from tests.simulation.curves import linear_curves
from tests.simulation.recorded import Recorded

EXITS = (2, 4, 6)
CURVES = linear_curves((10.0, 0.05, 0.0), (0.05, 0.01, 0.0), EXITS, overhead_ms=0.5, link_ms=0.4)


def fixed(length: int, mode: Mode = Mode.IN_TURN) -> Callable[[], Policy]:
    return lambda: Fixed(4, length, mode)


def always(rate: float) -> Acceptance:
    return drawn(dict.fromkeys(EXITS, rate))


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("length", [1, 4])
def test_a_round_in_turn_takes_link_draft_pass_and_overhead(num_rows: int, length: int) -> None:
    outcome = run(Scenario(CURVES, always(1.0), num_rows, num_tokens=1 + 20 * (1 + length)), fixed(length))
    draft_ms = 0.4 + length * 4 * (0.05 + 0.01 * num_rows)
    verify_ms = 10.0 + 0.05 * num_rows * (1 + length)
    settled = outcome.records[2:-1]
    assert len(settled) >= 17
    for record in settled:
        assert record.draft_ms == pytest.approx(draft_ms, rel=1e-3)
        assert record.verify_ms == pytest.approx(verify_ms, rel=1e-3)
        assert record.num_proposed == record.num_accepted == num_rows * length
    tokens_per_s = 1000 * num_rows * (1 + length) / (draft_ms + verify_ms + 0.5)
    assert outcome.tokens_per_s == pytest.approx(tokens_per_s, rel=0.03)


def test_drafts_are_accepted_as_often_as_the_acceptance_says() -> None:
    outcome = run(Scenario(CURVES, always(0.7), 8, num_tokens=300), fixed(3))
    rows = [row for record in outcome.records for row in record.rows if row.num_proposed == 3]
    mean = sum(row.num_accepted for row in rows) / len(rows)
    assert mean == pytest.approx(0.7 + 0.7**2 + 0.7**3, abs=0.08)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_text_is_the_same_however_it_is_drafted_and_a_simulation_the_same_whenever_it_is_run(
    mode: Mode,
) -> None:
    plain = run(Scenario(CURVES, always(0.6), 4, 80, around=Circumstances(seed=3)), Off)
    scenario = Scenario(CURVES, always(0.6), 4, 80, ahead=mode is Mode.AHEAD, around=Circumstances(seed=3, noise=0.1))
    first, second = run(scenario, fixed(3, mode)), run(scenario, fixed(3, mode))
    assert plain.texts == first.texts
    assert first == second
    assert first.tokens_per_s > 1.4 * plain.tokens_per_s


def test_drafting_ahead_hides_the_draft_behind_the_pass() -> None:
    """Where all is accepted, the pool has drafted on by the time that the pass ends."""
    waits = {}
    for mode in (Mode.IN_TURN, Mode.AHEAD):
        outcome = run(Scenario(CURVES, always(1.0), 2, 100, ahead=mode is Mode.AHEAD), fixed(4, mode))
        waits[mode] = [record.draft_ms for record in outcome.records[3:-1]]
    assert min(waits[Mode.IN_TURN]) > 1.0
    assert max(waits[Mode.AHEAD]) < 0.1


def test_kv_that_is_missing_in_a_deeper_exit_would_be_seen() -> None:
    """Every other round drafts at another depth, and what it lacks is made up for: all is accepted."""

    class Alternating(Fixed):
        def plan(self, view):  # type: ignore[no-untyped-def]
            depth = EXITS[sum(one.num_tokens for one in view.sequences) % 3]
            return Fixed(depth, 2).plan(view)

    outcome = run(Scenario(CURVES, always(1.0), 3, 120), lambda: Alternating(2, 2))
    assert sum(record.num_proposed for record in outcome.records) > 200
    assert all(record.num_proposed == record.num_accepted for record in outcome.records)


def test_recorded_acceptance_is_met_at_the_place_where_it_was_recorded() -> None:
    right = [[(position % 3 > 0, 0.9)] * 3 for position in range(400)]
    outcome = run(Scenario(CURVES, Recorded(EXITS, [right]), 1, 91, num_prompt=30), fixed(5))
    accepted = [record.num_accepted for record in outcome.records[:-1] if record.rows]
    assert set(accepted) == {2}, "two right ones, then a wrong one"


def test_a_pool_that_is_too_slow_for_the_deadline_costs_little() -> None:
    plain = run(Scenario(CURVES, always(0.8), 4, 150), Off)
    slow = Scenario(CURVES, always(0.8), 4, 150, pool=PoolSpec(slower=100.0), deadline_s=0.005)
    outcome = run(slow, fixed(4))
    assert outcome.texts == plain.texts
    assert sum(not record.answered for record in outcome.records) >= 3
    assert outcome.tokens_per_s > 0.9 * plain.tokens_per_s
