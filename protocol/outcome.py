"""What came of a round: what a policy learns from. Counts and times only, no token."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.plan import Plan


@dataclass(frozen=True, slots=True)
class Probe:
    """matches[e][i]: whether exit number e picks the committed token at position start + i; confidences alike."""

    start: int
    matches: tuple[tuple[bool, ...], ...]
    confidences: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """One decoding sequence's part. num_verified: drafted tokens that were verified, after pruning.

    exits, confidences: of the drafted tokens, those that were pruned included. num_fed: committed tokens that the
    pool had to run before it could draft, at most.
    """

    id: int
    accepted: int
    num_verified: int
    exits: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    num_fed: int = 0
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """rows: in the order of the plan's view. context: mean number of tokens of its sequences before the round.

    draft_ms: from asking to having the drafts, wait_ms of it queued at the pool. verify_ms: the target's pass, picks
    included. rest_ms: everything else between the end of the last round and the end of this one.
    num_prefill_tokens: prompt tokens that rode along in the pass. answered: False when a draft was asked for in vain.
    ahead: some drafts were made while the round before was verified, so draft_ms is not what they took.
    """

    plan: Plan
    rows: tuple[RowOutcome, ...]
    context: float
    draft_ms: float = 0.0
    wait_ms: float = 0.0
    verify_ms: float = 0.0
    rest_ms: float = 0.0
    num_prefill_tokens: int = 0
    answered: bool = True
    ahead: bool = False
