"""Counts as values, for logs, metrics and reports. Those of rounds are folds over the records of rounds."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from protocol.plan import Mode
from protocol.record import Origin, RoundRecord

# Upper bounds of the times in a queue that are counted apart, in seconds.
QUEUE_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 480.0)


@dataclass(frozen=True, slots=True)
class QueueTimes:
    """counts: [n], requests that waited no longer than the bound n and longer than the one before; the last one: longer
    than all bounds.
    """

    counts: tuple[int, ...] = (0,) * (len(QUEUE_BOUNDS_S) + 1)
    sum_s: float = 0.0

    def plus(self, waited_s: float) -> QueueTimes:
        place = bisect_left(QUEUE_BOUNDS_S, waited_s)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return QueueTimes(counts, self.sum_s + waited_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStats:
    """Totals over rounds, folded from their records.

    num_rounds: those with decoding sequences. num_accepted_by_position: [n], proposals of which more than n tokens were
    accepted; as long as the longest proposal. num_unanswered: rounds that asked for drafts and got none. num_drafts:
    proposals. num_hits: those that were at hand. num_misses: rows of rounds ahead that were to have a proposal, and
    none was at hand. draft_ms, verify_ms, rest_ms: parts of the rounds. wait_ms: time in the pool's queue.
    hit_draft_ms: of the num_hit_rounds that had proposals at hand and waited for no fresh ones. fresh_draft_ms: of the
    num_fresh_rounds that did.
    """

    num_rounds: int = 0
    num_prefill_tokens: int = 0
    num_preempted: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_accepted_by_position: tuple[int, ...] = ()
    num_committed: int = 0
    num_unanswered: int = 0
    num_drafts: int = 0
    num_hits: int = 0
    num_misses: int = 0
    draft_ms: float = 0.0
    wait_ms: float = 0.0
    verify_ms: float = 0.0
    rest_ms: float = 0.0
    num_hit_rounds: int = 0
    hit_draft_ms: float = 0.0
    num_fresh_rounds: int = 0
    fresh_draft_ms: float = 0.0

    def plus(self, records: Sequence[RoundRecord]) -> RoundStats:
        """With these rounds."""
        own = [_Counted.of(record) for record in records]
        return replace(
            self,
            num_rounds=self.num_rounds + sum([bool(record.rows) for record in records]),
            num_prefill_tokens=self.num_prefill_tokens + sum([record.num_prefill_tokens for record in records]),
            num_preempted=self.num_preempted + sum([record.num_preempted for record in records]),
            num_proposed=self.num_proposed + sum([record.num_proposed for record in records]),
            num_accepted=self.num_accepted + sum([record.num_accepted for record in records]),
            num_accepted_by_position=_with_rows(self.num_accepted_by_position, records),
            num_committed=self.num_committed + sum([record.num_committed for record in records]),
            num_unanswered=self.num_unanswered + sum([not record.answered for record in records]),
            num_drafts=self.num_drafts + sum([one.num_drafts for one in own]),
            num_hits=self.num_hits + sum([one.num_hits for one in own]),
            num_misses=self.num_misses + sum([one.num_misses for one in own]),
            draft_ms=self.draft_ms + sum([record.draft_ms for record in records]),
            wait_ms=self.wait_ms + sum([record.wait_ms for record in records]),
            verify_ms=self.verify_ms + sum([record.verify_ms for record in records]),
            rest_ms=self.rest_ms + sum([record.rest_ms for record in records]),
            num_hit_rounds=self.num_hit_rounds + sum([one.hit for one in own]),
            hit_draft_ms=self.hit_draft_ms + sum([one.hit * one.draft_ms for one in own]),
            num_fresh_rounds=self.num_fresh_rounds + sum([one.waited for one in own]),
            fresh_draft_ms=self.fresh_draft_ms + sum([one.waited * one.draft_ms for one in own]),
        )


def _with_rows(counts: tuple[int, ...], records: Sequence[RoundRecord]) -> tuple[int, ...]:
    """The counts by position with the rows of these rounds."""
    rows = [row for record in records for row in record.rows]
    longest = max([row.num_proposed for row in rows], default=0)
    added = Counter([position for row in rows for position in range(row.num_accepted)])
    before = counts + (0,) * (longest - len(counts))
    return tuple([count + added[position] for position, count in enumerate(before)])


@dataclass(frozen=True, slots=True)
class _Counted:
    """Of a round. hit: all that it used was at hand. waited: for fresh proposals."""

    num_drafts: int
    num_hits: int
    num_misses: int
    hit: bool
    waited: bool
    draft_ms: float

    @classmethod
    def of(cls, record: RoundRecord) -> _Counted:
        origins = [row.origin for row in record.rows if row.origin]
        num_hits = origins.count(Origin.AHEAD)
        ahead = record.plan.mode is not Mode.IN_TURN
        wanted = sum([length > 0 for length in record.plan.lengths]) if ahead else 0
        waited = Origin.FRESH in origins or not record.answered
        hit, num_misses = num_hits > 0 and not waited, max(wanted - num_hits, 0)
        return cls(len(origins), num_hits, num_misses, hit, waited, record.draft_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats(RoundStats):
    """One target replica: its rounds since start, and what it holds now."""

    num_running: int
    num_waiting: int
    num_free_pages: int
    num_pages: int
    num_steps: int
    num_adopted_tokens: int = 0  # of prompts, whose KV another request had left; again after a preemption
    num_queried_tokens: int = 0  # of prompts when they were first admitted
    num_hit_tokens: int = 0  # of these, adopted ones
    queue_times: QueueTimes = field(default_factory=QueueTimes)
    num_failures: int = 0  # of policy, way to the pool and record of rounds; requests went on without them


@dataclass(frozen=True, slots=True)
class TranslationCounts:
    """Tokens that a target handed to a drafter of another tokenizer, and how many of them both vocabularies have."""

    num_tokens: int = 0
    num_shared: int = 0


@dataclass(frozen=True, slots=True)
class PassStats:
    """One ragged pass of a draft replica."""

    num_rows: int = 0
    num_targets: int = 0
    num_prefill_tokens: int = 0
    pass_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a draft replica tells of itself. Sequences are open ones; wait_ms is a running mean.

    num_rows: of all passes. pass_ms: that passes took. num_evicted: sequences that made room for others. num_read:
    tokens of contexts and of what was committed since, as far as passes ran them. num_adopted: those that others had
    read.
    """

    num_sequences: int
    num_free_pages: int
    num_pages: int
    num_passes: int
    num_mixed_passes: int  # passes that held rows of more than one target
    num_drafted: int
    num_busy: int
    wait_ms: float
    num_branches: int = 0  # handed over whole
    num_rows: int = 0
    pass_ms: float = 0.0
    num_not_yet: int = 0
    num_evicted: int = 0
    num_read: int = 0
    num_adopted: int = 0


@dataclass(frozen=True, slots=True)
class Runs:
    """by: whose code takes the steps. slower_because: what keeps native kernels from where they could be had."""

    by: str
    slower_because: str | None = None
