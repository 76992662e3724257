"""The decision: how to get proposals, at which exit and how long, for the fewest milliseconds per committed token.

Arms are compared by the mean of the belief, and what an arm has to catch up with first is a price that the tokens left
to the batch share. Then an arm is tried if what may be found out is worth more than it costs, in milliseconds:

    expected improvement per token x tokens left > price + (loss per token x tokens of a trial)

The expected improvement is that of a normal variable (Jones et al., 1998). Nothing is drawn by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, exp, hypot, pi, sqrt

from protocol.plan import BatchView, Mode
from router.belief import DRAFT, MEMORY, Belief
from router.filters import Filter
from router.rounds import OFF, Arm, Outcome, Rounds, batch_of, expected, part_of, rounds_of
from router.seen import SETTLED
from router.tables import Costs

MARGIN = 0.02  # of the pace that another arm must promise
HORIZON = 200.0  # tokens of a row for which what is found out is of use, at most; with 100 short texts stay off
LOOK = 32.0  # tokens of a row that a trial takes


@dataclass(frozen=True, slots=True)
class Decision:
    """rate: expected tokens per ms. stop_probability: confidence in a whole draft below which it ends.

    trial: the arm is played to find out whether it is better. opening: the exit, by number, at which the contexts of
    new sequences are handed over; None: not even where the pool has read them would drafts pay in such a batch.
    """

    arm: Arm = OFF
    length: int = 0
    rate: float = 0.0
    stop_probability: float = 0.0
    trial: bool = False
    opening: int | None = 0


def decide(belief: Belief, costs: Costs, view: BatchView, held: Arm, opening: int | None = 0) -> Decision:
    """held: the arm in use. opening: of the decision before; it stands where a whole draft has no room, for the end of
    a text says nothing of the next.
    """
    batch = batch_of(view, costs)
    if batch.room < 1:
        return Decision(held, opening=opening)
    rounds = rounds_of(belief, costs, batch, expected(belief, costs, batch.num_rows))
    arms = [OFF, *[Arm(mode, exit_) for mode in batch.modes for exit_ in range(len(costs.exits))]]
    best = [rounds.off() if arm.exit is None else min(rounds.by_length(arm.mode, arm.exit)) for arm in arms]
    prices = [0.0, *catch_up_ms(rounds, costs) * len(batch.modes)]
    left = batch.num_rows * min(batch.remaining, HORIZON)
    owed = [outcome[0] + price / left for outcome, price in zip(best, prices, strict=True)]
    chosen = owed.index(min(owed))
    if held in arms and owed[arms.index(held)] <= owed[chosen] * (1 + MARGIN):
        chosen = arms.index(held)
    pace, times = owed[chosen] / (1 + MARGIN), belief.cost[costs.size(batch.num_rows)]
    worth = [
        0.0 if at == chosen else worth_of(rounds, times, arms[at], best[at], held, pace, left) - price
        for at, price in enumerate(prices)
    ]
    tried = worth.index(max(worth)) if max(worth) > 0 else chosen
    stop = stop_of(rounds, costs, arms[tried], best[tried], best[0][0])
    if arms[tried].exit is not None or batch.room >= costs.length:
        opening = opening_of(arms, best, tried)
    return Decision(arms[tried], best[tried][1], 1 / best[tried][0], stop, tried != chosen, opening)


def opening_of(arms: Sequence[Arm], best: Sequence[Outcome], played: int) -> int | None:
    """The exit that is played; while off, that of the best arm, were all contexts read, if it is better by a margin."""
    if arms[played].exit is not None:
        return arms[played].exit
    fastest = best.index(min(best))
    return arms[fastest].exit if best[fastest][0] * (1 + MARGIN) < best[played][0] else None


def worth_of(rounds: Rounds, times: Filter, arm: Arm, outcome: Outcome, held: Arm, pace: float, left: float) -> float:
    """Milliseconds that trying an arm is expected to save, less what the trial costs.

    pace: milliseconds per token to beat. left: tokens to come. A plain pass takes the same for any
    text, so one round settles it.
    """
    num_rows, loss = rounds.batch.num_rows, outcome[0] - pace
    gain = improvement(loss, doubt_of(rounds, times, arm, outcome, held))
    if arm.exit is None:
        return num_rows * (MEMORY * gain - max(loss, 0.0))
    return left * gain - LOOK * num_rows * max(loss, 0.0)


def doubt_of(rounds: Rounds, times: Filter, arm: Arm, outcome: Outcome, held: Arm) -> float:
    """Standard deviation of an arm's milliseconds per token, without the causes that it shares with the arm in use."""
    (pace, length, tokens, wait_ms, pass_ms), used, ahead = outcome, part_of(held), rounds.belief.ahead
    ms = times.doubt(part_of(arm), used) * pass_ms
    if arm.exit is None:
        return ms / tokens
    ms += times.doubt(DRAFT, used) * wait_ms
    drafted, rate = tokens - rounds.batch.num_rows, rounds.guess.rates[arm.exit]
    if arm.mode is Mode.AHEAD:
        served, _ = rounds.guess.shares(arm.mode)
        ms += ahead.doubt(1) * min(wait_ms, pass_ms) + ahead.doubt(0) * drafted / served * pace
    # The n-th token of a draft comes to rate^n, so one more deviation in log odds is worth n times as much there.
    ratio = rate * rounds.belief.goes_on_right
    mean = 1 / (1 - ratio) - length * ratio**length / (1 - ratio**length)
    more = drafted * mean * (1 - rate) * rounds.belief.accept.doubt(arm.exit, held.exit)
    return hypot(ms, more * pace) / tokens


def improvement(loss: float, doubt: float) -> float:
    """The expected value of max(x, 0), where x is normal with mean -loss and this standard deviation."""
    if doubt < 1e-9 * abs(loss) or not doubt:
        return max(-loss, 0.0)
    score = loss / doubt
    return doubt * (exp(-(score**2) / 2) / sqrt(2 * pi) - score * (1 - erf(score / sqrt(2))) / 2)


def catch_up_ms(rounds: Rounds, costs: Costs) -> list[float]:
    """By exit: the time in which its layers run all tokens that they have not seen."""
    owed, total, batch = [], 0.0, rounds.batch
    for lag, token_ms in zip(rounds.belief.lags, costs.catch_up[costs.rows(batch.num_rows)], strict=True):
        unseen = min(max(lag, batch.num_unseen), batch.context)
        total += token_ms * rounds.guess.factors[DRAFT] * unseen if unseen > SETTLED else 0.0
        owed.append(total)
    return owed


def stop_of(rounds: Rounds, costs: Costs, arm: Arm, outcome: Outcome, off: float) -> float:
    """The confidence in a whole draft below which it ends: its next token would take longer than it may save. Of
    drafting ahead only the part that is waited for counts.

    off: milliseconds per token of plain decoding.
    """
    if arm.exit is None:
        return 0.0
    batch, guess, goes_on, (pace, length, *_) = rounds.batch, rounds.guess, rounds.belief.goes_on, outcome
    drafted = min(int(sum([goes_on**place for place in range(length)])), costs.length - 1)
    step, place = costs.token_ms(arm.exit, batch.num_drafting, batch.num_rows, drafted, batch.context)
    _, waited = guess.shares(arm.mode)
    least = (waited * step * guess.factors[DRAFT] + place * guess.factors[part_of(arm)]) / min(pace, off)
    # That a draft must be so far, to go on; a wider pass may take less than a narrower one.
    right = min(max(least, 0.0) / guess.rates[arm.exit], 1.0)
    return float(right ** (1 / batch.exponents.get(costs.exits[arm.exit], 1.0)))
