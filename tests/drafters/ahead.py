"""Targets whose windows are verified with random outcomes while the pool drafts ahead; all that comes is checked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from drafters.limits import PoolLimits
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, prefix_hash
from protocol.draft import DraftReply, DraftRequest, DraftRow, DraftStatus
from tests.drafters.pool import DEEP, EXITS, VOCABULARY, DrawnSequences, Pool, expected, row, text
from tests.reference.drafting import Drafted, draft_from_scratch, next_from_scratch


@dataclass
class Flight:
    """A round as the pool was told of it, and what came of it. texts: at its start. branches, fresh: by sequence."""

    request: AheadRequest
    texts: dict[int, list[int]]
    branches: dict[int, Branch] = field(default_factory=dict)
    fresh: dict[int, list[Drafted]] = field(default_factory=dict)  # what a branch should be


class AheadTarget(DrawnSequences):
    """Sequences with windows in flight whose outcomes are drawn at random; every branch and answer is checked."""

    def __init__(self, pool: Pool, decoder: Decoder, incarnation: str, rng: random.Random) -> None:
        super().__init__(pool, decoder, incarnation, rng)
        self.windows: dict[int, tuple[int, ...]] = dict.fromkeys(self.texts, ())
        self.depth = EXITS[0]
        self.flights: dict[int, Flight] = {}
        self.answerable: list[int] = []  # those of the last round for which a branch was right
        self.flight: Flight | None = None
        self.rolling: dict[int, int] = {}  # the round of its last message, which the pool drafts ahead for
        self.replies: list[BranchReply] = []
        self.answers: list[DraftReply] = []
        self.num_whole = self.num_hits = self.num_drafts = self.num_refused = self.num_reused = 0

    def context(self, sequence_id: int, length: int = 0) -> DraftRow:
        start, own, rng = self.sent[sequence_id], self.texts[sequence_id], self.rng
        self.sent[sequence_id] = len(own)
        depth = rng.choice(EXITS) if rng.random() < 0.1 else None
        return DraftRow(sequence_id, start, tuple(own[start:]), length, self.sampling[sequence_id], depth)

    def verify_next(self, depth: int) -> None:
        """The windows at hand go to the target, and what is under verification to the pool."""
        rng = self.rng
        self.rounds, self.depth = self.rounds + 1, depth
        rows = tuple(
            AheadRow(self.context(one), self.windows[one], rng.randint(0, 9), rng.choice([0, 0.05]))
            for one in self.texts
            if rng.random() < 0.8
        )
        request = AheadRequest(self.incarnation, self.rounds, depth, rows)
        self.flight = self.flights[self.rounds] = Flight(request, dict(self.texts))
        self.rolling |= {one.context.sequence_id: self.rounds for one in rows}
        self.pool.worker.ahead(request, self.replies.append)

    def take(self) -> None:
        """Not from the callback: the worker would log a failed assertion and go on."""
        for reply in self.replies:
            assert reply.incarnation == self.incarnation
            flight = self.flights[reply.round_id]
            for branch in reply.branches:
                assert self.rolling.get(branch.sequence_id) == reply.round_id, "of a round that is over"
                self.check(flight, branch)
        self.replies.clear()

    def check(self, flight: Flight, branch: Branch) -> None:
        (own,) = (row for row in flight.request.rows if row.context.sequence_id == branch.sequence_id)
        committed, depth = flight.texts[branch.sequence_id], own.context.depth or flight.request.depth
        sampling = own.context.sampling
        before = [*committed, *own.proposal]
        before.append(next_from_scratch(self.decoder, before, depth, sampling)[0])
        assert (branch.base_length, branch.key) == (len(before), prefix_hash(before))
        if branch.sequence_id not in flight.fresh:
            drafted = draft_from_scratch(self.decoder, before, own.length, depth, sampling, own.stop_probability)
            flight.fresh[branch.sequence_id] = drafted
        fresh = flight.fresh[branch.sequence_id]
        if branch.goes_on or self.pool.is_small:
            fresh = fresh[: max(len(branch.tokens), 1)]
        assert branch.tokens == tuple(one for one, _ in fresh)
        assert branch.confidences == pytest.approx([confidence for _, confidence in fresh], abs=1e-4)
        known = flight.branches.get(branch.sequence_id)
        assert known is None or known.goes_on, "drafted twice"
        assert known is None or len(known.tokens) < len(branch.tokens), "nothing new"
        flight.branches[branch.sequence_id] = branch
        self.num_whole += not branch.goes_on

    def end_verification(self) -> None:
        """An outcome for every window, often one that a branch is there for; the next windows are at hand."""
        assert self.flight is not None
        self.answerable = []
        for own in self.flight.request.rows:
            sequence_id, rng = own.context.sequence_id, self.rng
            accepted, token = rng.randint(0, len(own.proposal)), rng.randrange(VOCABULARY)
            if accepted < len(own.proposal) and rng.random() < 0.3:
                token = own.proposal[accepted]  # a target that verifies less than it told the pool
            branch = self.flight.branches.get(sequence_id)
            if branch and rng.random() < 0.7:
                accepted, before = len(own.proposal), [*self.texts[sequence_id], *own.proposal]
                token = next(one for one in range(VOCABULARY) if prefix_hash([*before, one]) == branch.key)
            committed = self.texts[sequence_id] = [*self.texts[sequence_id], *own.proposal[:accepted], token]
            hit = branch is not None and branch.key == prefix_hash(committed)
            tokens = branch.tokens[: rng.randint(1, 9)] if branch and hit else tuple(self.text(rng.randint(0, 3)))
            self.windows[sequence_id] = tokens
            self.num_hits += hit
            self.answerable += [sequence_id] * hit
            if len(committed) > 50:
                self.start_over(sequence_id)
        self.flight = None

    def start_over(self, sequence_id: int) -> None:
        self.close(sequence_id)
        self.texts[sequence_id], self.windows[sequence_id] = self.text(9), ()

    def close(self, sequence_id: int) -> None:
        self.pool.worker.close(self.incarnation, [sequence_id])
        self.sent[sequence_id] = 0
        self.rolling.pop(sequence_id, None)

    def draft(self, depth: int) -> None:
        """In place of what is at hand; the answer is waited for."""
        sequence_id, floor = self.rng.choice(self.answerable or list(self.texts)), self.rng.choice([0.0, 0.1])
        asked = replace(self.context(sequence_id, self.rng.randint(0, 5)), stop_probability=floor)
        self.rolling.pop(sequence_id, None)
        self.pool.worker.submit(DraftRequest(self.incarnation, 0, depth, (asked,)), self.answers.append)
        self.num_reused += bool(self.answers and self.answers[0].blocks[0].tokens)
        while not self.answers:
            assert self.pool.step() is not None
        (block,) = self.answers.pop().blocks
        if block.status is not DraftStatus.OK:
            self.num_refused += 1
            self.sent[sequence_id] = 0
            return
        self.num_drafts += 1
        depth = asked.depth or depth
        fresh = draft_from_scratch(
            self.decoder, self.texts[sequence_id], asked.length, depth, asked.sampling, asked.stop_probability
        )
        if self.pool.is_small:
            fresh = fresh[: len(block.tokens)]
        assert block.tokens == tuple(one for one, _ in fresh)
        self.windows[sequence_id] = block.tokens

    def turn(self, depth: int) -> None:
        """Whatever may come next."""
        self.take()
        chance = self.rng.random()
        if self.flight is None:
            if chance < 0.45:
                self.draft(self.depth if self.answerable else depth)
            else:
                self.verify_next(depth)
        elif chance < 0.4:
            self.end_verification()
        elif chance < 0.42:
            self.close(self.rng.randrange(3))
        self.pool.worker.check()


class Verified:
    """A sequence whose proposal is verified, greedily drafted at full depth."""

    def __init__(self, llama: Decoder, limits: PoolLimits | None = None, num_pages: int = 64) -> None:
        self.pool, self.llama, self.tokens = Pool(llama, limits or PoolLimits(ahead=8), num_pages), llama, text(20)
        self.window = expected(llama, self.tokens, 3)
        self.lead = expected(llama, self.tokens, 4)[3]
        self.replies: list[BranchReply] = []
        self.pool.ask(row(1, self.tokens, 3))

    def ahead(self, length: int = 2, window: tuple[int, ...] | None = None, round_id: int = 1) -> None:
        own = AheadRow(row(1, [], 0, start=20), self.window if window is None else window, length)
        self.send(own, round_id=round_id)

    def send(self, *rows: AheadRow, depth: int = DEEP, round_id: int = 1) -> None:
        self.pool.worker.ahead(AheadRequest("large", round_id, depth, rows), self.replies.append)
        self.pool.worker.check()

    @property
    def branches(self) -> list[Branch]:
        """What came whole."""
        return [branch for branch in self.parts if not branch.goes_on]

    @property
    def parts(self) -> list[Branch]:
        """All that came, parts as well."""
        return [branch for reply in self.replies for branch in reply.branches]

    def behind(self, length: int) -> tuple[int, tuple[int, ...]]:
        """The key and the tokens of the branch."""
        before = [*self.tokens, *self.window, self.lead]
        return prefix_hash(before), expected(self.llama, before, length)
