"""The record of one round: made when it commits, and read by all that learns, counts or draws (frozen plain values).

    plan -> proposals -> verify -> commit -> RoundRecord -> router, calibration, counters, metrics, trace

Counts, times and confidences only: no token is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocol.plan import Plan
from protocol.request import OWN


class Origin(StrEnum):
    """Where a proposal came from."""

    FRESH = "fresh"  # asked for in this round, and waited for
    AHEAD = "ahead"  # drafted before: while the round before was verified, or for it and left unverified
    FORCED = "forced"  # by the grammar of its text, which leaves no choice; nothing was drafted


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One decoding sequence's part of a round.

    num_proposed: tokens that were verified. num_accepted: of these. origin: None when nothing was proposed.
    depth, length: what the proposal was drafted as, which for one at hand is an earlier plan's; None and 0 without one.
    num_forced: the last of the proposed tokens, which nobody drafted: the grammar leaves no choice.
    confidences: of the drafted tokens.
    num_fed: committed tokens that the pool had to run before it could draft, at most.
    """

    sequence_id: int
    num_proposed: int = 0
    num_accepted: int = 0
    origin: Origin | None = None
    depth: int | None = None
    length: int = 0
    confidences: tuple[float, ...] = ()
    num_fed: int = 0
    num_forced: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        """Where each token that it committed came from, as a TokenRun tells it. Nobody drafted the forced ones and the
        last.
        """
        depth = self.depth or OWN
        drafted = (-depth if self.at_hand else depth,) * self.num_right
        return drafted + (OWN,) * (self.num_accepted + 1 - self.num_right)

    @property
    def at_hand(self) -> bool:
        """Whether its proposal was there as the round began."""
        return self.origin is Origin.AHEAD

    @property
    def num_drafted(self) -> int:
        return self.num_proposed - self.num_forced

    @property
    def num_right(self) -> int:
        """How many drafted tokens were accepted."""
        return min(self.num_accepted, self.num_drafted)

    @property
    def num_tried(self) -> int:
        """Drafted tokens up to the first refused one, that one included."""
        return min(self.num_accepted + 1, self.num_drafted)


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """plan: as scheduled; its mode is the one that was played. rows: in the order of the plan's view.

    context: mean number of tokens of the decoding sequences before the round. num_committed: tokens after the cut at a
    stop; the first tokens of prompts that ended count too. num_prefill_tokens: prompt tokens in the same pass.
    answered: False if drafts were asked for and none came. wait_ms: time in the pool's queue.
    Moments are seconds of the engine's clock. began_s: the last pass ended, or work came; planned_s: drafts are asked
    for; drafted_s: proposals are there; verified_s: the pass ended; ended_s: all is committed.
    """

    round_id: int
    plan: Plan
    rows: tuple[RowRecord, ...]
    context: float
    num_committed: int
    num_prefill_tokens: int = 0
    num_preempted: int = 0
    answered: bool = True
    wait_ms: float = 0.0
    began_s: float = 0.0
    planned_s: float = 0.0
    drafted_s: float = 0.0
    verified_s: float = 0.0
    ended_s: float = 0.0

    @property
    def draft_ms(self) -> float:
        """The time from asking to having the proposals."""
        return 1e3 * (self.drafted_s - self.planned_s)

    @property
    def verify_ms(self) -> float:
        """The target's pass, picks included."""
        return 1e3 * (self.verified_s - self.drafted_s)

    @property
    def rest_ms(self) -> float:
        """Everything else between the end of the last pass and the end of this one."""
        return 1e3 * (self.planned_s - self.began_s)

    @property
    def num_proposed(self) -> int:
        return sum(row.num_proposed for row in self.rows)

    @property
    def num_accepted(self) -> int:
        return sum(row.num_accepted for row in self.rows)
