"""Counts as values: each step returns one, and logs, metrics and reports are readers of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step of one target. Times in ms; `committed` counts tokens after the cut at a stop."""

    num_decoding: int = 0
    num_prefill_tokens: int = 0
    num_preempted: int = 0
    drafted: int = 0
    accepted: int = 0
    committed: int = 0
    draft_ms: float = 0.0
    verify_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class PassStats:
    """One ragged pass of a draft replica: how many rows of how many targets, and where they left."""

    num_rows: int = 0
    num_targets: int = 0
    num_prefill_tokens: int = 0
    num_exited: tuple[int, ...] = ()  # per exit of the drafter
    pass_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a draft replica tells of itself. Sequences are open ones; wait_ms is a running mean."""

    num_sequences: int
    num_free_pages: int
    num_pages: int
    num_passes: int
    num_mixed_passes: int  # passes that held rows of more than one target
    num_drafted: int
    num_busy: int
    wait_ms: float
    num_branches: int = 0  # handed over whole


@dataclass(frozen=True, slots=True)
class MirrorStats:
    """Drafting ahead, totals of one target since start. hits: windows at hand when they were wanted, by what made them.

    num_misses: outcomes that branches were asked for and none was behind. num_tokens: in the branches that came.
    num_fenced: branches that came late, twice or from elsewhere. num_waits: rounds that asked for a fresh draft.
    wait_ms: what rounds waited before they could verify. num_lanes: rounds of half a batch, with drafts that were asked
    for while the other half was verified. hit_wait_ms, fresh_wait_ms: what rounds waited that had windows at hand and
    asked for no fresh draft, and those that did.
    """

    num_rounds: int = 0
    hits_full: int = 0
    hits_runner_up: int = 0
    hits_early_exit: int = 0
    hits_rest: int = 0  # of what the target itself left unverified
    num_misses: int = 0
    num_branches: int = 0
    num_tokens: int = 0
    num_fenced: int = 0
    num_waits: int = 0
    wait_ms: float = 0.0
    num_lanes: int = 0
    num_hit_rounds: int = 0
    hit_wait_ms: float = 0.0
    num_fresh_rounds: int = 0
    fresh_wait_ms: float = 0.0

    @property
    def num_hits(self) -> int:
        return self.hits_full + self.hits_runner_up + self.hits_early_exit + self.hits_rest


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Totals of one target replica since start."""

    num_running: int
    num_waiting: int
    num_free_pages: int
    num_pages: int
    num_steps: int
    num_preempted: int
    num_drafted: int
    num_accepted: int
    num_committed: int
    num_missed_drafts: int  # rounds that asked for a draft and got none
    num_failures: int = 0  # of policy, way to the pool and record of rounds; requests went on without them
    mirror: MirrorStats | None = None  # None where nothing is drafted ahead


@dataclass(frozen=True, slots=True)
class Runs:
    """by: whose code takes the steps. slower_because: what keeps native kernels from where they could be had."""

    by: str
    slower_because: str | None = None
