"""The choice: which depth rule, and how many tokens for each sequence, commit the most tokens per second.

For one rule, tokens are taken in order of the probability that they and all before them are accepted, whichever
sequence they belong to (a budget, not a length). Along that order both the expected tokens and the time of the round
are running sums, so the best number of tokens is the best entry of a quotient of two arrays. A step of the drafter has
a price of its own, whoever takes part, so the order by position is tried as well. The arm "off" takes none.

    goodput(rule, m) = (rows + sum of the m largest survivals) / (draft + verify(rows + m) + other)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.predict import Predictor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arm:
    """rule: number of the depth rule, None for off. lengths: one per sequence. goodput: tokens per second expected.

    token_ms: what one more verified token would cost, and step_ms what one more drafted one would.
    """

    rule: int | None
    lengths: tuple[int, ...]
    tokens: float
    round_ms: float
    token_ms: float = 0.0
    step_ms: float = 0.0

    @property
    def goodput(self) -> float:
        return 1e3 * self.tokens / self.round_ms


def survivals(hazards: Floats, odds: Sequence[float], room: Sequence[int]) -> Floats:
    """[rows, length]: probability that a token and all before it are accepted; 0 where there is no room.

    odds: each sequence's factor on the probability of a refusal.
    """
    each = np.maximum(1 - np.asarray(odds)[:, None] * (1 - hazards[None, :]), 0.02)
    inside = np.arange(len(hazards))[None, :] < np.asarray(room)[:, None]
    survival: Floats = np.where(inside, np.cumprod(each, axis=1), 0.0)
    return survival


def off(predictor: Predictor, num_rows: int, context: float) -> Arm:
    ms = predictor.verify_ms(num_rows, num_rows, context) + predictor.other_ms(num_rows, drafts=False)
    return Arm(None, (0,) * num_rows, float(num_rows), ms)


def best(
    predictor: Predictor,
    rule: int,
    survival: Floats,
    context: float,
    catch_up_ms: float = 0.0,
    drafted: Floats | None = None,
    exposed: float = 1.0,
) -> Arm:
    """The best budget of one rule with at least one drafted token.

    survival: as `survivals` gives it. drafted: [length], share of drafts that get as far as a position before they are
    stopped, and so cost something there; None: all. catch_up_ms: what it adds to a round that the pool has to be shown
    what it has not seen. exposed: how much of drafting is waited for.
    """
    num_rows = len(survival)
    num_tokens = max(int(np.count_nonzero(survival)), 1)
    steps = exposed * predictor.draft_steps(rule, num_rows)
    tokens, ms = predictor.verify_line(num_rows, context, wide=True)
    other = predictor.other_ms(num_rows, drafts=True, exposed=exposed) + catch_up_ms
    reach = np.ones(survival.shape[1]) if drafted is None else drafted

    def fixed(number: Floats) -> Floats:
        passes: Floats = np.interp(num_rows + number, tokens, ms)
        return passes + other

    found = [_along(order[:num_tokens], survival, steps, fixed, reach) for order in _orders(survival)]
    expected, rounds, lengths = max(found, key=lambda one: one[0] / one[1])
    fewer = np.interp([num_rows, num_rows + sum(lengths)], tokens, ms)
    slope = float(fewer[1] - fewer[0]) / sum(lengths)
    return Arm(rule, lengths, expected, rounds, slope, float(steps[num_rows].mean()) / num_rows)


def evaluate(
    predictor: Predictor, rule: int, survival: Floats, lengths: Sequence[int], context: float, catch_up_ms: float = 0.0
) -> Arm:
    """What given lengths under a rule would bring."""
    num_rows = len(lengths)
    ms = predictor.round(rule if any(lengths) else None, lengths, context).total_ms + catch_up_ms
    tokens = num_rows + sum(float(row[:length].sum()) for row, length in zip(survival, lengths, strict=True))
    return Arm(rule if any(lengths) else None, tuple(lengths), tokens, ms)


def keep_or_switch(current: Arm | None, arms: Sequence[Arm], hysteresis: float, inertia: float) -> Arm:
    """The best arm, unless the one in use comes close: within inertia of another rule, hysteresis of off or on."""
    top = max(arms, key=lambda arm: arm.goodput)
    if current is None:
        return top
    same = next((arm for arm in arms if arm.rule == current.rule), None)
    gain = hysteresis if None in (top.rule, current.rule) else inertia
    return same if same is not None and same.goodput * (1 + gain) >= top.goodput else top


def _orders(survival: Floats) -> list[Ints]:
    """By survival, and position by position; one and the same for a single row."""
    by_survival = np.argsort(-survival, axis=None, kind="stable")
    if len(survival) == 1:
        return [by_survival]
    positions = np.broadcast_to(np.arange(survival.shape[1]), survival.shape)
    return [by_survival, np.lexsort((-survival.reshape(-1), np.where(survival > 0, positions, np.inf).reshape(-1)))]


def _along(
    order: Ints, survival: Floats, steps: Floats, fixed: Callable[[Floats], Floats], reach: Floats
) -> tuple[float, float, tuple[int, ...]]:
    """Expected tokens, ms and lengths at the best point along an order. fixed: ms but drafting, by drafted tokens."""
    num_rows, length = survival.shape
    columns = order % length
    ranks = _ranks(columns, length)
    share = reach[columns]
    draft = np.cumsum(share * (steps[ranks + 1, columns] - np.where(ranks > 0, steps[ranks, columns], 0.0)))
    rounds = draft + fixed(np.cumsum(share))
    expected = num_rows + np.cumsum(survival.reshape(-1)[order])
    chosen = int(np.argmax(expected / rounds))
    lengths = np.bincount(order[: chosen + 1] // length, minlength=num_rows)
    return float(expected[chosen]), float(rounds[chosen]), tuple(lengths.tolist())


def _ranks(columns: Ints, length: int) -> Ints:
    """How many of the entries before each have the same column."""
    counts = np.bincount(columns, minlength=length)
    ranks = np.empty(len(columns), np.int64)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    ranks[np.argsort(columns, kind="stable")] = np.arange(len(columns)) - first
    return ranks
