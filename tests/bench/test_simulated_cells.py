"""What is foretold of a cell: against the law, against drafting in turn, and how it is set beside a result."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from bench import machine
from bench.acceptance import acceptance_of
from bench.cells import Cell
from bench.contended import Curves
from bench.corrections import Followed
from bench.simulated_cells import Foretold, Known, arrivals, foretold, latest, num_tokens, slowed
from bench.simulated_mirror import Compared, of_batches, of_mirror
from drafters.picks import Pick
from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import Plan
from router.costs import CostCurves
from router.law import Law
from tests.router.curves import curves, verify_cost

EXITS = (2, 4, 6)
LINK, REST, MAX_TOKENS = 0.1, 0.05, 96
GROUPS = [[20], [40], [60], [30]]
WRONG = 8


def text(rng: np.random.Generator, after_right: float, after_wrong: float, runner_up: float) -> Followed:
    """The truth is 1 throughout. A pick is the likelier to be right if the last one was; else its second choice may."""
    picks, right = [], True
    for _ in range(400):
        right = bool(rng.random() < (after_right if right else after_wrong))
        second = 1 if not right and rng.random() < runner_up else WRONG + 1
        picks.append(Pick(1 if right else WRONG, 2, 0.7, second))
    return Followed((5, *[1] * 400), 1, [picks] * len(EXITS), [(1, 2)] * 400)


def known(after_right: float, after_wrong: float, token_ms: float = 0.1, slow: float = 1.0) -> Known:
    """slow: what a pass takes longer beside a busy pool."""
    rng = np.random.default_rng(0)
    texts = {0.0: [text(rng, after_right, after_wrong, 0.6) for _ in range(16)]}
    alone = priced(token_ms)
    target = replace(
        alone.target, verify=replace(alone.target.verify, ms=tuple(slow * ms for ms in alone.target.verify.ms))
    )
    return Known(Curves(alone, replace(alone, target=target)), EXITS, texts, kappa=2, fan_out=8)


def priced(token_ms: float) -> CostCurves:
    return curves(overhead=REST, link=LINK, layer=token_ms / 2, row=0.0, token=0.0)


def told(own: Known, mode: str, length: int = 3, token_ms: float = 0.0, num_seeds: int = 4) -> Foretold:
    cell = Cell(mode, 1, 2, length) if length else Cell(mode, 1)
    return foretold(own, cell, token_ms, GROUPS, MAX_TOKENS, range(num_seeds), learn=1)


@pytest.mark.parametrize("slow", [1.0, 1.3])
def test_the_gain_is_the_law_s_for_the_hits_foretold_with_passes_longer_while_the_pool_drafts(slow: float) -> None:
    """Of a window of three: the lead and what goes on from it, then what is behind the lead's second choice."""
    own = known(0.7, 0.7, slow=slow)
    turn, ahead = told(own, "fixed"), told(own, "ahead")
    verify, wait, busy = verify_cost(1, 1, token=0.0), 3 * 0.1 + LINK, (1 + 3 + 3) * 0.1
    law = Law(verify, wait, REST, ahead.hits)
    gain = ahead.tokens_per_second / turn.tokens_per_second
    assert gain == pytest.approx(law.in_turn_ms / (law.mirror_ms + busy * (1 - 1 / slow)), rel=0.03)
    assert ahead.hits == pytest.approx(0.7**4 + 0.6 * (1 - 0.7**4), rel=0.06)
    assert turn.wait_ms == pytest.approx(wait, rel=0.01)
    assert (turn.hits, turn.hit_ms, ahead.hit_ms) == (0.0, 0.0, 0.0)


@pytest.mark.slow
def test_texts_whose_drafts_are_right_in_stretches_are_accepted_ahead_as_in_turn_and_as_they_are() -> None:
    """Where drafting takes no time rounds of both take the same, so rates tell what a round commits."""
    free = curves(overhead=REST, link=0.0, layer=1e-4, row=0.0, token=0.0)
    own = replace(known(0.95, 0.4), curves=Curves(free, free))
    expected = fmean(len(run) for text in own.texts[0.0] for run in rounds([at[0][0] for at in text.told()], 3))
    for mode in ("fixed", "ahead"):
        made = foretold(own, Cell(mode, 1, 2, 3), 0.0, GROUPS, 400, range(6), learn=0)
        round_ms = verify_cost(1, 1, token=0.0) + REST
        assert made.tokens_per_second * round_ms / 1e3 == pytest.approx(expected, rel=0.04), mode
    stretches = [one.told() for one in own.texts[0.0]]
    short, unbroken = (acceptance_of(stretches, EXITS, length) for length in (3, 256))
    assert short.hazard(2, 0) > 1.5 * unbroken.hazard(2, 0), "a draft in turn often begins in mid-stretch"


def rounds(right: list[bool], length: int) -> list[list[bool]]:
    """The tokens of each: those that are right, and one of the target's own."""
    made = []
    while len(right) > length:
        run = next((at for at in range(length) if not right[at]), length)
        made.append(right[: run + 1])
        right = right[run + 1 :]
    return made


@pytest.mark.slow
def test_a_target_that_chooses_comes_close_to_the_better_of_ahead_and_in_turn_once_it_has_learned() -> None:
    for token_ms in (0.02, 0.25):
        own = known(0.8, 0.8, token_ms)
        rates = {mode: told(own, mode).tokens_per_second for mode in ("fixed", "ahead", "chosen")}
        assert rates["chosen"] > 0.95 * max(rates["fixed"], rates["ahead"])


def test_a_cell_of_mirror_is_set_beside_what_is_foretold_number_by_number() -> None:
    made = json.loads((machine.ROOT / "bench/results/mirror.json").read_text())
    cell, own = made["cells"][1] | {"temperature": 0.0}, known(0.8, 0.8)
    compared = list(of_mirror(cell, lambda at, token_ms: told(own, at.mode, at.length, token_ms, num_seeds=1)))
    by_table: dict[str, list[Compared]] = {}
    for one in compared:
        by_table.setdefault(one.table, []).append(one)
    assert {name: len(own) for name, own in by_table.items()} == {
        "tok/s": 5,
        "over in turn": 1,
        "hits": 1,
        "hidden on hits": 1,
    }
    rates = {one.cell.split(" 2/")[0].split(",")[0]: one for one in by_table["tok/s"]}
    assert {name: one.measured for name, one in rates.items()} == cell["rates"]
    (gain,) = by_table["over in turn"]
    assert gain.simulated == rates["mirror"].simulated / rates["in turn"].simulated
    assert gain.measured == cell["over_in_turn"]["median"]
    (hidden,) = by_table["hidden on hits"]
    assert 0 < hidden.simulated <= 1
    assert all(one.ratio == one.simulated / one.measured for one in compared)


def test_a_cell_of_batches_is_compared_with_the_better_of_off_and_in_turn() -> None:
    own = known(0.8, 0.8)
    cell = {"batch": 1, "temperature": 0.0, "in_turn": "2/3", "off": 900.0, "best_in_turn": 1500.0, "chosen": 1600.0}
    compared = list(
        of_batches(cell | {"over_better": {"median": 1.06}}, lambda at, ms: told(own, at.mode, at.length, ms))
    )
    rates = {one.cell.split(",")[0]: one.simulated for one in compared[:3]}
    assert compared[3].simulated == rates["chosen"] / max(rates["off"], rates["best in turn"])
    assert [one.measured for one in compared] == [900.0, 1500.0, 1600.0, 1.06]


def test_of_a_target_that_chooses_the_last_run_counts() -> None:
    rounds = [
        RoundOutcome(Plan(None, (0,)), (RowOutcome(0, accepted, 3),), 10.0, draft_ms=0.0, verify_ms=1.0)
        for accepted in (3, 0, 1, 2)
    ]
    assert [num_tokens(one) for one in latest(rounds, 5)] == [2, 3]
    assert [num_tokens(one) for one in latest(rounds, 6)] == [1, 2, 3]
    assert latest(rounds, 100) == rounds
    at = [(request.at_ms, request.prompt_tokens) for request in arrivals([[5, 6], [7]], 4, seed=0)]
    assert at == [(0.0, 5), (0.0, 6), (1e6, 7)]


def test_a_slowed_drafter_costs_at_least_what_it_sleeps() -> None:
    own = curves()
    slow = slowed(own, 0.2)
    for rows, depth, length in ((1, 2, 1), (1, 2, 5), (8, 6, 3), (32, 2, 4)):
        cost = max(own.draft_ms(rows, depth, length), 0.2 * length)
        assert slow.draft_ms(rows, depth, length) == pytest.approx(cost)
    assert slowed(own, 0.0) is own
