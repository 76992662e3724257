"""Who lives in the pool: the sequences that hold tokens, pages and watermarks, and who is let in.

    unknown --admit--> resident, active (a job, or context to settle) --job done--> resident, idle
    idle --evicted for room, or expired--> unknown        any --closed, or refused for good or for pages--> unknown

A sequence that is drafted ahead for has forks (drafters/ahead.py). They end with its next message, whatever it is, and
when a draft needs their pages; they evict nobody.

An active sequence is never evicted. One that is between two rounds is idle only after `idle_s`, or targets that
overfill the pool together would evict each other in every round. A known one that outgrows the free pages is
forgotten with its BUSY: residents that keep their pages and wait for each other's would never draft again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from drafters.ahead import BranchJob, Lead, Outcome
from drafters.known import (
    Idle,
    Key,
    Span,
    agreed_length,
    context_span,
    draft_room,
    evictions,
    next_span,
    positions_fed,
    untold,
)
from drafters.nested import NestedDrafter, Pick
from drafters.resident import Resident
from drafters.rounds import Draft, Job
from protocol.draft import DraftRow, DraftStatus
from protocol.plan import DepthRule
from protocol.sparing import SparingLog


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """max_rows: sequences open at a time; rows_of_one: of them one target's, at most, None for all. prefill_tokens:
    budget of one pass. idle_s, ttl_s: since last use.

    max_ride: missing positions that may ride along in a decode row; more are prefill. ahead: tokens that a row may
    draft in one pass; a message that comes meanwhile waits for its end. branch_ahead: the same of branches, for which
    nobody waits; branch_ms: how long about a pass may take that has nothing but branches whose lead is there, which are
    the least likely ones. probe_tokens: that a probe tells of, the last ones and no more than a pass has a budget for.
    """

    max_rows: int = 64
    rows_of_one: int | None = None
    prefill_tokens: int = 256
    max_ride: int = 32
    ahead: int = 8
    branch_ahead: int = 4
    branch_ms: float = 0.5
    probe_tokens: int = 64
    idle_s: float = 2.0
    ttl_s: float = 60.0


class Residents:
    def __init__(self, drafter: NestedDrafter, limits: PoolLimits, log: SparingLog) -> None:
        """log: of what targets ask in vain."""
        self.active: dict[Key, Resident] = {}  # longest waiting first
        self._drafter = drafter
        self._limits = limits
        self._log = log
        self._residents: dict[Key, Resident] = {}
        self._owned: Counter[str] = Counter()  # sequences by target; none is 0
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._residents)

    def __getitem__(self, key: Key) -> Resident:
        return self._residents[key]

    def get(self, key: Key) -> Resident | None:
        return self._residents.get(key)

    def drafted(self, key: Key, row: DraftRow, depth: DepthRule) -> list[Pick]:
        """What drafting ahead has drafted of what the row asks for; nothing for one that asks for a probe as well."""
        resident = self._residents.get(key)
        if resident is None or resident.ahead is None or row.probe or row.start > resident.known.committed:
            return []
        if (resident.depth, resident.sampling) != (depth, row.sampling):
            return []
        in_sequence = row.base_length >= resident.ahead.lead_end
        if in_sequence and agreed_length(resident.known.tokens, row.start, row.tokens) == row.base_length:
            return [resident.picks[at] for at in range(row.base_length, len(resident.known.tokens))]
        return resident.ahead.behind(row.start, row.tokens)

    def admit(
        self,
        key: Key,
        row: DraftRow,
        depth: DepthRule,
        now: float,
        drafted: Sequence[Pick] = (),
        window: Sequence[int] | None = None,
    ) -> tuple[DraftStatus, int]:
        """Take over the row's context. Returns its status and how many tokens are to be drafted.

        drafted: what is known of these. window: what stands there in their place, if there is room for more than it.
        """
        room = draft_room(row.base_length, self._drafter.max_positions)
        if room <= 0 or not self._makes_sense(key, row):
            self.forget(key)
            return DraftStatus.TOO_LONG, 0
        resident = self._residents.get(key)
        if row.start > (resident.known.committed if resident else 0):
            self.end_ahead(key)
            return DraftStatus.NEED_CONTEXT, 0
        if resident is None:
            if self._owned[key[0]] == self._limits.rows_of_one:
                return DraftStatus.BUSY, 0
            if not self._evict_for(key, 0, len(self) + 1 - self._limits.max_rows, now):
                return DraftStatus.BUSY, 0
            resident = self._open(key, row, depth, now)
        drafts = [pick.token for pick in drafted] if window is None else window
        self._take_over(resident, row, depth, now, drafts, drafted)
        length = self._affordable(resident, row.base_length, min(row.length, room))
        if length is None:
            self.forget(key)  # what it holds may be just what the others lack
            return DraftStatus.BUSY, 0
        if window is not None and length <= len(window):
            length = 0
        self._cut(resident, row.base_length + length)
        if not self._drafter.ledger.reserve(resident.id, positions_fed(row.base_length, length)):
            self.forget(key)
            return DraftStatus.BUSY, 0
        if self.context_missing(resident):
            self.active[key] = resident
        return DraftStatus.OK, length

    def untold(self, key: Key) -> range:
        """The committed positions that a probe would tell of now. They fit the budget of one pass."""
        resident = self._residents[key]
        limit = min(self._limits.probe_tokens, self._limits.prefill_tokens)
        return untold(resident.probed, resident.known.committed, limit)

    def give(self, key: Key, job: Draft) -> None:
        """Work for an admitted sequence that has none."""
        resident = self.active[key] = self._residents[key]
        resident.job = job

    def withdraw(self, key: Key) -> Draft | None:
        """Take the sequence out of the passes; its unfinished job, if any."""
        resident = self.active.pop(key, None)
        if resident is None:
            return None
        job, resident.job = resident.job, None
        return job

    def forget(self, key: Key) -> Draft | None:
        job = self.withdraw(key)
        self.end_ahead(key)
        resident = self._residents.pop(key, None)
        if resident is not None:
            self._drafter.free(resident.id)
            self._owned[key[0]] -= 1
            if not self._owned[key[0]]:
                del self._owned[key[0]]
        return job

    def fork(self, resident: Resident, job: BranchJob) -> bool:
        """A branch of its own for the job; False when there are no pages for it."""
        length = resident.known.committed + job.candidate.accepted
        self._last_id += 1
        fork = Resident(resident.key, self._last_id, resident.depth, resident.sampling, resident.last_used, 0)
        self._drafter.fork(resident.id, fork.id, length, resident.depth if isinstance(resident.job, Lead) else None)
        if not self._drafter.ledger.reserve(fork.id, positions_fed(length + 1, job.length)):
            self._drafter.free(fork.id)
            return False
        fork.known.tokens = [*resident.known.tokens[:length], job.candidate.token]
        fork.job = job
        resident.forks[job.outcome] = fork
        return True

    def follow(self, resident: Resident, start: int, picks: Sequence[Pick]) -> None:
        """Behind the known tokens below `start` come these drafts and nothing else."""
        for pick in picks[len(resident.known.tokens) - start :]:
            resident.add(pick)
        self._cut(resident, start + len(picks))

    def drafts_next(self, resident: Resident) -> bool:
        """Whether its next pass drafts, however small the budget."""
        return self.context_missing(resident) <= self._limits.max_ride

    def end_fork(self, resident: Resident, outcome: Outcome) -> None:
        self._drafter.free(resident.forks.pop(outcome).id)

    def end_ahead(self, key: Key) -> None:
        """No more branches for this sequence, and none of those that it has."""
        resident = self._residents.get(key)
        if resident is None or resident.ahead is None:
            return
        if isinstance(resident.job, Lead | BranchJob):
            self.withdraw(key)
        self._end_forks(resident)
        resident.ahead = None

    def waiting(self) -> Iterator[Resident]:
        """All that may take part in the next pass; drafts that somebody waits for come first."""
        yield from (one for one in self.active.values() if isinstance(one.job, Job))
        yield from (one for one in self.active.values() if not isinstance(one.job, Job))
        for resident in self._residents.values():
            yield from resident.forks.values()

    def rides(self, fork: Resident) -> bool:
        """Whether it reads what its trunk has yet to run, so that both go into one pass."""
        trunk = self._residents[fork.key]
        return trunk is not fork and isinstance(trunk.job, Lead)

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
        if isinstance(resident.job, Job) and resident.job.probes:
            return context_span(resident.job.told.start, settled, budget)
        span = next_span(num_tokens, settled, self._limits.max_ride, budget)
        if span is not None and isinstance(resident.job, Lead):  # or every fork would settle what it reads by itself
            return replace(span, settled=min(span.length, num_tokens - 1))
        return span

    def probing(self, budget: int) -> list[tuple[Resident, Job]]:
        """Those whose probe is due, as far as the budget goes: all below the positions to tell of is settled."""
        due = []
        for resident in self.active.values():
            job = resident.job
            if not isinstance(job, Job) or not job.probes or len(job.told) > budget:
                continue
            if self._drafter.settled(resident.id, self._drafter.deepest) >= job.told.start - 1:
                budget -= len(job.told)
                due.append((resident, job))
        return due

    def check(self) -> None:
        """Raises AssertionError unless residents, drafter and jobs agree."""
        self._drafter.check()
        forks = [fork for resident in self._residents.values() for fork in resident.forks.values()]
        named = sorted(one.id for one in (*self._residents.values(), *forks))
        assert named == sorted(self._drafter.ledger.sequences)
        assert self.active.items() <= self._residents.items(), "active but not resident"
        assert len(self) <= self._limits.max_rows
        assert self._owned == Counter(key[0] for key in self._residents), "somebody's sequences are miscounted"
        for key, resident in self._residents.items():
            assert resident.known.committed <= len(resident.known.tokens)
            assert self._drafter.written(resident.id) <= len(resident.known.tokens), "KV beyond the known tokens"
            assert resident.job is None or key in self.active, "a job that no pass will run"
            assert resident.ahead is not None or not resident.is_rolling, "branches of no round"
            drafts = {at: resident.known.tokens[at : at + 1] for at in resident.picks}
            assert drafts == {at: [pick.token] for at, pick in resident.picks.items()}, "a draft that is not known"
        for fork in forks:
            assert isinstance(fork.job, BranchJob), "a fork that drafts nothing"
            assert not fork.job.is_done, "a branch that is done and not handed over"
            assert len(fork.known.tokens) <= self._drafter.ledger.capacity(fork.id), "a fork without pages"
        for resident in self.active.values():
            assert resident.job is not None or self.context_missing(resident) > 0, "active with nothing to do"
            fed = len(resident.known.tokens) - (resident.job is None)
            assert fed <= self._drafter.ledger.capacity(resident.id), "active without pages"
            if resident.job is not None:
                assert not resident.job.is_done, "a job that is done and not answered"
                told = resident.job.told.stop if isinstance(resident.job, Job) and resident.job.probes else None
                assert told in (None, len(resident.known.tokens)), "draft, then probe"

    def _makes_sense(self, key: Key, row: DraftRow) -> bool:
        """What was committed stays, so a row that makes no sense will make none in any later round."""
        in_vocabulary = min(row.tokens, default=0) >= 0 and max(row.tokens, default=0) < self._drafter.vocab_size
        sensible = row.start >= 0 and row.base_length > 0 and in_vocabulary
        if not sensible:
            self._log.warning(f"{key}: no drafts for a row without tokens, or with ids beyond the drafter's vocabulary")
        return sensible

    def _idle(self) -> Iterable[Resident]:
        return (resident for key, resident in self._residents.items() if key not in self.active)

    def _open(self, key: Key, row: DraftRow, depth: DepthRule, now: float) -> Resident:
        self._last_id += 1
        self._drafter.open(self._last_id)
        resident = Resident(key, self._last_id, depth, row.sampling, now, probed=row.base_length)
        self._residents[key] = resident
        self._owned[key[0]] += 1
        return resident

    def _take_over(
        self,
        resident: Resident,
        row: DraftRow,
        depth: DepthRule,
        now: float,
        drafts: Sequence[int],
        drafted: Sequence[Pick],
    ) -> None:
        self.end_ahead(resident.key)
        kept = resident.known.reconcile(row.start, row.tokens, drafts)
        self._drafter.truncate(resident.id, min(kept, len(resident.known.tokens) - 1))
        resident.picks = {at: pick for at, pick in resident.picks.items() if row.base_length <= at < kept}
        for at, pick, token in zip(count(row.base_length), drafted, drafts, strict=False):
            if pick.token != token:
                break
            resident.picks[at] = pick
        resident.depth, resident.sampling, resident.last_used = depth, row.sampling, now

    def _affordable(self, resident: Resident, base_length: int, length: int) -> int | None:
        """How much of `length` there are pages for behind the base; None: not even for the base."""
        ledger = self._drafter.ledger
        wanted = ledger.missing(resident.id, positions_fed(base_length, length))
        for other in self._residents.values():
            if ledger.num_free < wanted:
                self._end_forks(other)
        self._evict_for(resident.key, wanted - ledger.num_free, 0, resident.last_used)
        room = draft_room(base_length, ledger.capacity(resident.id) + ledger.num_free * ledger.page_size)
        return min(length, room) if room > 0 else None

    def _cut(self, resident: Resident, length: int) -> None:
        """Forget drafts at positions from `length` on."""
        if len(resident.known.tokens) > length:
            del resident.known.tokens[length:]
            resident.picks = {at: pick for at, pick in resident.picks.items() if at < length}
            self._drafter.truncate(resident.id, length - 1)

    def _end_forks(self, resident: Resident) -> None:
        for outcome in list(resident.forks):
            self.end_fork(resident, outcome)
        if resident.ahead is not None and not resident.is_rolling:
            resident.ahead.round.end(resident.key[1])

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
