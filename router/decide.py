"""The decision: how to get proposals, at which exit and how long, for the fewest milliseconds per committed token.

Arms are compared by the mean of the belief, and what an arm has to catch up with first is a price that the tokens left
to the batch share. Then an arm is tried if what may be found out is worth more than it costs, in milliseconds:

    expected improvement per token x tokens left > price + (loss per token x tokens of a trial)

The expected improvement is that of a normal variable (Jones et al., 1998). Nothing is drawn by chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import erf, exp, hypot, pi, sqrt

from protocol.plan import BatchView, Mode
from router.belief import DRAFT, MODES, PLAIN, REST, WIDE, Belief
from router.filters import sigmoid
from router.rounds import OFF, Arm, Batch, Guess, Rounds, batch_of, expected, rounds_of
from router.seen import SETTLED
from router.tables import Costs

MARGIN = 0.02  # of the pace that another arm must promise
HORIZON = 100.0  # tokens of a row for which what is found out is of use, at most; 300 loses 3 % of off
LOOK = 32.0  # tokens of a row that a trial takes


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


def decide(belief: Belief, costs: Costs, view: BatchView, held: Arm) -> Decision:
    """held: the arm in use."""
    batch = batch_of(view, costs)
    if batch.room < 1:
        return Decision(held)
    rounds, guess = rounds_of(belief, costs, batch), expected(belief, costs, batch.num_rows)
    arms = [OFF, *(Arm(mode, exit_) for mode in batch.modes for exit_ in range(len(costs.exits)))]
    best = [(rounds.off_pace(guess), 0), *(rounds.best(guess, arm.mode, arm.exit) for arm in arms if arm.exit is not None)]
    prices = [0.0, *catch_up_ms(belief, costs, batch) * len(batch.modes)]
    left = batch.num_rows * min(batch.remaining, HORIZON)
    owed = [pace + price / left for (pace, _), price in zip(best, prices, strict=True)]
    chosen = owed.index(min(owed))
    if held in arms and owed[arms.index(held)] <= owed[chosen] * (1 + MARGIN):
        chosen = arms.index(held)
    pace, hopes = owed[chosen] / (1 + MARGIN), _hopes(belief, costs, batch, guess, held)
    tried, most = chosen, 0.0
    for at, (arm, (own, length), price) in enumerate(zip(arms, best, prices, strict=True)):
        doubt = hypot(*[own - (rounds.off_pace(hope) if arm.exit is None else rounds.by_length(hope, arm.mode, arm.exit, length)[-1][0]) for hope in hopes])
        worth = left * improvement(own - pace, doubt) - price - LOOK * batch.num_rows * max(own - pace, 0.0)
        if at != chosen and worth > most:
            tried, most = at, worth
    return _sized(arms[tried], best[tried], tried != chosen, best[0][0], guess, batch, costs, belief)


def _hopes(belief: Belief, costs: Costs, batch: Batch, guess: Guess, held: Arm) -> tuple[Guess, Guess]:
    """Where other arms accept a deviation more than the one in use than is believed, and where they take a deviation
    less.
    """
    accept, cost, ahead = belief.accept, belief.cost[costs.size(batch.num_rows)], belief.ahead
    used = PLAIN if held.exit is None else WIDE + MODES.index(held.mode)
    more = [sigmoid(odds + doubt) for odds, doubt in zip(accept.values, accept.doubts(held.exit), strict=True)]
    less = [factor * exp(-doubt) for factor, doubt in zip(guess.factors, cost.doubts(used), strict=True)]
    less[REST] = guess.factors[REST]
    signs = (1, -1) * (len(guess.ahead) // 2)
    shares = [share + sign * doubt for share, sign, doubt in zip(guess.ahead, signs, ahead.doubts(), strict=True)]
    return replace(guess, rates=more), replace(guess, factors=less, ahead=shares)


def improvement(loss: float, doubt: float) -> float:
    """By how much a normal variable of this deviation, around -loss, is above 0 in the mean."""
    if doubt < 1e-9 * abs(loss) or not doubt:
        return max(-loss, 0.0)
    score = loss / doubt
    return doubt * (exp(-(score**2) / 2) / sqrt(2 * pi) - score * (1 - erf(score / sqrt(2))) / 2)


def catch_up_ms(belief: Belief, costs: Costs, batch: Batch) -> list[float]:
    """By exit: until layers have run all that they have not seen."""
    owed, total = [], 0.0
    cost = belief.cost[costs.size(batch.num_rows)]
    for at, (lag, token_ms) in enumerate(zip(belief.lags, costs.catch_up[costs.rows(batch.num_rows)], strict=True)):
        unseen = min(max(lag, batch.num_unseen), batch.context)
        total += token_ms * exp(cost.value(DRAFT + at)) * unseen if unseen > SETTLED else 0.0
        owed.append(total)
    return owed


def _sized(
    arm: Arm, best: tuple[float, int], trial: bool, off: float, guess: Guess, batch: Batch, costs: Costs, belief: Belief
) -> Decision:
    """The arm at its best length."""
    pace, length = best
    if arm.exit is None:
        return Decision(rate=1 / pace, trial=trial)
    drafted = min(int(sum([belief.goes_on**place for place in range(length)])), costs.length - 1)
    step, place = costs.token_ms(arm.exit, batch.num_drafting, batch.num_rows, drafted, batch.context)
    draft, verify = guess.factors[DRAFT + arm.exit], guess.factors[WIDE + MODES.index(arm.mode)]
    least = (step * draft + place * verify) / min(pace, off)
    # That a draft must be so far, to go on; a wider pass may take less than a narrower one.
    right = min(max(least, 0.0) / guess.rates[arm.exit], 1.0)
    stop = right ** (1 / batch.exponents.get(costs.exits[arm.exit], 1.0))
    return Decision(arm, length, 1 / pace, stop, trial)
