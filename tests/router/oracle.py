"""What every arm is worth in the long run of a text, worked out over many rows at once, without a policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from tests.router.game import Luck, Truth
from tests.router.worlds import World

LENGTHS = (1, 2, 3, 4, 6, 8, 12)
STOPS = (0.0, 0.2, 0.4, 0.6)
ROUNDS, ROWS = 40, 256


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per ms: of the best fixed arm, with stops or without, and off."""

    fixed: float
    best: float
    off: float
    arm: tuple[int, int]


def rates(world: World, truth: Truth, text: str, batch: int, power: float = 1.0) -> Rates:
    luck = _luck(world.name, world, max(ROWS, batch))
    off = batch / (truth.verify_ms(batch, batch, 356) + truth.rest_ms(batch))
    arms = {
        (exit_, length, stop): _rate(luck, truth, text, batch, exit_, length, stop)
        for exit_, length, stop in product(world.exits, LENGTHS, STOPS)
    }
    plain = {arm: rate for arm, rate in arms.items() if not arm[2]}
    top = max(plain, key=lambda arm: plain[arm])
    return Rates(max(plain[top], off), max(*arms.values(), off), off, top[:2] if plain[top] > off else (0, 0))


_lucks: dict[tuple[str, int], Luck] = {}


def _luck(name: str, world: World, rows: int) -> Luck:
    if (name, rows) not in _lucks:
        _lucks[name, rows] = Luck(world, rows, seed=10_000)
    return _lucks[name, rows]


def _rate(luck: Luck, truth: Truth, text: str, batch: int, exit_: int, length: int, stop: float) -> float:
    chance = luck.chances(text)[exit_]
    rows = len(chance) // batch * batch
    at, index, tokens, ms = np.zeros(rows, np.int64), np.arange(rows), 0, 0.0
    for _ in range(ROUNDS):
        span = (at[:, None] + np.arange(length)) % chance.shape[1]
        sure = chance[index[:, None], span]
        ends = np.cumprod(sure, axis=1) <= stop
        lengths = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, length)
        wrong = luck.uniform[index[:, None], span] >= sure
        accepted = np.minimum(np.where(wrong.any(axis=1), wrong.argmax(axis=1), length), lengths)
        at += 1 + accepted
        tokens += int(rows + accepted.sum())
        reached = np.sort(lengths.reshape(-1, batch), axis=1)
        for group in reached[:: max(len(reached) // 16, 1)]:
            own = truth.draft_ms(exit_, group.tolist()) + truth.link_ms(batch) + truth.rest_ms(batch)
            ms += own + truth.verify_ms(batch, batch + int(group.sum()), 356)
    groups = len(range(0, rows // batch, max(rows // batch // 16, 1)))
    return tokens / rows * batch / (ms / groups / 1) * 1.0
