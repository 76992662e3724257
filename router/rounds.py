"""What a round of every arm and length brings and takes, under one guess at what is not known.

An arm is off, or a mode with an exit, and is worth what its best length brings. Of n drafted tokens a row gets

    tokens(exit, n) = 1 + a + a^2 g + ... + a^n g^(n-1)
    ms(exit, n)     = pass(n) + draft(exit, n) - what of it is hidden behind the pass + rest

a: the acceptance rate; g: how often a draft goes on behind a token, for it ends where the next one does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp

from protocol.plan import BatchView, Mode
from router.belief import DRAFT, MODES, MOST, PLAIN, REST, WIDE, Belief
from router.filters import Line, sigmoid
from router.tables import Costs


@dataclass(frozen=True, slots=True)
class Arm:
    """exit: its number among the drafter's, None for off."""

    mode: Mode = Mode.IN_TURN
    exit: int | None = None


OFF = Arm()


def part_of(arm: Arm) -> int:
    """Its pass."""
    return PLAIN if arm.exit is None else WIDE + MODES.index(arm.mode)


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
        """Of rows, those with a proposal; of the drafting time that a pass could hide, what is still waited for."""
        if mode is not Mode.AHEAD:
            return 1.0, 1.0
        served, waited = self.ahead
        return min(max(served, 0.01), 1.0), min(max(waited, 0.0), MOST)


def expected(belief: Belief, costs: Costs, num_rows: int) -> Guess:
    """The mean of the belief."""
    times, shares = belief.cost[costs.size(num_rows)].values, belief.ahead.values
    return Guess([sigmoid(odds) for odds in belief.accept.values], [exp(time) for time in times], shares)


# Milliseconds per token at a length, that length, tokens of the batch, what of drafting is waited for, and the pass.
Outcome = tuple[float, int, float, float, float]


@dataclass(frozen=True, slots=True)
class Rounds:
    """What rounds of a batch bring and take. plain_ms, rest_ms: as guessed. link_ms: the wait at the pool included.
    reach: by place, the share of drafts that get there. As profiled: wide_ms, a pass by drafted tokens, from 1; steps,
    slopes: as in Costs, for the rows that are drafted for.
    """

    belief: Belief
    batch: Batch
    guess: Guess
    reach: Sequence[float]
    plain_ms: float
    rest_ms: float
    link_ms: float
    wide_ms: Sequence[float]
    steps: Sequence[Line]
    slopes: Sequence[Line]

    def off(self) -> Outcome:
        num_rows = self.batch.num_rows
        return (self.plain_ms + self.rest_ms) / num_rows, 0, num_rows, 0.0, self.plain_ms

    def by_length(self, mode: Mode, exit_: int) -> list[Outcome]:
        """Outcomes for lengths 1, 2, ... Ahead, the list ends at the longest draft that fits into one pass; more would
        come late.
        """
        guess, rest_ms, (served, waited) = self.guess, self.rest_ms, self.guess.shares(mode)
        verify, draft, rate = guess.factors[WIDE + MODES.index(mode)], guess.factors[DRAFT], guess.rates[exit_]
        gain, ratio = served * self.batch.num_drafting * rate, rate * self.belief.goes_on_right
        tokens, draft_ms, whole_ms, found = float(self.batch.num_rows), self.link_ms, 0.0, list[Outcome]()
        places = zip(self.reach, self.wide_ms, self.steps[exit_], self.slopes[exit_], strict=False)
        for length, (reach, wide_ms, step, slope) in enumerate(places, start=1):
            tokens += gain
            gain *= ratio
            draft_ms += draft * (step - slope * (1 - reach))
            whole_ms += draft * step
            pass_ms = verify * wide_ms
            if mode is Mode.AHEAD and found and whole_ms > pass_ms:
                break
            wait_ms = draft_ms - (1 - waited) * min(draft_ms, pass_ms)
            found.append(((wait_ms + pass_ms + rest_ms) / tokens, length, tokens, wait_ms, pass_ms))
        return found


def rounds_of(belief: Belief, costs: Costs, batch: Batch, guess: Guess) -> Rounds:
    rows, drafting = costs.rows(batch.num_rows), costs.rows(batch.num_drafting)
    passes, reach = costs.passes(rows, batch.context), [belief.goes_on**place for place in range(batch.room)]
    wide_ms, share, widths = passes[0], batch.num_drafting / batch.num_rows, []
    for place, there in enumerate(reach):
        wide_ms += share * there * (passes[place + 1] - passes[place])
        widths.append(wide_ms)
    plain_ms, rest_ms = passes[0] * guess.factors[PLAIN], costs.rest[rows] * guess.factors[REST]
    link_ms, drafts = costs.link[rows] + belief.wait_ms, (costs.steps[drafting], costs.slopes[drafting])
    return Rounds(belief, batch, guess, reach, plain_ms, rest_ms, link_ms, widths, *drafts)
