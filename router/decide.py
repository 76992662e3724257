"""The decision: how to get proposals, at which exit and how long, for the most committed tokens per second.

An arm is off, or a mode with an exit, and is worth what its best length brings. Of n drafted tokens a row gets

    tokens(exit, n) = 1 + a + a^2 g + ... + a^n g^(n-1)
    ms(exit, n)     = pass(n) + draft(exit, n) - what of it is hidden behind the pass + rest

a: the acceptance rate; g: how often a draft goes on behind a token, for it ends where the next one does not pay.
The arm in use and off are judged by the mean of the belief. Any other arm is tried when a sample of the belief (Thompson,
1933) says that it is better, all of the catching up that it takes included; so what may well be better is played now and
then, and what surely is worse is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protocol.plan import BatchView, Mode
from router.belief import AHEAD, DRAFT, MODES, PLAIN, REST, SETTLED, WIDE, Belief
from router.filters import Floats, sigmoid
from router.tables import Costs

MARGIN = 0.02  # gain that another arm must promise: below it, changes cost more than they bring (0.03: no better)
HOPE = 0.8  # deviations of a sample, of those of the belief: at 1.0 trials cost 0.3 % more, at 0.6 deep exits stay unknown
HORIZON = 100.0  # rounds over which an arm pays back catching up: most of a text
LOOK = 12.0  # and over which a trial does: with 100, trials of exits that lag cost 1.5 %


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
    """num_drafting: rows that may be drafted for. room: the longest draft of any of them. num_unseen: tokens of a row that
    the pool has not seen. rounds: that the batch will last. Numbers of tokens and rounds are means.
    """

    num_rows: int
    num_drafting: int
    context: float
    room: int
    num_unseen: float
    rounds: float
    modes: tuple[Mode, ...]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Of a round of every arm and length. tokens, draft_ms: [modes, exits, lengths from 1]; pass_ms: [modes, 1, lengths].

    draft_ms: what of drafting is waited for. rest_ms: [exits, 1], catching up included.
    """

    tokens: Floats
    draft_ms: Floats
    pass_ms: Floats
    rest_ms: Floats
    off_ms: float

    @property
    def rates(self) -> Floats:
        """Tokens per ms."""
        rates: Floats = self.tokens / (self.draft_ms + self.pass_ms + self.rest_ms)
        return rates


def decide(belief: Belief, costs: Costs, view: BatchView, rng: np.random.Generator, held: Arm) -> Decision:
    """held: the arm in use."""
    batch = batch_of(view, costs)
    if batch.room < 1:
        return Decision()
    known = expected(belief, costs, batch)
    off = batch.num_rows / known.off_ms
    rates = known.rates
    arm, rate = _best(rates.max(axis=2), off, batch)
    kept = _rate(held, rates, off, batch)
    if kept * (1 + MARGIN) >= rate:
        arm, rate = held, kept
    hopes = sampled(belief, costs, batch, rng, held).rates.max(axis=2)
    if arm.exit is not None:
        hopes[batch.modes.index(arm.mode), arm.exit] = 0.0
    other, hope = _best(hopes, 0.0, batch)
    trial = hope > rate * (1 + MARGIN)
    return _sized(other if trial else arm, trial, rates, off, batch, costs, belief)


def batch_of(view: BatchView, costs: Costs) -> Batch:
    rows = view.sequences
    drafting = [row for row in rows if row.drafts and row.remaining > 1]
    remaining = sum([row.remaining for row in rows]) / len(rows)
    return Batch(
        num_rows=len(rows),
        num_drafting=len(drafting),
        context=sum([row.num_tokens for row in rows]) / len(rows),
        room=min(max([row.remaining for row in drafting], default=1) - 1, costs.length),
        num_unseen=sum([row.num_unseen for row in drafting]) / max(len(drafting), 1),
        rounds=max(remaining / 2, 1.0),
        modes=view.modes,
    )


def expected(belief: Belief, costs: Costs, batch: Batch) -> Outcomes:
    """By the mean of the belief."""
    return _outcomes(belief, costs, batch, belief.accept.arms, belief.cost.arms, belief.ahead.arms, HORIZON)


def profiled(belief: Belief, costs: Costs, batch: Batch, odds: Floats) -> Outcomes:
    """By the profile, and given log odds of acceptance for each exit."""
    ahead, factors = belief.ahead.arms, np.zeros(len(belief.cost.mean) - 1)
    return _outcomes(belief, costs, batch, odds, factors, ahead, HORIZON)


def sampled(belief: Belief, costs: Costs, batch: Batch, rng: np.random.Generator, held: Arm) -> Outcomes:
    """By a sample of what may set other arms apart from the one in use."""
    odds = HOPE * belief.accept.deviations(rng)
    factors = HOPE * belief.cost.deviations(rng)
    factors -= factors[PLAIN if held.exit is None else WIDE + MODES.index(held.mode)]
    factors[REST] = 0.0
    if held.exit is not None:
        odds -= odds[held.exit]
    ahead = belief.ahead.arms + (HOPE * belief.ahead.deviations(rng) if len(batch.modes) > 1 else 0.0)
    return _outcomes(belief, costs, batch, belief.accept.arms + odds, belief.cost.arms + factors, ahead, LOOK)


def _outcomes(
    belief: Belief, costs: Costs, batch: Batch, odds: Floats, factors: Floats, ahead: Floats, horizon: float
) -> Outcomes:
    num_rows, drafting, factors = costs.rows(batch.num_rows), costs.rows(batch.num_drafting), np.exp(factors)
    places = costs.places[: batch.room]
    reach = belief.goes_on**places  # share of drafts that get to a place
    passes = costs.passes(num_rows, batch.context)
    wide = np.interp(reach.cumsum() * (batch.num_drafting / batch.num_rows), costs.widths, passes)
    there = drafting * reach
    below = np.minimum(there.astype(np.int64), drafting - 1)
    fewer, more = costs.steps[below, places], costs.steps[below + 1, places]
    steps = fewer + (there - below)[:, None] * (more - fewer)
    drafts = steps.cumsum(axis=0).T * factors[DRAFT:, None] + (costs.link[num_rows] + belief.wait_ms)
    accepted = (sigmoid(odds)[:, None] ** (places + 1) * belief.goes_on_right**places).cumsum(axis=1)
    rest = costs.rest[num_rows] * float(factors[REST])
    tokens, waited, verified = [], [], []
    for mode in batch.modes:
        own = wide * factors[WIDE + MODES.index(mode)]
        served, exposed = (1.0, 1.0) if mode not in AHEAD else shares(ahead, mode)
        tokens.append(batch.num_rows + batch.num_drafting * served * accepted)
        waited.append(drafts - (1 - exposed) * np.minimum(drafts, own))
        verified.append(own[None])
    rest_ms = rest + catch_up_ms(belief, costs, batch, horizon)[:, None]
    plain = float(passes[0] * factors[PLAIN]) + rest
    return Outcomes(np.stack(tokens), np.stack(waited), np.stack(verified), rest_ms, plain)


def shares(ahead: Floats, mode: Mode) -> tuple[float, float]:
    """Of a mode that drafts ahead: rows that have a proposal, and what of a draft is waited for."""
    served, exposed = ahead[2 * AHEAD.index(mode) :][:2].tolist()
    return min(max(served, 0.0), 1.0), min(max(exposed, 0.0), 1.0)


def catch_up_ms(belief: Belief, costs: Costs, batch: Batch, horizon: float) -> Floats:
    """[exits]: what it adds to each of the coming rounds that layers first run what they have not seen."""
    lags = np.minimum(np.maximum(belief.lags, batch.num_unseen), batch.context)
    owed = np.where(lags > SETTLED, costs.catch_up[costs.rows(batch.num_rows)] * lags, 0.0)
    price: Floats = owed.cumsum() / min(batch.rounds, horizon)
    return price


def _best(rates: Floats, off: float, batch: Batch) -> tuple[Arm, float]:
    """rates: [modes, exits]."""
    best = int(rates.argmax())
    rate = float(rates.flat[best])
    return (Arm(batch.modes[best // rates.shape[1]], best % rates.shape[1]), rate) if rate > off else (OFF, off)


def _rate(arm: Arm, rates: Floats, off: float, batch: Batch) -> float:
    """0 for a mode that the batch cannot be played in."""
    if arm.exit is None:
        return off
    return float(rates[batch.modes.index(arm.mode), arm.exit].max()) if arm.mode in batch.modes else 0.0


def _sized(
    arm: Arm, trial: bool, rates: Floats, off: float, batch: Batch, costs: Costs, belief: Belief
) -> Decision:
    """The arm at its best length. A lone row's draft is ended by its confidence only: nobody waits for it."""
    if arm.exit is None:
        return Decision(rate=off)
    own = rates[batch.modes.index(arm.mode), arm.exit]
    length = 1 + int(own.argmax())
    step, place = costs.token_ms(arm.exit, batch.num_drafting, batch.num_rows, length, batch.context)
    draft, verify = np.exp(belief.cost.arms[[DRAFT + arm.exit, WIDE + MODES.index(arm.mode)]]).tolist()
    least = max(float(own[length - 1]), off) * (step * draft + place * verify)
    stop = belief.calibration.confidence(costs.exits[arm.exit], least / float(sigmoid(belief.accept.arms[arm.exit])))
    longest = batch.room if batch.num_drafting == 1 else length
    return Decision(arm, longest, float(own[length - 1]), stop, trial)
