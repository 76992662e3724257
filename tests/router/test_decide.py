"""Decisions against plain arithmetic over every arm."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from protocol.plan import BatchView, Mode, SequenceView
from router.belief import DRAFT, PLAIN, REST, WIDE, Belief, prior
from router.decide import MARGIN, decide, improvement
from router.filters import begin
from router.rounds import OFF, Arm, batch_of, expected, rounds_of
from router.tables import tables
from tests.router.worlds import world

LARGE = world("large")
COSTS = tables(LARGE.curves, LARGE.exits, 6, 8)
BOTH = (Mode.IN_TURN, Mode.AHEAD)


def view(num_rows: int, remaining: int = 500, drafts: bool = True, modes: tuple[Mode, ...] = BOTH) -> BatchView:
    rows = (SequenceView(256, remaining, num_unseen=2, drafts=drafts),) * num_rows
    return BatchView(rows, modes=modes)


def known(rng: np.random.Generator) -> Belief:
    """Any belief, held for certain."""
    odds, factors = rng.normal(0.5, 1.2, 3).tolist(), rng.normal(0, 0.3, DRAFT + 1).tolist()
    ahead = [float(rng.uniform(0.5, 1)), float(rng.uniform(0, 1))]
    return replace(
        prior(COSTS),
        accept=begin(odds, [1e-6] * 3),
        cost=(begin(factors, [1e-6] * len(factors)),) * len(prior(COSTS).cost),
        ahead=begin(ahead, [1e-6] * 2),
        goes_on=float(rng.uniform(0.6, 1)),
        goes_on_right=float(rng.uniform(0.8, 1)),
        wait_ms=float(rng.uniform(0, 1)),
    )


def by_hand(belief: Belief, num_rows: int, mode: Mode, exit_: int, length: int) -> float:
    """Tokens per ms of a round in which all rows draft so many tokens; 0 for a draft ahead that takes longer than the
    pass.
    """
    curves, depth = LARGE.curves, LARGE.exits[exit_]
    factors = np.exp(belief.cost[0].values)
    rate = 1 / (1 + math.exp(-float(belief.accept.values[exit_])))
    passes = [curves.verify_ms(num_rows, num_rows * (1 + n), 256) for n in range(length + 1)]
    tokens, draft_ms, whole_ms, verify_ms = 0.0, 0.0, 0.0, passes[0]
    for place in range(length):
        step, of_half = (
            curves.draft_ms(n, depth, place + 1) - curves.draft_ms(n, depth, place) if n else 0.0
            for n in (num_rows, num_rows // 2)
        )
        grows = min(max((step - of_half) * num_rows / (num_rows - num_rows // 2), 0.0), step)
        whole_ms += step
        draft_ms += step - grows * (1 - belief.goes_on**place)
        verify_ms += belief.goes_on**place * (passes[place + 1] - passes[place])
        tokens += rate ** (place + 1) * belief.goes_on_right**place
    verify_ms *= factors[WIDE + list(Mode).index(mode)]
    if mode is Mode.AHEAD and length > 1 and whole_ms * factors[DRAFT] > verify_ms:
        return 0.0
    draft_ms = draft_ms * factors[DRAFT] + curves.link_ms(num_rows) + belief.wait_ms
    served = 1.0
    if mode is not Mode.IN_TURN:
        served, waited = belief.ahead.values
        draft_ms -= (1 - waited) * min(draft_ms, verify_ms)
    rest_ms = curves.overhead_ms(num_rows) * factors[REST]
    return float(num_rows * (1 + served * tokens) / (draft_ms + verify_ms + rest_ms))


@pytest.mark.parametrize("seed", range(12))
def test_what_is_sure_is_decided_as_arithmetic_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    belief, num_rows = known(rng), int(rng.integers(1, 9))
    factors = np.exp(belief.cost[0].values)
    arms = {
        (Arm(mode, exit_), length): by_hand(belief, num_rows, mode, exit_, length)
        for mode in BOTH
        for exit_ in range(3)
        for length in range(1, 7)
    }
    curves = LARGE.curves
    plain_ms = curves.verify_ms(num_rows, num_rows, 256) * factors[PLAIN] + curves.overhead_ms(num_rows) * factors[REST]
    arms[OFF, 0] = num_rows / plain_ms
    best = max(arms, key=lambda arm: arms[arm])
    found = decide(belief, COSTS, view(num_rows), best[0])
    assert (found.arm, found.rate, found.trial) == (best[0], pytest.approx(arms[best], rel=1e-4), False)
    assert found.length == best[1]


def test_the_arm_in_use_stays_unless_another_promises_the_margin() -> None:
    belief = known(np.random.default_rng(3))
    rounds = rounds_of(belief, COSTS, batch_of(view(4), COSTS), expected(belief, COSTS, 4))
    paces = {Arm(mode, at): min(rounds.by_length(mode, at))[0] for mode in BOTH for at in range(3)}
    least = min(*paces.values(), rounds.off()[0])
    for arm, pace in paces.items():
        assert (decide(belief, COSTS, view(4), arm).arm == arm) == (pace <= (1 + MARGIN) * least)


def test_no_draft_where_there_is_no_room_or_no_row_may_be_drafted_for() -> None:
    belief = prior(COSTS)
    for hopeless in (view(4, remaining=1), view(4, drafts=False)):
        assert decide(belief, COSTS, hopeless, Arm(Mode.IN_TURN, 0)).length == 0
    assert decide(belief, COSTS, view(4, remaining=3), OFF).length <= 2


@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0, 4.0, 16.0])
def test_a_draft_ahead_is_no_longer_than_the_pass_that_it_is_hidden_behind(slower: float) -> None:
    """Every token is right, and all of drafting is believed to be hidden."""
    factors = [0.0] * DRAFT + [math.log(slower)]
    cost, odds = begin(factors, [1e-6] * len(factors)), begin([6.0] * 3, [1e-6] * 3)
    belief = replace(
        prior(COSTS), accept=odds, cost=(cost,) * len(prior(COSTS).cost), ahead=begin([1.0, 0.0], [1e-6] * 2)
    )
    for exit_, depth in enumerate(LARGE.exits):
        rounds = rounds_of(belief, COSTS, batch_of(view(1), COSTS), expected(belief, COSTS, 1))
        longest = max(length for _, length, *_ in rounds.by_length(Mode.AHEAD, exit_))
        late = [
            slower * LARGE.curves.draft_ms(1, depth, n) > LARGE.curves.verify_ms(1, 1 + n, 256) for n in range(1, 7)
        ]
        assert longest == max(late.index(True) if any(late) else 6, 1)
        assert len(rounds.by_length(Mode.IN_TURN, exit_)) == 6


def test_a_mode_that_is_not_allowed_is_not_played() -> None:
    assert decide(prior(COSTS), COSTS, view(4, modes=(Mode.IN_TURN,)), Arm(Mode.AHEAD, 0)).arm.mode is Mode.IN_TURN


def equal_exits(doubt: float) -> Belief:
    """Of the first exit all is known, of the others only that they may well be as good."""
    accept = begin([1.3, 1.3, 1.3], [1e-6, doubt, doubt])
    sure = begin([0.0] * (DRAFT + 1), [1e-6] * (DRAFT + 1))
    return replace(prior(COSTS), accept=accept, cost=(sure,) * len(prior(COSTS).cost))


@pytest.mark.parametrize(
    ("doubt", "lag", "remaining", "trial"),
    [
        (1.0, 0.0, 500, True),
        (1e-3, 0.0, 500, False),  # nothing to be found out
        (1.0, 256.0, 20, False),  # layers that lag are dear, and there is little left to earn it back with
        (1.0, 256.0, 500, True),
        (1.0, 0.0, 3, False),
    ],
)
def test_an_exit_is_tried_where_what_may_be_found_out_is_worth_its_price(
    doubt: float, lag: float, remaining: int, trial: bool
) -> None:
    belief, in_turn = replace(equal_exits(doubt), lags=(0.0, lag, lag)), view(2, remaining, modes=(Mode.IN_TURN,))
    found = decide(belief, COSTS, in_turn, Arm(Mode.IN_TURN, 0))
    assert (found.trial, found.arm.exit != 0) == (trial, trial)


def test_a_short_text_is_not_handed_over_and_a_long_one_is() -> None:
    """The pool has seen none of 256 tokens; drafting is surely better, but not by so much that five tokens pay."""
    belief = equal_exits(1e-3)
    unseen = [BatchView((SequenceView(256, remaining, num_unseen=256),) * 4) for remaining in (5, 400)]
    assert [decide(belief, COSTS, each, OFF).arm.exit is None for each in unseen] == [True, False]


@pytest.mark.parametrize(("odds", "opens"), [(3.0, True), (-4.0, False)])
def test_contexts_are_handed_over_where_drafts_would_pay_had_the_pool_read_them(odds: float, opens: bool) -> None:
    belief = replace(equal_exits(1e-3), accept=begin([odds] * 3, [1e-6] * 3))
    dear = replace(COSTS, catch_up=tuple(tuple(1e3 * ms for ms in row) for row in COSTS.catch_up))
    found = decide(belief, dear, BatchView((SequenceView(256, 12, num_unseen=256),) * 4), OFF)
    assert (found.arm, found.opening is not None) == (OFF, opens)


@pytest.mark.parametrize("before", [None, 1])
def test_the_end_of_a_text_says_nothing_of_the_next(before: int | None) -> None:
    for remaining in (1, 2):
        assert decide(equal_exits(1e-3), COSTS, view(4, remaining, drafts=False), OFF, before).opening == before


@pytest.mark.parametrize(("loss", "doubt"), [(0.0, 1.0), (0.5, 0.2), (-0.3, 0.4), (2.0, 1.5), (1.0, 0.0), (-1.0, 0.0)])
def test_the_expected_improvement_is_the_mean_of_what_is_better(loss: float, doubt: float) -> None:
    draws = doubt * np.random.default_rng(0).standard_normal(400_000) - loss
    assert improvement(loss, doubt) == pytest.approx(np.maximum(draws, 0).mean(), abs=3e-3)


def test_a_draft_goes_on_where_the_wider_pass_takes_less_time() -> None:
    belief = known(np.random.default_rng(5))
    falling = tuple(tuple(passes[::-1] for passes in by_context) for by_context in COSTS.verify)
    free = tuple(((0.0,) * 6,) * 3 for _ in COSTS.steps)
    cheaper = replace(COSTS, verify=falling, steps=free, slopes=free)
    found = decide(belief, cheaper, view(1, modes=(Mode.IN_TURN,)), Arm(Mode.IN_TURN, 0))
    assert (found.length, found.stop_probability) == (COSTS.length, 0.0)


@pytest.mark.parametrize("mode", BOTH)
def test_a_lone_draft_ends_where_the_next_token_no_longer_pays_for_itself(mode: Mode) -> None:
    """What is drafted ahead costs what of it is waited for."""
    belief, curves = replace(known(np.random.default_rng(5)), goes_on=1.0, goes_on_right=1.0, wait_ms=0.0), LARGE.curves
    found = decide(belief, COSTS, view(1, modes=(mode,)), Arm(mode, 0))
    assert found.arm.exit is not None
    factors, depth = np.exp(belief.cost[0].values), LARGE.exits[found.arm.exit]
    length = max(range(1, 7), key=lambda number: by_hand(belief, 1, mode, found.arm.exit, number))
    step = curves.draft_ms(1, depth, length + 1) - curves.draft_ms(1, depth, length)
    place = curves.verify_ms(1, 2 + length, 256) - curves.verify_ms(1, 1 + length, 256)
    waited = belief.ahead.values[1] if mode is Mode.AHEAD else 1.0
    step, place = waited * step * factors[DRAFT], place * factors[WIDE + list(Mode).index(mode)]
    next_is_right = 1 / (1 + math.exp(-float(belief.accept.values[found.arm.exit])))
    assert found.stop_probability * next_is_right == pytest.approx(found.rate * (step + place), rel=1e-6)
