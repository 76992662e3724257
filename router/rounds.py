"""What a round of every arm and length brings and takes, under one guess at what is not known.

An arm is off, or a mode with an exit, and is worth what its best length brings. Of n drafted tokens a row gets

    tokens(exit, n) = 1 + a + a^2 g + ... + a^n g^(n-1)
    ms(exit, n)     = pass(n) + draft(exit, n) - what of it is hidden behind the pass + rest

a: the acceptance rate; g: how often a draft goes on behind a token, for it ends where the next one does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp

from protocol.plan import BatchView, Mode
from router.belief import DRAFT, MODES, MOST, PLAIN, REST, WIDE, Belief
from router.filters import sigmoid
from router.seen import AHEAD
from router.tables import Costs


@dataclass(frozen=True, slots=True)
class Arm:
    """exit: its number among the drafter's, None for off."""

    mode: Mode = Mode.SERIAL
    exit: int | None = None


OFF = Arm()


@dataclass(frozen=True, slots=True)
class Batch:
    """num_drafting: rows that may be drafted for. room: the longest draft of any of them. num_unseen: tokens of a row
    that the pool has not seen. remaining: tokens that a row may still commit. Numbers of tokens are means.
    """

    num_rows: int
    num_drafting: int
    context: float
    room: int
    num_unseen: float
    remaining: float
    modes: tuple[Mode, ...]
    exponents: Mapping[int, float]


def batch_of(view: BatchView, costs: Costs) -> Batch:
    rows = view.sequences
    drafting = [row for row in rows if row.drafts and row.remaining > 1]
    return Batch(
        num_rows=len(rows),
        num_drafting=len(drafting),
        context=sum([row.num_tokens for row in rows]) / len(rows),
        room=min(max([row.remaining for row in drafting], default=1) - 1, costs.length),
        num_unseen=sum([row.num_unseen for row in drafting]) / max(len(drafting), 1),
        remaining=sum([row.remaining for row in rows]) / len(rows),
        modes=view.modes,
        exponents=view.exponents,
    )


@dataclass(frozen=True, slots=True)
class Guess:
    """rates: of acceptance, by exit. factors: of times over the profile, by part of a round. ahead: as the belief's."""

    rates: Sequence[float]
    factors: Sequence[float]
    ahead: Sequence[float]

    def shares(self, mode: Mode) -> tuple[float, float]:
        """Of rows, that have a proposal; of what a pass could hide of drafting, that is waited for."""
        if mode not in AHEAD:
            return 1.0, 1.0
        served, waited = self.ahead[2 * AHEAD.index(mode) :][:2]
        return min(max(served, 0.0), 1.0), min(max(waited, 0.0), MOST)


# Of a round of the whole batch: milliseconds per token, tokens, and of its time what drafting is waited for, and the pass.
Outcome = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Rounds:
    """What rounds of a batch take by its profile, in ms. wide_ms: passes by drafted tokens from 1; draft_ms: the same by
    exit. link_ms: with the wait at the pool.
    """

    num_rows: int
    num_drafting: int
    goes_on_right: float
    plain_ms: float
    wide_ms: Sequence[float]
    draft_ms: Sequence[Sequence[float]]
    link_ms: float
    rest_ms: float

    def off_pace(self, guess: Guess) -> float:
        """Milliseconds per token of plain decoding."""
        return (self.plain_ms * guess.factors[PLAIN] + self.rest_ms * guess.factors[REST]) / self.num_rows

    def by_length(self, guess: Guess, mode: Mode, exit_: int, length: int) -> list[Outcome]:
        """Of every length from 1 to this one."""
        (served, waited), rate, factors = guess.shares(mode), guess.rates[exit_], guess.factors
        verify, draft, rest_ms = factors[WIDE + MODES.index(mode)], factors[DRAFT + exit_], factors[REST] * self.rest_ms
        gain, ratio = served * self.num_drafting * rate, rate * self.goes_on_right
        tokens, link_ms, found = float(self.num_rows), self.link_ms, []
        for wide_ms, draft_ms in zip(self.wide_ms[:length], self.draft_ms[exit_], strict=False):
            tokens += gain
            gain *= ratio
            pass_ms, wait_ms = verify * wide_ms, draft * draft_ms + link_ms
            wait_ms -= (1 - waited) * min(wait_ms, pass_ms)
            found.append(((wait_ms + pass_ms + rest_ms) / tokens, tokens, wait_ms, pass_ms))
        return found

    def best(self, guess: Guess, mode: Mode, exit_: int) -> tuple[float, int]:
        """Milliseconds per token of the best length, and that length."""
        paces = [outcome[0] for outcome in self.by_length(guess, mode, exit_, len(self.wide_ms))]
        pace = min(paces)
        return pace, 1 + paces.index(pace)


def rounds_of(belief: Belief, costs: Costs, batch: Batch) -> Rounds:
    rows, drafting, room = costs.rows(batch.num_rows), costs.rows(batch.num_drafting), batch.room
    passes = costs.passes(rows, batch.context)[: room + 1]
    reach = [belief.goes_on**place for place in range(room)]  # share of drafts that get to a place
    share = batch.num_drafting / batch.num_rows
    more = [there * (wider - narrow) for there, (narrow, wider) in zip(reach, pairwise(passes), strict=True)]
    steps = [
        [step - slope * (1 - there) for step, slope, there in zip(*of_exit, reach, strict=False)]
        for of_exit in zip(costs.steps[drafting], costs.slopes[drafting], strict=True)
    ]
    return Rounds(
        batch.num_rows,
        batch.num_drafting,
        belief.goes_on_right,
        passes[0],
        [passes[0] + share * sum_ for sum_ in accumulate(more)],
        [list(accumulate(each)) for each in steps],
        costs.link[rows] + belief.wait_ms,
        costs.rest[rows],
    )


def expected(belief: Belief, costs: Costs, num_rows: int) -> Guess:
    """The mean of the belief."""
    cost = belief.cost[costs.size(num_rows)]
    return Guess(list(map(sigmoid, belief.accept.values)), list(map(exp, cost.values)), belief.ahead.values)
