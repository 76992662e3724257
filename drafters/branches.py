"""Drafting ahead: while a target verifies a proposal, the row of its sequence drafts on behind it.

    committed tokens | proposal | lead | branch
                                       | the proposal of the next round, if all before it comes true
                                | the drafter's guess of the token that the target adds itself
                     | what the target verifies meanwhile

Where the target accepts the whole proposal and picks the lead, the branch is at hand when it has; and its tokens stay
in the cache, so that the sequence's next message goes on behind them. Anything else is a smaller length, and a fresh
draft. A branch is handed over in parts, after each pass: half a proposal in time is worth more than a whole one
late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from drafters.cached_tokens import CachedTokens
from drafters.pending import hand_over
from drafters.picks import Pick
from drafters.row import Priority, Row, is_enough
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, prefix_hash

BranchesReply = Callable[[BranchReply], None]


class PendingBranches:
    """A request to draft ahead: what a pass drafted of its branches is handed over together."""

    def __init__(self, request: AheadRequest, reply: BranchesReply) -> None:
        self.round_id = request.round_id
        self._incarnation = request.incarnation
        self._reply = reply
        self._fresh: list[Branch] = []

    def add(self, branch: Branch) -> None:
        self._fresh.append(branch)

    def reply(self) -> None:
        """Hands over the branches since the last reply, if any."""
        branches, self._fresh = tuple(self._fresh), []
        if branches:
            hand_over(self._reply, BranchReply(self._incarnation, self.round_id, branches))


@dataclass(frozen=True, slots=True)
class Behind:
    """Where a row that is drafted ahead goes: behind a proposal, to those who asked."""

    request: PendingBranches
    asked: AheadRow

    def tell(self, row: Row) -> None:
        """Hands over all that is drafted behind the lead."""
        path = *self.asked.proposal, row.picks[0].token
        self.request.add(
            Branch(
                row.key[1],
                self.asked.context.base_length + len(path),
                prefix_hash(path, row.cached.prefix_key()),
                tuple(pick.token for pick in row.drafted),
                tuple(pick.confidence for pick in row.drafted),
                goes_on=not is_enough(row.drafted, self.asked.length, row.stop_probability),
                round_id=self.request.round_id,
            )
        )


def behind(request: PendingBranches, asked: AheadRow, cached: CachedTokens, length: int, known: Sequence[Pick]) -> Row:
    """The row that drafts a branch of this length behind a proposal.

    known: tokens drafted before, from the proposal's start on; those behind it need not be drafted again.
    """
    row = Row(cached=cached, length=length, priority=Priority.AHEAD, sink=Behind(request, asked), lead=1)
    row.stop_probability = asked.stop_probability
    row.take(drafted_behind(asked.proposal, known))
    return row


def drafted_behind(path: Sequence[int], drafted: Sequence[Pick]) -> Sequence[Pick]:
    """The tokens drafted behind the path; none if the drafts took another way."""
    agree = [pick.token for pick in drafted[: len(path)]] == list(path)
    return drafted[len(path) :] if agree else ()
