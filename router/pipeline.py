"""Drafting ahead, as a state machine: windows in flight, branches by key, and what an outcome makes of them.

    begin    a window goes into verification; what was left out of it counts as a branch
    take     branches come, in any order, in part, late, twice, or never
    resolve  the committed tokens are known: the branch behind exactly these is the next window, all others are dropped

A branch is known by the hash of all tokens before it. So a wrong, late or foreign one is never found, whatever else the
pool may send, and branches need no order. What to do about a miss is in router/misses.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from protocol.branch import EMPTY, Branch, prefix_hash
from protocol.plan import DepthRule

SHRINK = ((8, 8), (16, 4), (32, 2))  # (rows up to, branches of each)


class Source(StrEnum):
    """Of a window that was at hand: the pool's kinds of branch, and what a target left unverified of its own window."""

    FULL = "full"
    RUNNER_UP = "runner_up"
    EARLY_EXIT = "early_exit"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Order:
    """What a window was asked for as: it may have ended before `length`. round_id: of the request for it."""

    rule: DepthRule
    length: int
    round_id: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Drafted tokens at positions base_length, base_length + 1, ..."""

    base_length: int
    tokens: tuple[int, ...] = field(repr=False)
    exits: tuple[int, ...]
    confidences: tuple[float, ...]
    order: Order
    source: Source | None = None  # None: a fresh draft

    def behind(self, length: int) -> Window:
        """What is left when the first `length` tokens are verified and the target's next is the one behind them."""
        cut = length + 1
        order = replace(self.order, length=max(0, self.order.length - cut))
        return Window(
            self.base_length + cut, self.tokens[cut:], self.exits[cut:], self.confidences[cut:], order, Source.REST
        )


@dataclass(slots=True)
class _Flight:
    """One sequence. length, hash: of its committed tokens. reach: the longest that the round may make it.

    ordered: how branches were asked for; None when none were, so that none are missed. came: whether some did, and not
    late ones of a round before.
    """

    length: int = 0
    hash: int = EMPTY
    reach: int = 0
    ordered: Order | None = None
    came: bool = False
    windows: dict[tuple[int, int], Window] = field(default_factory=dict)  # by (base_length, key)


@dataclass(slots=True)
class Pipeline:
    """Of one target. hits: by source; misses: outcomes that branches were asked for and none was behind."""

    hits: Counter[Source] = field(default_factory=Counter)
    num_misses: int = 0
    num_branches: int = 0
    num_tokens: int = 0
    num_fenced: int = 0
    _flights: dict[int, _Flight] = field(default_factory=dict)

    def resolve(self, sequence_id: int, tokens: Sequence[int]) -> Window | None:
        """The window behind the committed tokens; whatever else was kept for the sequence is dropped."""
        flight = self._flights.setdefault(sequence_id, _Flight())
        flight.hash = prefix_hash(tokens[flight.length :], flight.hash)
        flight.length = len(tokens)
        found = flight.windows.pop((flight.length, flight.hash), None)
        if found is not None and found.source is not None:
            self.hits[found.source] += 1
        elif flight.ordered is not None:
            self.num_misses += 1
        flight.windows.clear()
        flight.ordered = None
        return found

    def begin(self, sequence_id: int, window: Window | None, num_verified: int, ordered: Order | None) -> None:
        """The first num_verified tokens of the window go into verification, behind what `resolve` was told of.

        ordered: how branches are asked for, if they are.
        """
        flight = self._flights[sequence_id]
        flight.reach = flight.length + num_verified + 1
        flight.ordered, flight.came = ordered, False
        if window is not None and len(window.tokens) > num_verified + 1:
            key = prefix_hash(window.tokens[: num_verified + 1], flight.hash)
            flight.windows[flight.reach, key] = window.behind(num_verified)

    def take(self, branches: Iterable[Branch]) -> None:
        """Keeps those that an outcome of the round may find; of two with one key the longer."""
        for branch in branches:
            window = self._window(branch)
            if window is None:
                self.num_fenced += 1
            else:
                flight = self._flights[branch.sequence_id]
                windows = flight.windows
                known = windows.get((branch.base_length, branch.key))
                windows[branch.base_length, branch.key] = window
                flight.came |= flight.ordered is not None and branch.round_id == flight.ordered.round_id
                self.num_branches += known is None
                self.num_tokens += len(window.tokens) - (len(known.tokens) if known else 0)

    def awaits(self, sequence_id: int) -> bool:
        """Whether branches were asked for and none has come: one of the coming may be behind the outcome."""
        flight = self._flights.get(sequence_id)
        return flight is not None and flight.ordered is not None and not flight.came

    def forget(self, sequence_id: int) -> None:
        self._flights.pop(sequence_id, None)

    @property
    def num_kept(self) -> int:
        """Windows at hand."""
        return sum(len(flight.windows) for flight in self._flights.values())

    def _window(self, branch: Branch) -> Window | None:
        """None for a branch that no outcome of its sequence's round finds, or that brings nothing new."""
        flight = self._flights.get(branch.sequence_id)
        if flight is None or flight.ordered is None or not flight.length < branch.base_length <= flight.reach:
            return None
        known = flight.windows.get((branch.base_length, branch.key))
        if len(branch.tokens) <= (len(known.tokens) if known else 0):
            return None
        source = Source(branch.source.value)
        order = replace(flight.ordered, length=len(branch.tokens)) if branch.goes_on else flight.ordered
        return Window(branch.base_length, branch.tokens, branch.exits, branch.confidences, order, source)


def fan_out(num_rows: int, most: int) -> int:
    """Branches of each sequence, and early picks at each position: fewer in larger batches, which share a pool's pass.

    8 for up to 8 rows, 4 to 16, 2 to 32, 1 beyond; never more than `most`.
    """
    return min(most, next((number for rows, number in SHRINK if num_rows <= rows), 1))
