"""Which rows are in the next pass, and how much of each. Pure: plain values in, a value out.

First come the drafts that a target waits for; then branches that leave at the same exits, so that the pass takes no
longer; then contexts, more of them the more rows wait for a context compared with those that draft. Within each kind
the targets take turns by deficit round-robin over tokens of work: a target with many or long rows gets no more of a
pass than another that has work.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from drafters.limits import PoolLimits
from drafters.pace import UNKNOWN, Pace
from drafters.row import Priority

ENOUGH = 1 << 30  # tokens
QUANTUM = 8  # tokens of work that a target may add in a turn: about a draft


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


@dataclass(frozen=True, slots=True)
class Turns:
    """Deficit round-robin among the targets with rows of one kind.

    order: the targets that come first in the next pass. credit: tokens of work that are left of a target's turns.
    """

    order: tuple[str, ...] = ()
    credit: Mapping[str, int] = field(default_factory=dict)


NO_TURNS: Mapping[Priority, Turns] = MappingProxyType(dict.fromkeys(Priority, Turns()))


@dataclass(frozen=True, slots=True)
class Choice:
    """parts: in the order in which the rows go into the pass. turns: for the next choice."""

    parts: tuple[Part, ...]
    turns: Mapping[Priority, Turns]


def choose(
    rows: Sequence[Waiting], limits: PoolLimits, turns: Mapping[Priority, Turns], now: float, pace: Pace = UNKNOWN
) -> Choice:
    """rows: the longest waiting first. pace: of the passes before."""
    by_priority: dict[Priority, list[Waiting]] = {}
    for row in rows:
        by_priority.setdefault(row.priority, []).append(row)
    drafts = by_priority.get(Priority.DRAFT, [])
    length = draft_length(drafts, limits, now, pace.token_ms)
    parts: list[Part] = []
    budget = limits.prefill_tokens
    later = dict(turns)
    pages: set[bytes] = set()
    for priority in sorted(by_priority):
        waited_for = {part.id for part in parts if part.num_drafts}
        own = by_priority[priority]
        if priority is not Priority.DRAFT and waited_for:
            depths = {row.depth for row in drafts if row.id in waited_for}
            own = [row for row in own if row.priority is Priority.CONTEXT or row.depth in depths]
        if priority is not Priority.DRAFT:
            num_waiting = max(len(by_priority.get(Priority.CONTEXT, ())), 1)
            budget = min(budget, spare_positions(num_waiting, len(waited_for), limits, now, pace))
        if priority is Priority.AHEAD:
            length = branch_length(drafts, waited_for, limits, length, pace.token_ms)
        taken = _Taken(limits.pass_rows - len(parts), budget, limits.max_ride, length, pages)
        later[priority] = in_turns(own, turns[priority], taken)
        parts += taken.parts
        budget = taken.budget
    return Choice(tuple(parts), later)


@dataclass(slots=True)
class _Taken:
    """The part of a pass that one kind of rows has taken."""

    num_rows: int
    budget: int
    max_ride: int
    length: int
    pages: set[bytes]
    parts: list[Part] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.parts) >= self.num_rows

    def part(self, row: Waiting) -> Part | None:
        """The part that a row would have; None: nothing in this pass."""
        if row.page in self.pages and (row.missing > self.max_ride or not row.num_left):
            return None
        if not row.num_left:
            return context_part(row, self.budget)
        return draft_part(row, self.max_ride, self.budget, min(row.num_left, self.length))

    def add(self, row: Waiting, part: Part) -> None:
        self.parts.append(part)
        if row.page is not None:
            self.pages.add(row.page)
        self.budget -= part.num_prefill


def in_turns(rows: Iterable[Waiting], turns: Turns, taken: _Taken) -> Turns:
    """Fills `taken`. Returns the turns of the next pass: targets that got less than they could use come first."""
    queues: dict[str, deque[Waiting]] = {}
    for row in rows:
        queues.setdefault(row.target, deque()).append(row)
    if len(queues) == 1:  # nobody to share with
        credit = dict.fromkeys(queues, ENOUGH)
        _take_turn(queues.popitem()[1], credit, taken)
        return Turns()
    ring = deque([*(own for own in turns.order if own in queues), *(own for own in queues if own not in turns.order)])
    credit = {target: turns.credit.get(target, 0) for target in ring}
    passed_over: list[str] = []
    while ring and not taken.is_full:
        target = ring.popleft()
        credit[target] += QUANTUM
        if _take_turn(queues[target], credit, taken):
            passed_over.append(target)
        if queues[target]:
            ring.append(target)
    order = tuple(dict.fromkeys((*passed_over, *ring)))
    return Turns(order, {target: credit[target] for target in order})


def _take_turn(queue: deque[Waiting], credit: dict[str, int], taken: _Taken) -> bool:
    """Takes as many of a target's rows as its credit allows. Returns whether one of them found no budget left."""
    passed_over = False
    while queue and not taken.is_full:
        row = queue[0]
        part = taken.part(row)
        if part is not None:
            if (work := _work(row, part)) > credit[row.target]:
                break
            credit[row.target] -= work
            taken.add(row, part)
        else:
            passed_over = True
        queue.popleft()
    return passed_over


def _work(row: Waiting, part: Part) -> int:
    """The tokens of work of a part: the positions that it runs."""
    return max(part.length - row.settled, 1) + max(part.num_drafts - 1, 0)


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
