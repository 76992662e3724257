"""The choice: which depth rule, and how many tokens for each sequence, commit the most tokens per second.

For one rule, tokens are taken in order of the probability that they and all before them are accepted, whichever
sequence they belong to (a budget, not a length). Along that order both the expected tokens and the time of the round
are running sums, so the best number of tokens is the best entry of a quotient of two arrays. A step of the drafter has
a price of its own, whoever takes part, so the order by position is tried as well. The arm "off" takes none.

    goodput(rule, m) = (rows + sum of the m largest survivals) / (draft + verify(rows + m) + other)

A draft may be stopped before its end. The step at a position is then paid for those rows that get there, and only if
any does. All rules and both orders are worked out at once: what such small arrays take is the number of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.predict import Predictor

Floats = npt.NDArray[np.float64]


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
    """[..., rows, length]: probability that a token and all before it are accepted; 0 where there is no room.

    hazards: [..., length]. odds: each sequence's factor on the probability of a refusal.
    """
    each = np.maximum(1 - np.asarray(odds)[:, None] * (1 - hazards[..., None, :]), 0.02)
    inside = np.arange(hazards.shape[-1])[None, :] < np.asarray(room)[:, None]
    survival: Floats = np.where(inside, np.cumprod(each, axis=-1), 0.0)
    return survival


def off(predictor: Predictor, num_rows: int, context: float) -> Arm:
    ms = predictor.verify_ms(num_rows, num_rows, context) + predictor.other_ms(num_rows, drafts=False)
    return Arm(None, (0,) * num_rows, float(num_rows), ms)


def best(
    predictor: Predictor,
    survival: Floats,
    context: float,
    catch_up_ms: Sequence[float] | None = None,
    drafted: Floats | None = None,
    exposed: float = 1.0,
) -> list[Arm]:
    """The best budget of each rule with at least one drafted token.

    survival: [rules, rows, length], as `survivals` gives it. drafted: [rules, length], share of drafts that get as far
    as a position before they are stopped, and so cost something there; None: all. A row that is likelier to have its
    tokens accepted than that gets there as likely. catch_up_ms: by rule, what it adds to a round that the pool has to
    be shown what it has not seen. exposed: how much of drafting is waited for.
    """
    num_rules, num_rows, length = survival.shape
    reach = np.ones((num_rules, length)) if drafted is None else drafted
    steps = np.stack([exposed * predictor.draft_steps(rule, num_rows) for rule in range(num_rules)])
    order = np.argsort(_keys(survival), axis=-1, kind="stable")  # [orders, rules, tokens]

    def along(values: Floats) -> Floats:
        """[rules, rows, length] as running sums."""
        flat = values.reshape(1, num_rules, -1)
        return np.cumsum(np.take_along_axis(flat, order, axis=-1), axis=-1)

    tokens, ms = predictor.verify_line(num_rows, context, wide=True)
    other = predictor.other_ms(num_rows, drafts=True, exposed=exposed) + np.asarray(catch_up_ms or [0.0] * num_rules)
    there = np.maximum(reach[:, None, :], survival)
    verify = np.interp(num_rows + along(there), tokens, ms)
    rounds = along(_shares(survival, there, steps)) + verify + other[:, None]
    expected = num_rows + along(survival)
    rates = np.where(np.diff(expected, prepend=num_rows) > 0, expected / rounds, 0.0)
    found = np.argmax(rates, axis=-1)
    by = np.argmax(np.take_along_axis(rates, found[..., None], axis=-1)[..., 0], axis=0)  # [rules]
    arms = []
    for rule, way in enumerate(by.tolist()):
        last = int(found[way, rule])
        lengths = np.bincount(order[way, rule, : last + 1] // length, minlength=num_rows)
        fewer = np.interp([num_rows, num_rows + last + 1], tokens, ms)
        made = float(expected[way, rule, last]), float(rounds[way, rule, last])
        token_ms, step_ms = float(fewer[1] - fewer[0]) / (last + 1), float(steps[rule, num_rows].mean()) / num_rows
        arms.append(Arm(rule, tuple(lengths.tolist()), *made, token_ms, step_ms))
    return arms


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


def _keys(survival: Floats) -> Floats:
    """[orders, rules, tokens], to be sorted by: survival, and position by position; one and the same for a lone row."""
    by_survival = -survival.reshape(len(survival), -1)
    if survival.shape[1] == 1:
        return by_survival[None]
    position = np.tile(np.arange(survival.shape[2]), survival.shape[1])
    return np.stack([by_survival, np.where(by_survival < 0, position + by_survival, np.inf)])


def _shares(survival: Floats, reach: Floats, steps: Floats) -> Floats:
    """[rules, rows, length] ms: what a token adds to its step, behind those of its position that are likelier.

    reach: likewise, how likely the draft gets there. steps: [rules, rows + 1, length] ms where so many do.
    """
    order = np.argsort(-survival, axis=1, kind="stable")
    likeliest = np.take_along_axis(reach, order, axis=1)
    anyone = 1 - np.cumprod(1 - likeliest, axis=1)
    rows = np.cumsum(likeliest, axis=1) / np.maximum(anyone, 1e-9)  # on average, when anyone gets there
    below = np.minimum(rows.astype(np.int64), steps.shape[1] - 2)
    fewer, more = (np.take_along_axis(steps, number, axis=1) for number in (below, below + 1))
    prices = anyone * (fewer + (rows - below) * (more - fewer))
    ranks = np.argsort(order, axis=1)
    shares: Floats = np.take_along_axis(np.diff(prices, axis=1, prepend=0.0), ranks, axis=1)
    return shares
