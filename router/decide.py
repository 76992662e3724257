"""The decision: how to get proposals, at which exit and how long, for the most committed tokens per second.

An arm is off, or a mode with an exit, and is worth what its best length brings. Of n drafted tokens a row gets

    tokens(exit, n) = 1 + a + a^2 g + ... + a^n g^(n-1)
    ms(exit, n)     = pass(n) + draft(exit, n) - what of it is hidden behind the pass + rest

a: the acceptance rate; g: how often a draft goes on behind a token, for it ends where the next one does not pay.
All arms are compared by the mean of the belief. Then another one is tried if a sample of the belief (Thompson, 1933)
says that it is better, with all of the catching up that it takes: what may well be better is played now and then, and
what surely is worse is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protocol.plan import BatchView, Mode
from router.belief import AHEAD, DRAFT, MODES, PLAIN, REST, SETTLED, WIDE, Belief
from router.filters import Floats, sigmoid
from router.tables import Costs

MARGIN = 0.02  # gain that another arm must promise; 0.03 was no better
HOPE = 0.5  # deviations in samples: regret 2.3 % with 0.5, 2.4 with 0.6, 3.0 with 1.0; with 0 deep exits stay unknown
HORIZON = 100.0  # rounds over which an arm pays back catching up: most of a text
LOOK = 12.0  # and over which a trial does: 100 cost 1.5 %, 8 and 20 are within noise


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
    that the pool has not seen. rounds: that the batch will last. Numbers of tokens and rounds are means.
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
    """What a round of every arm and length brings and takes, under one or more beliefs.

    tokens, draft_ms: [beliefs, modes, exits, lengths from 1]; draft_ms is what of drafting is waited for. pass_ms: the
    same for all exits. rest_ms: the same for all modes and lengths; catching up is in it. off_ms: [beliefs].
    """

    tokens: Floats
    draft_ms: Floats
    pass_ms: Floats
    rest_ms: Floats
    off_ms: Floats

    @property
    def rates(self) -> Floats:
        """Tokens per ms."""
        rates: Floats = self.tokens / (self.draft_ms + self.pass_ms + self.rest_ms)
        return rates


def decide(belief: Belief, costs: Costs, view: BatchView, rng: np.random.Generator, held: Arm) -> Decision:
    """held: the arm in use."""
    batch = batch_of(view, costs)
    if batch.room < 1:
        return Decision(held)
    both = believed_and_hoped(belief, costs, batch, rng, held)
    off = batch.num_rows / float(both.off_ms[0])
    rates = both.rates
    known, hopes = rates.max(axis=3)
    arm, rate = _best(known, off, batch)
    kept = _rate(held, known, off, batch)
    if kept * (1 + MARGIN) >= rate:
        arm, rate = held, kept
    if arm.exit is not None:
        hopes[batch.modes.index(arm.mode), arm.exit] = 0.0
    other, hope = _best(hopes, 0.0, batch)
    trial = hope > rate * (1 + MARGIN)
    return _sized(other if trial else arm, trial, rates[0], off, batch, costs, belief)


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
    """Outcomes under the mean of the belief."""
    return _outcomes(belief, costs, batch, belief.accept.arms[None], belief.cost.arms[None], (HORIZON,))


def profiled(belief: Belief, costs: Costs, batch: Batch, odds: Floats) -> Outcomes:
    """Outcomes at the profile's costs, with these log odds of acceptance by exit."""
    return _outcomes(belief, costs, batch, odds[None], np.zeros((1, len(belief.cost.mean) - 1)), (HORIZON,))


def believed_and_hoped(belief: Belief, costs: Costs, batch: Batch, rng: np.random.Generator, held: Arm) -> Outcomes:
    """Outcomes under the mean of the belief, and under a sample of how other arms may differ from the one in use."""
    odds, factors = belief.accept.arms, belief.cost.arms
    luck, cheap, ahead = (HOPE * rng.standard_normal(3)).tolist()
    used = PLAIN if held.exit is None else WIDE + MODES.index(held.mode)
    doubts = cheap * belief.cost.doubts(used)
    doubts[REST] = 0.0
    hoped = odds + luck * belief.accept.doubts(held.exit)
    return _outcomes(
        belief, costs, batch, np.array((odds, hoped)), np.array((factors, factors - doubts)), (HORIZON, LOOK), ahead
    )


def _outcomes(
    belief: Belief,
    costs: Costs,
    batch: Batch,
    odds: Floats,
    factors: Floats,
    horizons: tuple[float, ...],
    hope: float = 0.0,
) -> Outcomes:
    """odds, factors: [beliefs, arms]. horizons: of each belief. hope: deviations for the last belief's modes ahead."""
    num_rows, drafting, factors = costs.rows(batch.num_rows), costs.rows(batch.num_drafting), np.exp(factors)
    places = costs.places[: batch.room]
    reach = belief.goes_on**places  # share of drafts that get to a place
    passes = costs.passes(num_rows, batch.context)
    wide = np.interp(reach.cumsum() * (batch.num_drafting / batch.num_rows), costs.widths, passes)
    there = drafting * reach
    below = np.minimum(there.astype(np.int64), drafting - 1)
    fewer, more = costs.steps[below, places], costs.steps[below + 1, places]
    steps = fewer + (there - below)[:, None] * (more - fewer)
    drafts = steps.cumsum(axis=0).T * factors[:, DRAFT:, None] + (costs.link[num_rows] + belief.wait_ms)
    likely = sigmoid(odds)[:, :, None] ** (places + 1) * belief.goes_on_right**places
    accepted = batch.num_drafting * likely.cumsum(axis=2)
    rest = costs.rest[num_rows] * factors[:, REST]
    price = catch_up_ms(belief, costs, batch) / np.minimum(batch.rounds, horizons)[:, None]
    modes = [MODES.index(mode) for mode in batch.modes]
    pass_ms = factors[:, [WIDE + mode for mode in modes], None, None] * wide
    tokens, waited = accepted[:, None], drafts[:, None]
    if batch.modes != (Mode.SERIAL,):
        served, exposed = _ahead(belief, batch.modes, len(odds), hope)
        tokens, waited = served * tokens, waited - (1 - exposed) * np.minimum(waited, pass_ms)
    return Outcomes(
        batch.num_rows + tokens,
        waited,
        pass_ms,
        (rest[:, None] + price)[:, None, :, None],
        passes[0] * factors[:, PLAIN] + rest,
    )


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
    served, exposed = found.clip(0.0, 1.0)
    return served, exposed


def catch_up_ms(belief: Belief, costs: Costs, batch: Batch) -> Floats:
    """[exits]: until layers have run all that they have not seen."""
    lags = np.minimum(np.maximum(belief.lags, batch.num_unseen), batch.context)
    owed: Floats = (costs.catch_up[costs.rows(batch.num_rows)] * lags * (lags > SETTLED)).cumsum()
    return owed


def _best(rates: Floats, off: float, batch: Batch) -> tuple[Arm, float]:
    """rates: [modes, exits]."""
    best = int(rates.argmax())
    rate = float(rates.flat[best])
    return (Arm(batch.modes[best // rates.shape[1]], best % rates.shape[1]), rate) if rate > off else (OFF, off)


def _rate(arm: Arm, rates: Floats, off: float, batch: Batch) -> float:
    """0 for a mode that the batch cannot be played in."""
    if arm.exit is None:
        return off
    return float(rates[batch.modes.index(arm.mode), arm.exit]) if arm.mode in batch.modes else 0.0


def _sized(arm: Arm, trial: bool, rates: Floats, off: float, batch: Batch, costs: Costs, belief: Belief) -> Decision:
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
