"""The one kind of work in the pool: a row continues a cached sequence by so many tokens.

draft     a target waits for it                                   length > 0
branch    behind a proposal that is being verified                length > 0, and a lead
context   handed over without a draft                             length 0
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from drafters.cached_tokens import CachedTokens, Key
from drafters.picks import Pick


class Priority(IntEnum):
    DRAFT = 0  # a target waits for it
    AHEAD = 1  # a target will soon
    CONTEXT = 2  # nobody waits for it


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """cached: the tokens that it continues. sink: where its tokens go, a drafters.pending.Answer or a
    drafters.branches.Behind; None for a context. length: tokens wanted.

    lead: tokens before those, which count for neither length nor stop. stop_probability: the draft ends with the token
    at which the product of its confidences falls to this; 0 never ends it. deadline: seconds of the worker's clock.
    """

    cached: CachedTokens
    length: int
    priority: Priority
    sink: object = None
    lead: int = 0
    stop_probability: float = 0.0
    deadline: float = math.inf
    picks: list[Pick] = field(default_factory=list, repr=False)

    @property
    def key(self) -> Key:
        return self.cached.key

    def take(self, picks: Iterable[Pick]) -> None:
        """Takes new picks. Those that come with a lead were drafted without a stop, so they are cut where it is."""
        self.picks.extend(picks)
        if self.lead:
            self.picks[self.lead :] = as_wanted(self.drafted, self.length, self.stop_probability)

    @property
    def drafted(self) -> list[Pick]:
        """Its picks without the lead."""
        return self.picks[self.lead :]

    @property
    def num_left(self) -> int:
        return self.lead + self.length - len(self.picks)

    @property
    def is_done(self) -> bool:
        return len(self.picks) >= self.lead and is_enough(self.drafted, self.length, self.stop_probability)

    @property
    def stop_left(self) -> float:
        """The stop for the product of the confidences that are still to come; none while the lead is missing."""
        known = self.stop_probability > 0 and len(self.picks) >= self.lead
        return self.stop_probability / survival(self.drafted) if known else 0.0


def survival(picks: Iterable[Pick]) -> float:
    """The probability that all picks are accepted, by their own confidence."""
    return math.prod(pick.confidence for pick in picks)


def is_enough(picks: Sequence[Pick], length: int, stop_probability: float) -> bool:
    return len(picks) >= length or (bool(picks) and 0 < stop_probability >= survival(picks))


def as_wanted(picks: Sequence[Pick], length: int, stop_probability: float) -> list[Pick]:
    """As many of these earlier picks as would be drafted now."""
    lengths = (count for count in range(len(picks)) if is_enough(picks[:count], length, stop_probability))
    return list(picks[: next(lengths, len(picks))])


class Rows:
    """All rows with something to do, the longest waiting first; at most one for each cached sequence."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __contains__(self, row: Row) -> bool:
        return self._rows.get(row.cached.id) is row

    def of(self, cached: CachedTokens) -> Row | None:
        return self._rows.get(cached.id)

    def __getitem__(self, id_: int) -> Row:
        return self._rows[id_]

    def add(self, row: Row) -> None:
        assert row.cached.id not in self._rows, "two rows for one sequence"
        self._rows[row.cached.id] = row

    def remove(self, cached: CachedTokens) -> Row | None:
        return self._rows.pop(cached.id, None)
