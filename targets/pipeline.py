"""Drafting ahead, as a state machine: proposals in flight, branches by key, and what an outcome makes of them.

    begin    a proposal is being verified; what the plan left out of it counts as a branch
    take     branches come, in any order, in part, late, twice, or never
    resolve  the committed tokens are known: the branch behind exactly these is the next proposal, others are dropped

A sequence whose orders bring nothing, because the pool forgot it or has no room for more of it, is not waited for.
A branch is known by the hash of all tokens before it, so a late or foreign one is never found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protocol.branch import EMPTY, Branch, prefix_hash
from protocol.record import Origin
from targets.proposals import Proposal

VAIN = 2  # orders in a row that brought nothing: the sequence needs a fresh draft
TRIES = 8  # of so many such orders one is waited for again


@dataclass(frozen=True, slots=True)
class Order:
    """What branches are asked for as. round_id: of the request."""

    depth: int
    length: int
    round_id: int


@dataclass(slots=True)
class _Flight:
    """One sequence. length, hash: of its committed tokens. found: the branch behind them. reach: the most tokens that
    the round may make it. order: None when no branches were asked for. came: whether some did, none of a round before.
    branches: by length and hash of the tokens before them. num_vain: orders in a row that brought nothing.
    """

    length: int = 0
    hash: int = EMPTY
    found: Proposal | None = None
    reach: int = 0
    order: Order | None = None
    came: bool = False
    branches: dict[tuple[int, int], Proposal] = field(default_factory=dict)
    num_vain: int = 0


class Pipeline:
    """The branches that one target has at hand or expects."""

    def __init__(self) -> None:
        self._flights: dict[int, _Flight] = {}

    def resolve(self, sequence_id: int, tokens: Sequence[int]) -> Proposal | None:
        """The branch behind the committed tokens; all others of the sequence are dropped."""
        flight = self._flights.setdefault(sequence_id, _Flight())
        flight.hash = prefix_hash(tokens[flight.length :], flight.hash)
        flight.length = len(tokens)
        flight.found = flight.branches.get((flight.length, flight.hash))
        flight.branches.clear()
        if flight.order is not None:
            flight.num_vain = 0 if flight.came else flight.num_vain + 1
        flight.order = None
        return flight.found

    def begin(self, sequence_id: int, num_verified: int, order: Order | None) -> None:
        """So many tokens are verified behind what `resolve` was told of: the first of what it found, if it did."""
        flight = self._flights[sequence_id]
        flight.reach = flight.length + num_verified + 1
        flight.order, flight.came = order, False
        if flight.found is not None and len(flight.found.tokens) > num_verified + 1:
            key = prefix_hash(flight.found.tokens[: num_verified + 1], flight.hash)
            flight.branches[flight.reach, key] = flight.found.rest(num_verified)

    def take(self, branches: Iterable[Branch]) -> None:
        """Keeps those that an outcome of the round may find; of two with one key the longer."""
        for branch in branches:
            flight, key = self._flights.get(branch.sequence_id), (branch.base_length, branch.key)
            if flight is None or flight.order is None or not flight.length < branch.base_length <= flight.reach:
                continue
            known = flight.branches.get(key)
            flight.came |= branch.round_id == flight.order.round_id
            if len(branch.tokens) > (len(known.tokens) if known else 0):
                flight.branches[key] = _proposal(branch, flight.order)

    def awaits(self, sequence_id: int) -> bool:
        """Whether branches were asked for and none has come: one of the coming may be behind the outcome. False where
        the orders before brought nothing, but for a try now and then.
        """
        flight = self._flights.get(sequence_id)
        if flight is None or flight.order is None or flight.came:
            return False
        return flight.num_vain % TRIES == 0

    def starves(self, sequence_id: int) -> bool:
        """Whether its last orders brought nothing."""
        flight = self._flights.get(sequence_id)
        return flight is not None and flight.num_vain >= VAIN

    def keep(self, sequence_ids: Iterable[int]) -> None:
        """Forgets all other sequences."""
        self._flights = {one: self._flights[one] for one in sequence_ids if one in self._flights}


def _proposal(branch: Branch, order: Order) -> Proposal:
    """A part of a branch counts as asked for at the length it has: nothing in it was stopped in doubt."""
    length = len(branch.tokens) if branch.goes_on else order.length
    return Proposal(branch.tokens, branch.confidences, Origin.AHEAD, order.depth, length)
