"""What an arm is worth in the long run of a text, worked out over many rows at once, without a policy."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from tests.router.game import LENGTH, PROMPT, Luck, Truth
from tests.router.worlds import World

LENGTHS = (1, 2, 3, 4, 6, 8, 12)
STOPS = (0.0, 0.2, 0.4, 0.6)  # probability of a whole draft below which it ends
ROUNDS, ROWS, GROUPS = 40, 256, 16
CONTEXT = PROMPT + LENGTH / 2


def off(truth: Truth, batch: int) -> float:
    """Tokens per ms."""
    return batch / (truth.verify_ms(batch, batch, CONTEXT) + truth.rest_ms(batch))


def best_fixed(world: World, truth: Truth, text: str, batch: int, stops: tuple[float, ...] = (0.0,)) -> float:
    """Tokens per ms of the best constant, off included. stops: that it may have."""
    arms = product(world.exits, LENGTHS, stops)
    return max(off(truth, batch), *(rate(world, truth, text, batch, *arm) for arm in arms))


def rate(world: World, truth: Truth, text: str, batch: int, exit_: int, length: int, stop: float) -> float:
    luck = _luck(world)
    chance = luck.chances(text)[exit_][: ROWS // batch * batch]
    index, at = np.arange(len(chance)), np.zeros(len(chance), np.int64)
    tokens, ms = 0, 0.0
    for _ in range(ROUNDS):
        span = (at[:, None] + np.arange(length)) % chance.shape[1]
        sure = chance[index[:, None], span]
        ends = np.cumprod(sure, axis=1) <= stop
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, length)
        wrong = luck.uniform[index[:, None], span] >= sure
        accepted = np.minimum(np.where(wrong.any(axis=1), wrong.argmax(axis=1), length), lengths)
        at += 1 + accepted
        groups, rows = lengths.reshape(-1, batch)[:GROUPS].tolist(), min(GROUPS * batch, len(chance))
        tokens += rows + int(accepted[:rows].sum())
        ms += sum(_round_ms(truth, exit_, group) for group in groups)
    return tokens / ms


def _round_ms(truth: Truth, exit_: int, lengths: list[int]) -> float:
    batch = len(lengths)
    verify_ms = truth.verify_ms(batch, batch + sum(lengths), CONTEXT)
    return truth.draft_ms(exit_, lengths) + truth.link_ms(batch) + truth.rest_ms(batch) + verify_ms


@cache
def _luck(world: World) -> Luck:
    return Luck(world, ROWS, seed=10_000)
