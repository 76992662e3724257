"""What a sequence's drafting ahead consists of: the window that its target verifies, and a branch for each outcome.

    lead      the drafter's own next token behind the window: one more guess
    branch    a draft behind an outcome (router/branches.py says which are worth one), of use from its first token on

The branch behind a window that is accepted whole goes on from the lead in the sequence itself, in the pass that drafts
the lead. Every other one is a fork that reads the sequence in place and owns its tail alone; it lasts until its draft
is done or another is worth more. Its tokens stay until the sequence's next message: where they turn out to be right
they become the sequence's own drafts. Their KV is not kept: they ride along in the next pass, a few more rows in a pass
that reads all weights anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drafters.nested import Pick
from drafters.rounds import Draft
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, prefix_hash
from router.branches import Candidate, Guess

BranchesReply = Callable[[BranchReply], None]
Outcome = tuple[int, int]  # how much of the window is accepted, and the token behind that

logger = logging.getLogger(__name__)


class BranchRound:
    """A request's branches on their way: gathered, and handed over pass by pass."""

    def __init__(self, request: AheadRequest, reply: BranchesReply) -> None:
        self.round_id = request.round_id
        self._incarnation = request.incarnation
        self._reply = reply
        self._rolling: set[int] = set()
        self._fresh: list[Branch] = []
        self._ended = False

    def begin(self, sequence_id: int) -> None:
        """Branches of this row will come."""
        self._rolling.add(sequence_id)
        self._ended = False

    def end(self, sequence_id: int) -> None:
        """No more of this row, as far as is known."""
        self._rolling.discard(sequence_id)

    def add(self, branch: Branch) -> None:
        self._fresh.append(branch)

    def reply(self) -> None:
        """Hand over what came since the last reply; nothing when nothing did, unless that was all."""
        if not self._fresh and (self._rolling or self._ended):
            return
        self._ended = not self._rolling
        branches, self._fresh = tuple(self._fresh), []
        try:
            self._reply(BranchReply(self._incarnation, self.round_id, branches, len(self._rolling)))
        except Exception:
            logger.exception("branches for %s could not be handed over", self._incarnation)


@dataclass(slots=True, kw_only=True)
class Lead(Draft):
    """The lead, and behind it as much of the full branch as its first pass drafts. Without a floor: what would have
    stopped the branch is found when its lead is known.
    """


@dataclass(slots=True, kw_only=True)
class BranchJob(Draft):
    """path: the tokens from the window's start up to the branch."""

    candidate: Candidate
    path: tuple[int, ...] = field(repr=False)

    @property
    def outcome(self) -> Outcome:
        return self.candidate.accepted, self.candidate.token


@dataclass(slots=True)
class Ahead:
    """One row of an AheadRequest.

    full_length: how many tokens there is room for behind the window and its lead. guesses: of the window, and of the
    lead once it is drafted. drafted: in the last round, from the window's start on. behind_lead: with the lead. begun:
    every branch that was ever rolled out.
    """

    round: BranchRound
    row: AheadRow
    full_length: int
    guesses: list[Guess]
    drafted: Sequence[Pick] = field(default=(), repr=False)
    behind_lead: Sequence[Pick] = field(default=(), repr=False)
    early: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    begun: dict[Outcome, BranchJob] = field(default_factory=dict, repr=False)

    @property
    def base_length(self) -> int:
        return self.row.context.base_length

    @property
    def lead_end(self) -> int:
        """From here on all tokens of the sequence were drafted in this round."""
        return self.base_length + len(self.row.window) + 1

    @property
    def is_led(self) -> bool:
        return len(self.guesses) > len(self.row.window)

    def path(self, candidate: Candidate) -> tuple[int, ...]:
        return (*self.row.window[: candidate.accepted], candidate.token)

    def behind(self, start: int, truth: Sequence[int]) -> list[Pick]:
        """What was drafted in a branch behind exactly these tokens. start: at most the window's."""
        path = tuple(truth[self.base_length - start :])
        found = (job.picks for job in self.begun.values() if job.path == path)
        return next(found, [])

    def branch(self, job: BranchJob, key: int) -> Branch:
        """key: of the tokens before the window."""
        return Branch(
            self.row.context.sequence_id,
            self.base_length + len(job.path),
            prefix_hash(job.path, key),
            job.candidate.source,
            tuple(pick.token for pick in job.picks),
            tuple(pick.exit for pick in job.picks),
            tuple(pick.confidence for pick in job.picks),
            goes_on=not job.is_done,
            round_id=self.round.round_id,
        )


def drafted_behind(path: Sequence[int], drafted: Sequence[Pick]) -> Sequence[Pick]:
    """What was drafted behind the path; nothing where the drafts parted from it."""
    agree = [pick.token for pick in drafted[: len(path)]] == list(path)
    return drafted[len(path) :] if agree else ()
