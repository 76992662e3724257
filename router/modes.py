"""In turn, or ahead: which kind of round commits more tokens per second, found by playing them.

    mirror   the pool drafts ahead while the target verifies
    hinted   and half way through its pass the target tells what it would pick so far, which costs a little of the pass
    serial   plan, draft, verify, one after the other
    lanes    half of the batch is drafted for while the other half is verified; for two rows or more

Rounds of one batch size are compared with each other. At first every mode is played in turn; then the best is, and the
others are tried again for a few rounds now and then, the rarer the more often that was in vain. What a mode is worth is
tokens over time of its latest rounds, so whatever overlap costs on a machine, a shared core or a slow link, is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

STALE = 0.3  # what evidence of earlier counts in a trial


class Mode(StrEnum):
    MIRROR = "mirror"
    HINTED = "hinted"
    SERIAL = "serial"
    LANES = "lanes"


@dataclass(slots=True)
class _Seen:
    """Faded sums; num: rounds."""

    tokens: float = 0.0
    ms: float = 0.0
    num: float = 0.0

    def fade(self, share: float) -> None:
        self.tokens *= share
        self.ms *= share
        self.num *= share

    def add(self, tokens: int, ms: float) -> None:
        self.tokens += tokens
        self.ms += ms
        self.num += 1

    @property
    def rate(self) -> float:
        return self.tokens / self.ms if self.ms else 0.0


@dataclass(slots=True)
class _Size:
    """One size of batch. best: the mode kept to. left: of the stretch of `mode`. rested: rounds since a trial began."""

    seen: dict[Mode, _Seen]
    best: Mode
    mode: Mode
    left: int
    rested: int = 0
    in_vain: int = 0
    settled: bool = False


@dataclass(slots=True)
class Modes:
    """stretch: rounds that a mode is played at least, the first of which pays for the change and does not count.
    enough: rounds of each mode before one is kept to. patience: rounds between trials, doubled with each in vain, up to
    `doublings` times. half_life: rounds after which what a mode gave counts half. margin: by which another must be
    better.
    """

    modes: Sequence[Mode] = tuple(Mode)
    stretch: int = 12
    enough: int = 30
    patience: int = 192
    doublings: int = 4
    half_life: float = 200.0
    margin: float = 0.02
    _sizes: dict[int, _Size] = field(default_factory=dict)

    def choose(self, num_rows: int) -> Mode:
        """For the coming round of so many rows."""
        size = self._size(num_rows)
        if size.left <= 0:
            self._turn(size)
        return size.mode

    def observe(self, num_rows: int, tokens: int, ms: float) -> None:
        """A round of the mode chosen last for this size of batch."""
        size = self._size(num_rows)
        if size.left < self.stretch:
            size.seen[size.mode].fade(0.5 ** (1 / self.half_life))
            size.seen[size.mode].add(tokens, ms)
        size.left -= 1
        size.rested += 1

    def rates(self, num_rows: int) -> dict[Mode, float]:
        """Tokens per second, of the modes that were played at this size."""
        return {mode: 1e3 * seen.rate for mode, seen in self._size(num_rows).seen.items() if seen.num}

    def _size(self, num_rows: int) -> _Size:
        key = num_rows.bit_length()
        if key not in self._sizes:
            modes = playable(self.modes, num_rows)
            self._sizes[key] = _Size({mode: _Seen() for mode in modes}, modes[0], modes[0], self.stretch)
        return self._sizes[key]

    def _turn(self, size: _Size) -> None:
        """A stretch is over: what is played next, and for how long."""
        tried, size.mode = size.mode, self._next(size)
        size.left = self.stretch - (size.mode is tried)

    def _next(self, size: _Size) -> Mode:
        least = min(size.seen, key=lambda mode: size.seen[mode].num)
        if size.seen[least].num < self.enough and not size.settled:
            return least
        size.settled = True
        top = max(size.seen, key=lambda mode: size.seen[mode].rate)
        better = size.seen[top].rate > size.seen[size.best].rate * (1 + self.margin)
        if size.mode is not size.best:
            size.in_vain = 0 if better else size.in_vain + 1
        size.best = top if better else size.best
        others = [mode for mode in size.seen if mode is not size.best]
        if others and size.rested >= self.patience << min(size.in_vain, self.doublings):
            size.rested = 0
            tried = min(others, key=lambda mode: size.seen[mode].num)
            size.seen[tried].fade(STALE)
            return tried
        return size.best


def playable(modes: Sequence[Mode], num_rows: int) -> list[Mode]:
    """Those that a batch of this size can be played in, one at least: a single row has no second lane."""
    return [mode for mode in modes if mode is not Mode.LANES or num_rows > 1] or [Mode.SERIAL]
