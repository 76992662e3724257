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
