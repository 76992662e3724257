"""The decision: how to get proposals, at which exit and how long, for the fewest milliseconds per committed token.

An arm is off, or a mode with an exit, and is worth what its best length brings. Of n drafted tokens a row gets

    tokens(exit, n) = 1 + a + a^2 g + ... + a^n g^(n-1)
    ms(exit, n)     = pass(n) + draft(exit, n) - what of it is hidden behind the pass + rest

a: the acceptance rate; g: how often a draft goes on behind a token, for it ends where the next one does not pay.
Arms are compared by the mean of the belief, and what an arm has to catch up with first is a price that the tokens left
to the batch share. Then an arm is tried if what may be found out is worth more than it costs, in milliseconds:

    expected improvement per token x tokens left > price + (loss per token x tokens of a trial)

The expected improvement is that of a normal variable (Jones et al., 1998). Nothing is drawn by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, exp, pi, sqrt

import numpy as np

from protocol.plan import BatchView, Mode
from router.belief import AHEAD, DRAFT, MODES, MOST, PLAIN, REST, SETTLED, WIDE, Belief
from router.filters import Floats, sigmoid
from router.tables import Costs

MARGIN = 0.02  # of the pace that another arm must promise
HORIZON = 100.0  # tokens of a row for which what is found out is of use, at most; 300 loses 3 % of off
LOOK = 32.0  # tokens of a row that a trial takes


@dataclass(frozen=True, slots=True)
class Arm:
    """exit: its number among the drafter's, None for off."""

    mode: Mode = Mode.SERIAL
    exit: int | None = None


OFF = Arm()


@dataclass(frozen=True, slots=True)
class Decision:
    """rate: tokens per ms that are expected. stop_probability: confidence in a whole draft below which it ends.

    trial: the arm is played to see whether it is better.
    """

    arm: Arm = OFF
    length: int = 0
    rate: float = 0.0
    stop_probability: float = 0.0
    trial: bool = False


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


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a round of every arm and length brings and takes, under one or more beliefs.

    tokens, draft_ms: [beliefs, modes, exits, lengths from 1]; draft_ms is what of drafting is waited for. pass_ms: the
    same for all exits. rest_ms: the same for all arms. off_ms: [beliefs].
    """

    tokens: Floats
    draft_ms: Floats
    pass_ms: Floats
    rest_ms: Floats
    off_ms: Floats

    @property
    def paces(self) -> Floats:
        """Milliseconds per token."""
        paces: Floats = (self.draft_ms + self.pass_ms + self.rest_ms) / self.tokens
        return paces


def decide(belief: Belief, costs: Costs, view: BatchView, held: Arm) -> Decision:
    """held: the arm in use."""
    batch = batch_of(view, costs)
    if batch.room < 1:
        return Decision(held)
    found = hoped(belief, costs, batch, held)
    paces = found.paces
    off: Floats = found.off_ms / batch.num_rows
    drafted = paces.min(axis=3).reshape(len(off), -1)
    best = [[plain, *each] for plain, each in zip(off.tolist(), drafted.tolist(), strict=True)]
    arms = [OFF, *(Arm(mode, exit_) for mode in batch.modes for exit_ in range(len(costs.exits)))]
    prices = [0.0, *catch_up_ms(belief, costs, batch) * len(batch.modes)]
    left = batch.num_rows * min(batch.remaining, HORIZON)
    owed = [pace + price / left for pace, price in zip(best[0], prices, strict=True)]
    chosen = owed.index(min(owed))
    if held in arms and owed[arms.index(held)] <= owed[chosen] * (1 + MARGIN):
        chosen = arms.index(held)
    tried = _worth_a_trial(best, prices, chosen, owed[chosen] / (1 + MARGIN), left, batch.num_rows)
    return _sized(arms[tried], tried != chosen, paces[0], best[0][0], batch, costs, belief)


def _worth_a_trial(
    best: list[list[float]], prices: list[float], chosen: int, pace: float, left: float, num_rows: int
) -> int:
    """The arm from which most is to be gained over `pace` ms per token; the chosen one where none is worth a trial."""
    tried, most = chosen, 0.0
    for at, (mean, *hopes) in enumerate(zip(*best, strict=True)):
        loss, doubt = mean - pace, sqrt(sum([(mean - hope) ** 2 for hope in hopes]))
        worth = left * improvement(loss, doubt) - prices[at] - LOOK * num_rows * max(loss, 0.0)
        if at != chosen and worth > most:
            tried, most = at, worth
    return tried


def improvement(loss: float, doubt: float) -> float:
    """By how much a normal variable of this deviation, around -loss, is above 0 in the mean."""
    if doubt < 1e-9 * abs(loss) or not doubt:
        return max(-loss, 0.0)
    score = loss / doubt
    return doubt * (exp(-(score**2) / 2) / sqrt(2 * pi) - score * (1 - erf(score / sqrt(2))) / 2)


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


def expected(belief: Belief, costs: Costs, batch: Batch) -> Outcomes:
    """Outcomes under the mean of the belief."""
    factors = belief.cost[costs.size(batch.num_rows)].arms
    return _outcomes(belief, costs, batch, belief.accept.arms[None], factors[None], 0.0)


def profiled(belief: Belief, costs: Costs, batch: Batch, odds: Floats) -> Outcomes:
    """Outcomes at the profile's costs, with these log odds of acceptance by exit."""
    return _outcomes(belief, costs, batch, odds[None], np.zeros((1, DRAFT + len(costs.exits))), 0.0)


def hoped(belief: Belief, costs: Costs, batch: Batch, held: Arm) -> Outcomes:
    """Outcomes under the mean of the belief, where other arms accept a deviation more than the one in use than is
    believed, and where they take a deviation less.
    """
    odds, cost = belief.accept.arms, belief.cost[costs.size(batch.num_rows)]
    used = PLAIN if held.exit is None else WIDE + MODES.index(held.mode)
    factors, doubts = cost.arms, cost.doubts(used)
    doubts[REST] = 0.0
    more = odds + belief.accept.doubts(held.exit)
    return _outcomes(
        belief, costs, batch, np.array((odds, more, odds)), np.array((factors, factors, factors - doubts)), 1.0
    )


def _outcomes(belief: Belief, costs: Costs, batch: Batch, odds: Floats, factors: Floats, hope: float) -> Outcomes:
    """odds, factors: [beliefs, arms]. hope: deviations for the last belief's modes ahead."""
    rows, drafting, factors = costs.rows(batch.num_rows), costs.rows(batch.num_drafting), np.exp(factors)
    places = costs.places[: batch.room]
    reach = belief.goes_on**places  # share of drafts that get to a place
    passes = costs.passes(rows, batch.context)
    wide = passes[0] + batch.num_drafting / batch.num_rows * (reach * np.diff(passes)[: batch.room]).cumsum()
    steps = costs.steps[drafting, :, : batch.room] - costs.slopes[drafting, :, : batch.room] * (1 - reach)
    drafts = steps.cumsum(axis=1) * factors[:, DRAFT:, None] + (costs.link[rows] + belief.wait_ms)
    right = sigmoid(odds)[:, :, None]
    ratio = right * belief.goes_on_right
    tokens = batch.num_rows + batch.num_drafting * right * (1 - ratio ** (places + 1)) / (1 - ratio)
    modes = [WIDE + MODES.index(mode) for mode in batch.modes]
    rest, pass_ms = costs.rest[rows] * factors[:, REST], factors[:, modes, None, None] * wide
    off_ms = passes[0] * factors[:, PLAIN] + rest
    tokens, waited = tokens[:, None], drafts[:, None]
    if batch.modes != (Mode.SERIAL,):
        served, exposed = _ahead(belief, batch.modes, len(odds), hope)
        tokens = batch.num_rows + served * (tokens - batch.num_rows)
        waited = waited - (1 - exposed) * np.minimum(waited, pass_ms)
    return Outcomes(tokens, waited, pass_ms, rest[:, None, None, None], off_ms)


def _ahead(belief: Belief, modes: tuple[Mode, ...], num_beliefs: int, hope: float) -> tuple[Floats, Floats]:
    """[beliefs, modes, 1, 1]: rows that have a proposal, and what of a draft is waited for; 1 in turn."""
    mean, doubts = belief.ahead.arms, belief.ahead.doubts(None)
    found = np.ones((2, num_beliefs, len(modes), 1, 1))
    for number, mode in enumerate(modes):
        if mode in AHEAD:
            at = 2 * AHEAD.index(mode)
            found[:, :, number, 0, 0] = mean[at : at + 2, None]
            found[0, -1, number] += hope * doubts[at]
            found[1, -1, number] -= hope * doubts[at + 1]
    served, exposed = found.clip(0.0, np.array([1.0, MOST])[:, None, None, None, None])
    return served, exposed


def catch_up_ms(belief: Belief, costs: Costs, batch: Batch) -> list[float]:
    """By exit: until layers have run all that they have not seen."""
    owed, total = [], 0.0
    factors = np.exp(belief.cost[costs.size(batch.num_rows)].arms[DRAFT:]).tolist()
    for lag, token_ms, factor in zip(belief.lags, costs.catch_up[costs.rows(batch.num_rows)], factors, strict=True):
        unseen = min(max(lag, batch.num_unseen), batch.context)
        total += token_ms * factor * unseen if unseen > SETTLED else 0.0
        owed.append(total)
    return owed


def _sized(arm: Arm, trial: bool, paces: Floats, off: float, batch: Batch, costs: Costs, belief: Belief) -> Decision:
    """The arm at its best length."""
    if arm.exit is None:
        return Decision(rate=1 / off, trial=trial)
    own = paces[batch.modes.index(arm.mode), arm.exit]
    length = 1 + int(own.argmin())
    pace = float(own[length - 1])
    drafted = min(int(sum([belief.goes_on**place for place in range(length)])), costs.length - 1)
    step, place = costs.token_ms(arm.exit, batch.num_drafting, batch.num_rows, drafted, batch.context)
    cost = belief.cost[costs.size(batch.num_rows)]
    draft, verify = exp(cost.arm(DRAFT + arm.exit)), exp(cost.arm(WIDE + MODES.index(arm.mode)))
    least = (step * draft + place * verify) / min(pace, off)
    # That a draft must be so far, to go on; a wider pass may take less than a narrower one.
    right = min(max(least, 0.0) / float(sigmoid(belief.accept.arms[arm.exit])), 1.0)
    stop = right ** (1 / batch.exponents.get(costs.exits[arm.exit], 1.0))
    return Decision(arm, length, 1 / pace, stop, trial)
