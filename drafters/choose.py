"""Which rows are in the next pass, and how much of each. Pure: plain values in, a value out.

First come the drafts that a target waits for; then branches that leave at the same exits, so that the pass takes no
longer; then contexts, more of them the more rows wait for a context compared with those that draft. Within each kind
the targets share a pass. Each in its turn adds its row that waits longest. Each has an even share of the positions of
contexts. So a target with many or long rows leaves another its part of every pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from drafters.limits import PoolLimits
from drafters.pace import UNKNOWN, Pace
from drafters.row import Priority


class Waiting(NamedTuple):
    """A row, as far as the choice depends on it. id: of its cached tokens.

    num_tokens: known ones. settled: positions that have reached its depth. num_left: tokens to draft; 0 for a
    context. page: the name of the page of its context that it reads next; only one row of a pass reads a page, since
    the others can take it over (drafters/shared.py).
    """

    id: int
    target: str
    priority: Priority
    depth: int
    num_tokens: int
    settled: int
    num_left: int
    deadline: float = math.inf
    page: bytes | None = None

    @property
    def missing(self) -> int:
        """How many positions of its context are missing. The last known token is left for the draft."""
        return self.num_tokens - 1 - self.settled


class Part(NamedTuple):
    """One row's part of a pass: its first `length` known positions.

    num_prefill: positions taken from the pass's prefill budget. num_drafts: tokens that it may draft.
    """

    id: int
    length: int
    num_prefill: int = 0
    num_drafts: int = 0


def choose(rows: Sequence[Waiting], limits: PoolLimits, now: float, pace: Pace = UNKNOWN) -> Sequence[Part]:
    """In the order in which they go into the pass. rows: the longest waiting first. pace: of the passes before."""
    by_priority: dict[Priority, list[Waiting]] = {}
    for row in rows:
        by_priority.setdefault(row.priority, []).append(row)
    drafts = by_priority.get(Priority.DRAFT, [])
    length = draft_length(drafts, limits, now, pace.token_ms)
    taken = _Taken(limits.pass_rows, limits.prefill_tokens, limits.max_ride)
    for priority in sorted(by_priority):
        waited_for = {part.id for part in taken.parts if part.num_drafts}
        own = by_priority[priority]
        if priority is not Priority.DRAFT and waited_for:
            depths = {row.depth for row in drafts if row.id in waited_for}
            own = [row for row in own if row.priority is Priority.CONTEXT or row.depth in depths]
        if priority is not Priority.DRAFT:
            num_waiting = max(len(by_priority.get(Priority.CONTEXT, ())), 1)
            taken.budget = min(taken.budget, spare_positions(num_waiting, len(waited_for), limits, now, pace))
        if priority is Priority.AHEAD:
            length = branch_length(drafts, waited_for, limits, length, pace.token_ms)
        taken.add(own, length)
    return taken.parts


@dataclass(slots=True)
class _Taken:
    """What is taken of a pass. budget: positions of contexts that are left. pages: that are read in it."""

    num_rows: int
    budget: int
    max_ride: int
    parts: list[Part] = field(default_factory=list)
    pages: set[bytes] = field(default_factory=set)

    def add(self, rows: Iterable[Waiting], length: int) -> None:
        """Takes rows of one kind, the targets by turns. length: tokens that one may draft."""
        ready = list(by_turns(rows))
        left = shares(self.budget, self._needs(ready))
        for row in ready:
            if len(self.parts) >= self.num_rows:
                return
            if self._reads(row) and row.page in self.pages:
                continue  # another reads it
            part = self._part(row, left.get(row.target, 0), length)
            if part is not None:
                self.parts.append(part)
                self.budget = max(self.budget - part.num_prefill, 0)
                if part.num_prefill:
                    left[row.target] -= part.num_prefill
                if row.page is not None:
                    self.pages.add(row.page)

    def _needs(self, rows: Iterable[Waiting]) -> dict[str, int]:
        """By target, the positions of contexts that its rows could read; of rows with a page in common, the first's."""
        needs: dict[str, int] = {}
        pages = set(self.pages)
        for row in rows:
            if self._reads(row) and row.page not in pages:
                needs[row.target] = needs.get(row.target, 0) + row.missing
                if row.page is not None:
                    pages.add(row.page)
        return needs

    def _reads(self, row: Waiting) -> bool:
        """Whether what is missing of its context takes from the budget."""
        return row.missing > self.max_ride or not row.num_left

    def _part(self, row: Waiting, budget: int, length: int) -> Part | None:
        """The part that a row would have; None: nothing in this pass."""
        if not row.num_left:
            return context_part(row, budget)
        return draft_part(row, self.max_ride, budget, min(row.num_left, length))


def by_turns(rows: Iterable[Waiting]) -> Iterator[Waiting]:
    """The first row of each target, then the second of each, and so on."""
    queues: dict[str, list[Waiting]] = {}
    for row in rows:
        queues.setdefault(row.target, []).append(row)
    return (row for turn in zip_longest(*queues.values()) for row in turn if row is not None)


def shares(budget: int, needs: Mapping[str, int]) -> dict[str, int]:
    """How many positions each target may read: even parts, and what one does not need is the others'. Rounded up, so
    each reads some of whatever there is.
    """
    found: dict[str, int] = {}
    left, least = budget, min(budget, 1)
    for number, target in enumerate(sorted(needs, key=needs.__getitem__)):
        share = max(math.ceil(left / (len(needs) - number)), least)
        found[target] = min(share, needs[target])
        left = max(left - found[target], 0)
    return found


def draft_length(drafts: Sequence[Waiting], limits: PoolLimits, now: float, token_ms: float) -> int:
    """How many tokens a row drafts in this pass, so that no other draft misses its deadline for it."""
    left_ms = 1e3 * (min((row.deadline for row in drafts), default=math.inf) - now)
    if token_ms > 0 and left_ms < limits.ahead * token_ms:
        return max(int(left_ms / token_ms), 1)
    return limits.ahead


def branch_length(
    drafts: Sequence[Waiting], waited_for: set[int], limits: PoolLimits, length: int, token_ms: float
) -> int:
    """How many tokens a row drafts ahead in this pass: at most as many as the drafts in it. A pass without drafts is
    short, since a draft that comes meanwhile waits for its end.

    length: that a draft may have in this pass.
    """
    if waited_for:
        return min(limits.branch_ahead, length, max(row.num_left for row in drafts if row.id in waited_for))
    in_time = int(limits.branch_ms / token_ms) if token_ms else limits.branch_ahead
    return max(min(limits.branch_ahead, in_time), 1)


def spare_positions(num_waiting: int, num_drafting: int, limits: PoolLimits, now: float, pace: Pace) -> int:
    """How many positions of contexts may run that nobody waits for. A row that reads one makes the pass draft a single
    token for the others. A pass without drafts holds up drafts that come meanwhile, probably as many as drafted last;
    in a lull the one that is to follow the context.
    """
    if num_drafting:
        return pace.spare_positions(1, limits.beside_tokens, num_waiting, num_drafting)
    num_delayed = 1 if pace.is_lull(now) else pace.num_drafting
    return pace.spare_positions(limits.ahead, limits.prefill_tokens, num_waiting, num_delayed)


def draft_part(row: Waiting, max_ride: int, budget: int, num_drafts: int) -> Part | None:
    """A row that drafts, settles a chunk of its context, or both; None: it waits for budget.

    Up to max_ride missing positions ride along in a row that drafts; more are a prefill, which takes from the budget.
    """
    if row.missing <= max_ride:
        return Part(row.id, row.num_tokens, 0, num_drafts)
    chunk = context_part(row, budget)
    if chunk is None or chunk.length < row.num_tokens - 1:
        return chunk
    return chunk._replace(length=row.num_tokens, num_drafts=num_drafts)


def context_part(row: Waiting, budget: int) -> Part | None:
    """The next chunk of its context; None: nothing missing, or nothing left to spend."""
    chunk = min(row.missing, budget)
    return Part(row.id, row.settled + chunk, chunk) if chunk > 0 else None


def is_late(deadline: float, has_drafted: bool, now: float, token_ms: float) -> bool:
    """Whether a row is to be answered now. A row without a token is tried as long as there is any time."""
    return now + (token_ms / 1e3 if has_drafted else 0.0) >= deadline
