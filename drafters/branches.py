"""Drafting ahead for the sequences of the pool: which branches are drafted, and when.

    take     a proposal is being verified: draft on behind it, and in the same pass behind the best outcomes within it
    lead     the drafter's own next token behind the proposal is known, one more guess: begin what is missing of the
             `fan_out` best outcomes, and end the others
    more     new tokens of a branch are handed over: half a proposal in time is worth more than a whole one late

The branch behind a proposal that is accepted whole goes on from the lead in the sequence itself. Every other branch is
on a fork, which lasts until its draft is done or another branch is worth more. Its tokens are kept until the sequence's
next message: if they turn out right, they become the sequence's own drafts. Their KV is dropped: they run again in the
next pass, a few more positions in a pass that reads all weights anyway.

From the lead on the `fan_out` best outcomes are being drafted, or were handed over, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from drafters.cache import DraftCache
from drafters.cached_tokens import CachedTokens, Key, agreed_length, draft_room
from drafters.outcomes import Candidate, Guess, Outcome, candidates
from drafters.pending import PendingBranches
from drafters.picks import Pick
from drafters.row import Priority, Row, Rows, as_wanted
from protocol.branch import AheadRow, Branch, BranchSource, prefix_hash
from protocol.draft import DraftRow

UNKNOWN = -1  # no token


@dataclass(slots=True)
class Preparation:
    """What is drafted ahead for one sequence.

    trunk: the row of the sequence itself. wanted: tokens of the branch behind the lead. guesses: of the proposal, and
    of the lead once it is known. known: tokens drafted before, from the proposal's start on. begun: every branch that
    was ever drafted.
    """

    request: PendingBranches
    asked: AheadRow
    trunk: Row
    wanted: int
    guesses: list[Guess]
    known: Sequence[Pick] = field(default=(), repr=False)
    begun: dict[Outcome, tuple[Candidate, Row]] = field(default_factory=dict, repr=False)

    @property
    def base_length(self) -> int:
        return self.asked.context.base_length

    @property
    def lead_end(self) -> int:
        """The position behind the lead: from here on the sequence's tokens were drafted behind the proposal."""
        return self.base_length + len(self.asked.proposal) + 1

    @property
    def has_lead(self) -> bool:
        return len(self.guesses) > len(self.asked.proposal)

    def path(self, candidate: Candidate) -> tuple[int, ...]:
        """The tokens from the proposal's start up to the branch."""
        return (*self.asked.proposal[: candidate.accepted], candidate.token)

    def behind(self, start: int, truth: Sequence[int]) -> list[Pick]:
        """The tokens that a branch has behind exactly these. start: at most the proposal's."""
        path = tuple(truth[self.base_length - start :])
        return next((row.drafted for candidate, row in self.begun.values() if self.path(candidate) == path), [])

    def branch(self, candidate: Candidate, row: Row) -> Branch:
        path = self.path(candidate)
        return Branch(
            row.key[1],
            self.base_length + len(path),
            prefix_hash(path, self.trunk.cached.prefix_key()),
            candidate.source,
            tuple(pick.token for pick in row.drafted),
            tuple(pick.exit for pick in row.drafted),
            tuple(pick.confidence for pick in row.drafted),
            goes_on=not row.is_done,
            round_id=self.request.round_id,
        )


class Branches:
    """Takes the tokens of rows that are drafted ahead, and hands branches over."""

    def __init__(self, cache: DraftCache, rows: Rows, max_ride: int, max_positions: int) -> None:
        self.num_finished = 0
        self._cache = cache
        self._rows = rows
        self._max_ride = max_ride
        self._max_positions = max_positions
        self._prepared: dict[Key, Preparation] = {}
        self._requests: dict[PendingBranches, None] = {}  # those that may have something to hand over

    def drafted(self, cached: CachedTokens, row: DraftRow, depth: int) -> list[Pick]:
        """The tokens of the row that were drafted ahead."""
        prepared = self._prepared.get(cached.key)
        if prepared is None or row.start > cached.committed or (cached.depth, cached.sampling) != (depth, row.sampling):
            return []
        agrees = agreed_length(cached.tokens, row.start, row.tokens) == row.base_length
        if agrees and row.base_length >= prepared.lead_end:
            return [cached.picks[at] for at in range(row.base_length, len(cached.tokens))]
        return prepared.behind(row.start, row.tokens)

    def begin(
        self, request: PendingBranches, asked: AheadRow, cached: CachedTokens, room: int, known: Sequence[Pick]
    ) -> None:
        """Begins to draft ahead behind a known proposal. room: tokens from its start on that have pages, more than its
        own.

        known: tokens drafted before, from there on.
        """
        guesses = [
            guess(cached.picks[at], asked.exponent) if at in cached.picks else Guess(token, 0.5)
            for at, token in enumerate(asked.proposal, asked.context.base_length)
        ]
        wanted = min(asked.length, room - len(asked.proposal) - 1)
        is_known = len(drafted_behind(asked.proposal, known)) > wanted
        trunk = Row(cached=cached, length=0 if is_known else wanted, priority=Priority.AHEAD, sink=self, lead=1)
        trunk.stop_probability = asked.stop_probability
        prepared = self._prepared[cached.key] = Preparation(request, asked, trunk, wanted, guesses, known)
        self._rows.add(trunk)
        if self._cache.missing(cached) <= self._max_ride:
            self._ride(prepared)
        request.going.add(cached.key[1])

    def advanced(self, row: Row) -> None:
        prepared = self._prepared[row.key]
        if row is prepared.trunk and not prepared.has_lead:
            self._take_lead(prepared)
        else:
            self._tell(prepared, *next(one for one in prepared.begun.values() if one[1] is row))

    def end(self, key: Key) -> None:
        """Ends all branches of this sequence."""
        prepared = self._prepared.pop(key, None)
        if prepared is not None:
            self._drop_forks(prepared)
            if prepared.trunk in self._rows:
                self._rows.remove(prepared.trunk.cached)
            prepared.request.going.discard(key[1])

    def drop_forks(self, key: Key) -> None:
        """Drops forks whose pages are needed."""
        prepared = self._prepared[key]
        self._drop_forks(prepared)
        self._account(prepared)

    def open(self, request: PendingBranches) -> None:
        self._requests[request] = None

    def reply(self) -> None:
        requests, self._requests = self._requests, {}
        for request in requests:
            request.reply()

    def _take_lead(self, prepared: Preparation) -> None:
        """Takes the lead, and of the tokens drafted behind it as many as the branch would draft itself."""
        trunk = prepared.trunk
        lead, *behind = trunk.picks
        before = drafted_behind((*prepared.asked.proposal, lead.token), prepared.known)
        known = before if len(before) > len(behind) else behind
        trunk.length = prepared.wanted
        trunk.picks = [lead, *as_wanted(known, trunk.length, trunk.stop_probability)]
        self._cache.follow(trunk.cached, prepared.lead_end, trunk.drafted)
        prepared.guesses.append(guess(lead, prepared.asked.exponent))
        self._spread(prepared)

    def _ride(self, prepared: Preparation) -> None:
        """Begins likely outcomes within the proposal before the lead is known; one place is left for the lead."""
        unknown, end = Guess(UNKNOWN, 0.5), len(prepared.asked.proposal)
        inside = [one for one in candidates([*prepared.guesses, unknown]) if one.accepted < end]
        for candidate in inside[: prepared.asked.fan_out - 1]:
            self._start(prepared, candidate)

    def _spread(self, prepared: Preparation) -> None:
        """Begins the outcomes that are the best now that the lead is known, and ends the others."""
        wanted = {one.outcome: one for one in candidates(prepared.guesses)[: prepared.asked.fan_out]}
        for outcome, (_, row) in prepared.begun.items():
            if outcome not in wanted:
                self._stop(prepared, row)
        for outcome, candidate in wanted.items():
            if outcome not in prepared.begun:
                self._start(prepared, candidate)
        if all(row is not prepared.trunk for _, row in prepared.begun.values()):
            self._stop(prepared, prepared.trunk)
        self._account(prepared)

    def _start(self, prepared: Preparation, candidate: Candidate) -> None:
        if candidate.source is BranchSource.FULL:
            if prepared.wanted > 0:
                self._start_full(prepared, candidate)
            return
        base = prepared.base_length + candidate.accepted
        length = min(prepared.asked.length, draft_room(base + 1, self._max_positions))
        trunk = prepared.trunk.cached
        rides = None if prepared.has_lead else trunk.depth
        fork = self._cache.fork(trunk, base, candidate.token, length, rides) if length > 0 else None
        if fork is not None:
            row = Row(cached=fork, length=length, priority=Priority.AHEAD, sink=self, parent=prepared.trunk)
            row.stop_probability = prepared.asked.stop_probability
            self._rows.add(row)
            prepared.begun[candidate.outcome] = candidate, row

    def _start_full(self, prepared: Preparation, candidate: Candidate) -> None:
        """Begins the branch behind the lead, in the sequence itself."""
        trunk = prepared.trunk
        prepared.begun[candidate.outcome] = candidate, trunk
        if trunk.drafted:
            self._tell(prepared, candidate, trunk)

    def _tell(self, prepared: Preparation, candidate: Candidate, row: Row) -> None:
        """Hands over the tokens of a branch. One that is done ends here."""
        prepared.request.add(prepared.branch(candidate, row))
        self._requests[prepared.request] = None
        if row.is_done:
            self.num_finished += 1
            self._stop(prepared, row)
            self._account(prepared)

    def _stop(self, prepared: Preparation, row: Row) -> None:
        if row in self._rows:
            self._rows.remove(row.cached)
            if row is not prepared.trunk:
                self._cache.release(row.cached)

    def _drop_forks(self, prepared: Preparation) -> None:
        for _, row in prepared.begun.values():
            if row is not prepared.trunk:
                self._stop(prepared, row)

    def _account(self, prepared: Preparation) -> None:
        """Notes whether more branches of this sequence will come."""
        self._requests[prepared.request] = None
        rows = (prepared.trunk, *(row for _, row in prepared.begun.values()))
        if any(row in self._rows for row in rows):
            prepared.request.going.add(prepared.trunk.key[1])
        else:
            prepared.request.going.discard(prepared.trunk.key[1])


def drafted_behind(path: Sequence[int], drafted: Sequence[Pick]) -> Sequence[Pick]:
    """The tokens drafted behind the path; none if the drafts took another way."""
    agree = [pick.token for pick in drafted[: len(path)]] == list(path)
    return drafted[len(path) :] if agree else ()


def guess(pick: Pick, exponent: float) -> Guess:
    return Guess(pick.token, pick.confidence**exponent, pick.runner_up if pick.runner_up >= 0 else None)
