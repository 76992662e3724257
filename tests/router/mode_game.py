"""A machine whose rounds take what a scene says, and the obvious rule: play every mode, keep the best, try again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from router.modes import AHEAD, Mode, Round, playable

NOISE, HICCUPS, HICCUP = 0.1, 0.01, 6.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Milliseconds, chances. off: what a round of a mode takes over its parts. half: a pass of half a batch."""

    num_rows: int = 1
    verify_ms: float = 10.0
    draft_ms: float = 5.0
    rest_ms: float = 0.5
    chance: float = 0.75
    length: int = 4
    hits: float = 0.6
    early: float = 0.1  # hits more with early picks
    off: Mapping[Mode, float] = field(default_factory=dict)
    half: float = 0.7

    def goes(self, mode: Mode) -> bool:
        """Without the windows that are not at hand, where that brings more than to wait for fresh ones."""
        if mode not in AHEAD:
            return False
        hits, accepted = self.hits_of(mode, False), expected(self)
        hidden_ms = max(self.verify_ms, self.draft_ms) + self.rest_ms
        waiting = (1 + accepted) / (hidden_ms + (1 - hits**self.num_rows) * self.draft_ms)
        return (1 + hits * accepted) / hidden_ms > waiting

    def hits_of(self, mode: Mode, changed: bool) -> float:
        """Branches are there from the second round of a mode on."""
        own = {Mode.MIRROR: self.hits, Mode.HINTED: min(self.hits + self.early, 1.0)}
        return 0.0 if changed else own.get(mode, 0.0)


class Chooser(Protocol):
    def choose(self, num_rows: int) -> Mode: ...
    def observe(self, num_rows: int, played: Round) -> None: ...


def play_round(scene: Scene, mode: Mode, changed: bool, rng: random.Random) -> Round:
    """In lanes half of the rows go, and after a change they are drafted for in turn."""
    num_rows = scene.num_rows // 2 if mode is Mode.LANES else scene.num_rows
    hits = [rng.random() < scene.hits_of(mode, changed) for _ in range(num_rows)]
    goes = scene.goes(mode)
    lengths = tuple(scene.length if hit or not goes else 0 for hit in hits)
    verify_ms, draft_ms = (ms * scene.off.get(mode, 1.0) * _noise(rng) for ms in (scene.verify_ms, scene.draft_ms))
    rest_ms, waited, late = scene.rest_ms * _noise(rng), None, 0.0
    if mode is Mode.LANES:
        verify_ms, draft_ms = scene.half * verify_ms, scene.half * draft_ms
        late = draft_ms if changed else max(draft_ms - verify_ms, 0.0)
    else:
        late = max(draft_ms - verify_ms, 0.0) if mode in AHEAD and not changed else 0.0
        waited = None if goes or all(hits) else draft_ms
    ms = verify_ms + late + (waited or 0.0) + rest_ms
    accepted = tuple(_accepted(scene, length, rng) for length in lengths)
    return Round(mode, lengths, accepted, ms, verify_ms, rest_ms, waited, num_rows, sum(hits))


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a mode that is kept to: means of a round."""

    tokens: float
    ms: float

    @property
    def rate(self) -> float:
        return self.tokens / self.ms


def paces(scene: Scene, num_rounds: int = 4000) -> dict[Mode, Pace]:
    found = {}
    for mode in playable(tuple(Mode), scene.num_rows):
        rng = random.Random(0)
        rounds = [play_round(scene, mode, False, rng) for _ in range(num_rounds)]
        found[mode] = Pace(fmean(map(tokens_of, rounds)), fmean(one.ms for one in rounds))
    return found


def tokens_of(played: Round) -> int:
    return len(played.lengths) + sum(played.accepted)


def regret(chooser: Chooser, scene: Scene, known: Mapping[Mode, Pace], num_rounds: int, rng: random.Random) -> float:
    """Share of the best mode's tokens that the chooser forgoes in so many rounds, those of half a batch counted half.

    Luck is left out: a round counts as a mean one of its mode, and what a change costs is how much longer it took.
    """
    got = could = left = 0.0
    before: Mode | None = None
    best = max(pace.rate for pace in known.values())
    while left < num_rounds:
        mode = chooser.choose(scene.num_rows)
        played = play_round(scene, mode, mode is not before, rng)
        chooser.observe(scene.num_rows, played)
        changed = mode is not before and mode is not Mode.SERIAL
        got += (
            len(played.lengths) * (1 + expected(scene) * fmean(map(bool, played.lengths)))
            if changed
            else known[mode].tokens
        )
        could += best * (played.ms if changed else known[mode].ms)
        left += 0.5 if mode is Mode.LANES else 1.0
        before = mode
    return 1 - got / could


def _likely(scene: Scene, played: Round) -> float:
    return len(played.lengths) + expected(scene) * sum(map(bool, played.lengths))


def expected(scene: Scene) -> float:
    return sum(scene.chance**number for number in range(1, scene.length + 1))


def _accepted(scene: Scene, length: int, rng: random.Random) -> int:
    return next((number for number in range(length) if rng.random() >= scene.chance), length)


def _noise(rng: random.Random) -> float:
    return rng.gauss(1.0, NOISE) * (HICCUP if rng.random() < HICCUPS else 1.0)


@dataclass(slots=True)
class PlayAll:
    """Every mode for `enough` rounds, the best of them from then on, and each of the others again now and then."""

    stretch: int = 12
    enough: int = 30
    patience: int = 192
    half_life: float = 200.0
    _sums: dict[Mode, list[float]] = field(default_factory=dict)  # tokens, ms, rounds
    _mode: Mode | None = None
    _left: int = 0
    _rested: int = 0
    _in_vain: int = 0
    _best: Mode | None = None

    def choose(self, num_rows: int) -> Mode:
        self._sums = self._sums or {mode: [0.0, 0.0, 0.0] for mode in playable(tuple(Mode), num_rows)}
        if self._left <= 0:
            before, self._mode = self._mode, self._next()
            self._left = self.stretch - (self._mode is before)
        assert self._mode is not None
        return self._mode

    def observe(self, num_rows: int, played: Round) -> None:
        assert self._mode is not None
        if self._left < self.stretch:
            fade = 0.5 ** (1 / self.half_life)
            news = (tokens_of(played), played.ms, 1)
            self._sums[self._mode] = [fade * old + new for old, new in zip(self._sums[self._mode], news, strict=True)]
        self._left -= 1
        self._rested += 1

    def _next(self) -> Mode:
        least = min(self._sums, key=lambda mode: self._sums[mode][2])
        if self._sums[least][2] < self.enough and self._best is None:
            return least
        rates = {mode: tokens / max(ms, 1e-9) for mode, (tokens, ms, _) in self._sums.items()}
        top = max(rates, key=lambda mode: rates[mode])
        better = self._best is None or rates[top] > 1.02 * rates[self._best]
        if self._best is not None and self._mode is not self._best:
            self._in_vain = 0 if better else self._in_vain + 1
        self._best = top if better else self._best
        assert self._best is not None
        if self._rested >= self.patience << min(self._in_vain, 4) and len(rates) > 1:
            self._rested = 0
            tried = min((mode for mode in rates if mode is not self._best), key=lambda mode: self._sums[mode][2])
            self._sums[tried] = [0.3 * value for value in self._sums[tried]]
            return tried
        return self._best
