"""Who lives in the pool: the sequences that hold tokens, pages and watermarks, and who is let in.

    unknown --admit--> resident, active (a job, or context to settle) --job done--> resident, idle
    idle --evicted for room, or expired--> unknown        any --closed, or refused for good or for pages--> unknown

An active sequence is never evicted. One that is between two rounds is idle only after `idle_s`, or targets that
overfill the pool together would evict each other in every round. A known one that outgrows the free pages is
forgotten with its BUSY: residents that keep their pages and wait for each other's would never draft again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from drafters.known import (
    Idle,
    Key,
    Known,
    Span,
    context_span,
    draft_room,
    evictions,
    next_span,
    positions_fed,
    untold,
)
from drafters.nested import NestedDrafter
from drafters.rounds import Job
from protocol.draft import DraftRow, DraftStatus
from protocol.plan import DepthRule
from protocol.request import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """max_rows: sequences open at a time. prefill_tokens: budget of one pass. idle_s, ttl_s: since last use.

    max_ride: missing positions that may ride along in a decode row; more are prefill. ahead: tokens that a row may
    draft in one pass; a message that comes meanwhile waits for its end. probe_tokens: that a probe tells of, the last
    ones and no more than a pass has a budget for.
    """

    max_rows: int = 64
    prefill_tokens: int = 256
    max_ride: int = 32
    ahead: int = 8
    probe_tokens: int = 64
    idle_s: float = 2.0
    ttl_s: float = 60.0


@dataclass(slots=True)
class Resident:
    """id: its name in the drafter. depth and sampling: of the last message. probed: the position from which on no
    probe has told of its committed tokens; at first its base length, for a prompt is not the target's own text.
    """

    key: Key
    id: int
    depth: DepthRule
    sampling: SamplingParams
    last_used: float
    probed: int
    known: Known = field(default_factory=Known)
    job: Job | None = None


class Residents:
    def __init__(self, drafter: NestedDrafter, limits: PoolLimits) -> None:
        self.active: dict[Key, Resident] = {}  # longest waiting first
        self._drafter = drafter
        self._limits = limits
        self._residents: dict[Key, Resident] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._residents)

    def admit(self, key: Key, row: DraftRow, depth: DepthRule, now: float) -> tuple[DraftStatus, int]:
        """Take over the row's context. Returns its status and how many tokens are to be drafted."""
        room = draft_room(row.base_length, self._drafter.max_positions)
        if room <= 0 or not self._makes_sense(key, row):
            self.forget(key)
            return DraftStatus.TOO_LONG, 0
        resident = self._residents.get(key)
        if row.start > (resident.known.committed if resident else 0):
            return DraftStatus.NEED_CONTEXT, 0
        if resident is None:
            if not self._evict_for(key, 0, len(self) + 1 - self._limits.max_rows, now):
                return DraftStatus.BUSY, 0
            resident = self._open(key, row, depth, now)
        self._take_over(resident, row, depth, now)
        length = self._reserve(resident, row.base_length, min(row.length, room))
        if length is None:
            self.forget(key)  # what it holds may be just what the others lack
            return DraftStatus.BUSY, 0
        if self.context_missing(resident):
            self.active[key] = resident
        return DraftStatus.OK, length

    def untold(self, key: Key) -> range:
        """The committed positions that a probe would tell of now. They fit the budget of one pass."""
        resident = self._residents[key]
        limit = min(self._limits.probe_tokens, self._limits.prefill_tokens)
        return untold(resident.probed, resident.known.committed, limit)

    def give(self, key: Key, job: Job) -> None:
        """Work for an admitted sequence that has none."""
        resident = self.active[key] = self._residents[key]
        resident.job = job

    def withdraw(self, key: Key) -> Job | None:
        """Take the sequence out of the passes; its unfinished job, if any."""
        resident = self.active.pop(key, None)
        if resident is None:
            return None
        job, resident.job = resident.job, None
        return job

    def forget(self, key: Key) -> Job | None:
        job = self.withdraw(key)
        resident = self._residents.pop(key, None)
        if resident is not None:
            self._drafter.free(resident.id)
        return job

    def keys_of(self, incarnation: str) -> list[Key]:
        return [key for key in self._residents if key[0] == incarnation]

    def expired(self, now: float) -> list[Key]:
        return [resident.key for resident in self._idle() if now - resident.last_used >= self._limits.ttl_s]

    def context_missing(self, resident: Resident) -> int:
        """Positions of its context that have not reached the last exit; the last token is left for the draft."""
        return len(resident.known.tokens) - 1 - self._drafter.settled(resident.id, resident.depth)

    def goal(self, resident: Resident) -> DepthRule:
        """How deep its next pass goes: before a probe, which asks every exit, all the way."""
        return self._drafter.deepest if resident.job is not None and resident.job.probes else resident.depth

    def next_span(self, resident: Resident, budget: int) -> Span | None:
        """Its part of the next pass that drafts; None when it has none in it: its probe is due, or the budget spent."""
        num_tokens = len(resident.known.tokens)
        settled = self._drafter.settled(resident.id, self.goal(resident))
        if resident.job is None:
            return context_span(num_tokens, settled, budget)
        if resident.job.probes:
            return context_span(resident.job.told.start, settled, budget)
        return next_span(num_tokens, settled, self._limits.max_ride, budget)

    def probing(self, budget: int) -> list[tuple[Resident, Job]]:
        """Those whose probe is due, as far as the budget goes: all below the positions to tell of is settled."""
        due = []
        for resident in self.active.values():
            job = resident.job
            if job is None or not job.probes or len(job.told) > budget:
                continue
            if self._drafter.settled(resident.id, self._drafter.deepest) >= job.told.start - 1:
                budget -= len(job.told)
                due.append((resident, job))
        return due

    def check(self) -> None:
        """Raises AssertionError unless residents, drafter and jobs agree."""
        self._drafter.check()
        assert sorted(one.id for one in self._residents.values()) == sorted(self._drafter.ledger.sequences)
        assert self.active.items() <= self._residents.items(), "active but not resident"
        assert len(self) <= self._limits.max_rows
        for key, resident in self._residents.items():
            assert resident.known.committed <= len(resident.known.tokens)
            assert self._drafter.written(resident.id) <= len(resident.known.tokens), "KV beyond the known tokens"
            assert resident.job is None or key in self.active, "a job that no pass will run"
        for resident in self.active.values():
            assert resident.job is not None or self.context_missing(resident) > 0, "active with nothing to do"
            assert len(resident.known.tokens) <= self._drafter.ledger.capacity(resident.id), "active without pages"
            if resident.job is not None:
                assert not resident.job.is_done, "a job that is done and not answered"
                assert not resident.job.probes or resident.job.told.stop == len(resident.known.tokens), (
                    "draft, then probe"
                )

    def _makes_sense(self, key: Key, row: DraftRow) -> bool:
        """What was committed stays, so a row that makes no sense will make none in any later round."""
        in_vocabulary = min(row.tokens, default=0) >= 0 and max(row.tokens, default=0) < self._drafter.vocab_size
        sensible = row.start >= 0 and row.base_length > 0 and in_vocabulary
        if not sensible:
            logger.warning("%s: no drafts for a row without tokens, or with ids beyond the drafter's vocabulary", key)
        return sensible

    def _idle(self) -> Iterable[Resident]:
        return (resident for key, resident in self._residents.items() if key not in self.active)

    def _open(self, key: Key, row: DraftRow, depth: DepthRule, now: float) -> Resident:
        self._last_id += 1
        self._drafter.open(self._last_id)
        resident = Resident(key, self._last_id, depth, row.sampling, now, probed=row.base_length)
        self._residents[key] = resident
        return resident

    def _take_over(self, resident: Resident, row: DraftRow, depth: DepthRule, now: float) -> None:
        kept = resident.known.reconcile(row.start, row.tokens)
        self._drafter.truncate(resident.id, min(kept, row.base_length - 1))
        resident.depth, resident.sampling, resident.last_used = depth, row.sampling, now

    def _reserve(self, resident: Resident, base_length: int, length: int) -> int | None:
        """Pages for the base and as much of `length` as there is room for; None: not even the base fits."""
        ledger = self._drafter.ledger
        short = ledger.missing(resident.id, positions_fed(base_length, length)) - ledger.num_free
        self._evict_for(resident.key, short, 0, resident.last_used)
        room = draft_room(base_length, ledger.capacity(resident.id) + ledger.num_free * ledger.page_size)
        if room <= 0:
            return None
        length = min(length, room)
        reserved = ledger.reserve(resident.id, positions_fed(base_length, length))
        assert reserved, "counted pages are there"
        return length

    def _evict_for(self, key: Key, pages_short: int, rows_short: int, now: float) -> bool:
        """Make room at the cost of idle sequences other than `key`; False, and none evicted, when they are too few."""
        ledger = self._drafter.ledger
        idle = [
            Idle(one.key, one.last_used, ledger.capacity(one.id) // ledger.page_size)
            for one in self._idle()
            if one.key != key and now - one.last_used >= self._limits.idle_s
        ]
        chosen = evictions(idle, pages_short, rows_short)
        for other in chosen or ():
            self.forget(other)
        return chosen is not None
