"""Which mode to play: the one that is believed to commit the most tokens per second, or one that may turn out to.

The first rounds are in turn, which tells what every part of a round takes. From then on the best mode is played, by
stretches, and between two of them one that would be better if it did better than it looks by as much as may well be: so
a mode is tried where that may pay, the rarer the more often it was in vain, and what is out of reach never.

Batches of about one size are judged together. Another size begins with what is known of the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from router.mode_beliefs import Beliefs
from router.modes import Mode, Round, playable

REACH = 1.5  # standard deviations by which a mode may well do better than it looks


@dataclass(slots=True)
class _Tried:
    """rested: rounds since a trial ended. in_vain: trials in a row that were."""

    rested: int = 0
    in_vain: int = 0


@dataclass(slots=True)
class _Size:
    """One size of batch. best: the mode believed in; changed: since the last stretch. left: of the stretch of `mode`.

    rates: tokens per ms, as believed at its beginning. rounds: of the stretch, to be learned from.
    """

    beliefs: Beliefs
    best: Mode
    mode: Mode
    left: int
    tried: dict[Mode, _Tried]
    changed: bool = False
    rates: dict[Mode, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)


@dataclass(slots=True)
class Modes:
    """opening, stretch, trial: rounds of the first mode, of the best and of another; one more for a change, which does
    not count. margin: by which another mode must be better. patience: rounds between trials of a mode, doubled with
    each in vain, up to `doublings` times.
    """

    modes: Sequence[Mode] = tuple(Mode)
    opening: int = 4
    stretch: int = 8
    trial: int = 5
    margin: float = 0.015
    patience: int = 16
    doublings: int = 6
    _sizes: dict[int, _Size] = field(default_factory=dict)
    _last: Mode | None = None

    def choose(self, num_rows: int) -> Mode:
        """For the coming round of so many rows."""
        size = self._size(num_rows)
        if size.left <= 0:
            self._turn(size, num_rows)
        return size.mode

    def observe(self, num_rows: int, played: Round) -> None:
        """A round that was to have drafts. The first of a mode tells nothing of it."""
        size = self._size(num_rows)
        if played.mode is size.mode is self._last and len(size.tried) > 1:
            size.rounds.append(played)
        self._last = played.mode
        size.left -= 1

    def rates(self, num_rows: int) -> dict[Mode, float]:
        """Tokens per second that each mode is believed to commit; none while nothing was seen of this size."""
        return {mode: 1e3 * rate for mode, rate in self._size(num_rows).rates.items()}

    def _size(self, num_rows: int) -> _Size:
        key = num_rows.bit_length()
        if key not in self._sizes:
            modes = playable(self.modes, num_rows)
            first = Mode.SERIAL if Mode.SERIAL in modes else modes[0]
            known = [other for other, size in self._sizes.items() if size.rates]
            nearest = min(known, key=lambda other: abs(other - key), default=None)
            beliefs = Beliefs(modes, None if nearest is None else self._sizes[nearest].beliefs)
            self._sizes[key] = _Size(beliefs, first, first, self.opening + 1, {mode: _Tried() for mode in modes})
        return self._sizes[key]

    def _turn(self, size: _Size, num_rows: int) -> None:
        """A stretch is over: what was learned, what is played next, and for how long."""
        before, was_trial = size.mode, size.mode is not size.best
        for tried in size.tried.values():
            tried.rested += len(size.rounds)
        if size.rounds:
            self._learn(size, num_rows)
        size.mode = self._next(size, num_rows)
        if was_trial:
            in_vain = 0 if before is size.best else size.tried[before].in_vain + 1
            size.tried[before] = _Tried(0, in_vain)
        size.left = (self.stretch if size.mode is size.best else self.trial) + (size.mode is not before)

    def _learn(self, size: _Size, num_rows: int) -> None:
        size.beliefs.learn(size.mode, size.rounds, num_rows)
        size.rounds.clear()
        rates = size.rates = {mode: size.beliefs.rate(mode, num_rows) for mode in size.tried}
        top = max(rates, key=lambda mode: rates[mode])
        size.changed = rates[top] > rates[size.best] * (1 + self.margin)
        size.best = top if size.changed else size.best

    def _next(self, size: _Size, num_rows: int) -> Mode:
        """The best after each trial, and before another mode is compared with it."""
        if not size.rates or size.changed or size.mode is not size.best:
            return size.best
        hopes = {
            mode: size.rates[mode] * (1 + REACH * size.beliefs.doubt(mode, size.best, num_rows))
            for mode, tried in size.tried.items()
            if mode is not size.best and tried.rested >= self._patience(tried)
        }
        top = max(hopes, key=lambda mode: hopes[mode], default=size.best)
        return top if hopes.get(top, 0.0) > size.rates[size.best] * (1 + self.margin) else size.best

    def _patience(self, tried: _Tried) -> int:
        return self.patience << min(tried.in_vain, self.doublings) if tried.in_vain else 0
