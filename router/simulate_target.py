"""A simulated target: the turn of targets/step.py, in simulated time.

    begin: admit, plan  -(bookkeeping)->  draft  -(the pool)->  verify  -(the device)->  commit, observe  -> begin ...

Each arrow is something that happens later; in between the target only waits. A turn that overlaps drafting with
verifying is another order of the same parts on the same loop.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import BatchView, DepthRule, Plan
from router.policy import Policy
from router.simulate_acceptance import Fate, Text
from router.simulate_costs import TargetTables
from router.simulate_drafting import Drafting, Drafts
from router.simulate_jobs import Decoding
from router.simulate_pool import Device, Jitter, Loop


@dataclass(frozen=True, slots=True)
class Request:
    """max_tokens is what it generates: no text ends early. seed: of its luck."""

    at_ms: float
    prompt_tokens: int
    max_tokens: int
    seed: int = 0


def lucky(request: Request) -> Fate:
    return Text(request.max_tokens, np.random.default_rng(request.seed))


@dataclass(frozen=True, slots=True)
class Served:
    """A finished request, in simulated ms."""

    request: Request
    first_ms: float
    last_ms: float

    @property
    def ttft_ms(self) -> float:
        return self.first_ms - self.request.at_ms

    @property
    def tpot_ms(self) -> float | None:
        """None for a single token."""
        tokens = self.request.max_tokens
        return (self.last_ms - self.first_ms) / (tokens - 1) if tokens > 1 else None


@dataclass(slots=True)
class Counts:
    """asked, missed: rounds that asked the pool, and those in vain. wait_ms: that they stood in line there, summed;
    exposed_ms: that they waited for drafts. decoded: tokens since the pass that gave the last first one.

    drafted: rows by rule and number of drafted tokens, (None, 0) where none came.
    """

    rounds: int = 0
    rows: int = 0
    committed: int = 0
    decoded: int = 0
    asked: int = 0
    missed: int = 0
    wait_ms: float = 0.0
    exposed_ms: float = 0.0
    drafted: Counter[tuple[DepthRule | None, int]] = field(default_factory=Counter)


class Turn:
    """One on its way. chunks: (sequence, prompt tokens). rest_ms, asked, drafted, begun: as they come to pass."""

    __slots__ = ("asked", "begun", "chunks", "decoding", "drafted", "drafts", "lengths", "plan", "rest_ms")

    def __init__(self, decoding: list[Decoding], plan: Plan, chunks: list[tuple[Decoding, int]]) -> None:
        self.decoding = decoding
        self.plan = plan
        self.chunks = chunks
        self.drafts = Drafts(len(decoding))
        self.lengths: Sequence[int] = ()
        self.rest_ms = self.asked = self.drafted = self.begun = 0.0


class Target:
    """drafting None: there is no pool, and the policy is not asked."""

    def __init__(
        self,
        loop: Loop,
        device: Device,
        drafting: Drafting | None,
        policy: Policy,
        tables: TargetTables,
        limits: tuple[int, int],
        jitter: Jitter,
        keys: Iterator[int],
        fate: Callable[[Request], Fate],
    ) -> None:
        """limits: rows of a batch, prompt tokens of a turn. keys: names of sequences, unique over all targets."""
        self.counts = Counts()
        self.served: list[Served] = []
        self._loop = loop
        self._device = device
        self._drafting = drafting
        self._policy = policy
        self._tables = tables
        self._max_batch, self._prefill_chunk = limits
        self._jitter = jitter
        self._keys = keys
        self._fate = fate
        self._waiting: deque[Request] = deque()
        self._running: list[Decoding] = []
        self._requests: dict[int, Request] = {}
        self._ended: float | None = None  # the last turn, unless the target has been idle since

    @property
    def hits(self) -> Mapping[str, float]:
        """Shares of the outcomes that were drafted ahead for, by what had made them a candidate."""
        if self._drafting is None:
            return {}
        hits = self._drafting.hits
        num = hits.total() + self._drafting.num_missed
        return {source.value: count / num for source, count in sorted(hits.items())}

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def arrive(self, request: Request) -> None:
        """Those that come at one instant are admitted together."""
        if self.is_idle:
            self._loop.at(self._loop.now, self._begin)
        self._waiting.append(request)

    def _begin(self) -> None:
        self._admit()
        turn = self._turn([sequence for sequence in self._running if sequence.generated])
        ms = self._tables.overhead_ms(len(turn.decoding)) * self._jitter()
        self._loop.at(self._loop.now + ms, lambda: self._draft(turn))

    def _turn(self, decoding: list[Decoding]) -> Turn:
        return Turn(decoding, self._plan(decoding), self._chunks())

    def _admit(self) -> None:
        admitted: list[Decoding] = []
        while self._waiting and len(self._running) + len(admitted) < self._max_batch:
            request, key = self._waiting.popleft(), next(self._keys)
            admitted.append(Decoding(key, request.prompt_tokens, request.max_tokens, self._fate(request), request.seed))
            self._requests[key] = request
        self._running += admitted
        rule = self._policy.opening() if admitted and self._drafting else None
        if rule is not None and self._drafting:
            self._drafting.open(admitted, rule)

    def _plan(self, decoding: Sequence[Decoding], overlap: str = "") -> Plan:
        if not decoding or self._drafting is None:
            return Plan(None, (0,) * len(decoding))
        views = tuple([sequence.view() for sequence in decoding])
        num_prefilling = sum(not sequence.generated for sequence in self._running)
        return self._policy.plan(BatchView(views, num_prefilling, overlap))

    def _chunks(self) -> list[tuple[Decoding, int]]:
        """Prompt tokens for this turn, oldest sequence first."""
        taken, budget = [], self._prefill_chunk
        for sequence in self._running:
            size = min(sequence.prompt_tokens - sequence.computed, budget)
            if size > 0:
                taken.append((sequence, size))
                budget -= size
        return taken

    def _draft(self, turn: Turn) -> None:
        self._ask_for(turn)
        if self._drafting is None or turn.plan.depth is None:
            self._verify(turn, turn.drafts)
        else:
            self._drafting.draft(turn.decoding, turn.plan, lambda drafts: self._verify(turn, drafts))

    def _ask_for(self, turn: Turn) -> None:
        turn.asked = self._loop.now
        turn.rest_ms = turn.asked - (turn.asked if self._ended is None else self._ended)

    def _verify(self, turn: Turn, drafts: Drafts) -> None:
        turn.drafted = self._loop.now
        turn.drafts = drafts
        turn.plan = drafts.plan or turn.plan
        turn.lengths = self._policy.prune(turn.plan, drafts.blocks)
        self._device.ask(lambda: self._pass_ms(turn), lambda: self._commit(turn))

    def _pass_ms(self, turn: Turn) -> float:
        chunks = sum(self._tables.chunk_ms(one.computed, one.computed + size) for one, size in turn.chunks)
        rows = len(turn.decoding)
        if rows:
            context = sum(sequence.num_tokens for sequence in turn.decoding) / rows
            decode = self._tables.verify_ms(rows, rows + sum(turn.lengths), context)
        else:
            decode = self._tables.fixed_ms
        ms = (decode + chunks) * self._jitter()
        turn.begun = self._loop.now
        if self._drafting is not None:
            ending = [one for one, size in turn.chunks if one.computed + size == one.prompt_tokens]
            ms += self._drafting.verifying(turn.decoding, turn.lengths, ms, ending)
        return ms

    def _commit(self, turn: Turn) -> None:
        context = sum(sequence.num_tokens for sequence in turn.decoding) / max(len(turn.decoding), 1)
        rows = tuple([self._commit_row(turn, index) for index in range(len(turn.decoding))])
        for sequence, size in turn.chunks:
            sequence.computed += size
            if sequence.computed == sequence.prompt_tokens:
                sequence.first_ms = self._loop.now
                self._generate(sequence, 1)
                self.counts.decoded = 0
        now, drafts = self._loop.now, turn.drafts
        outcome = RoundOutcome(
            plan=turn.plan,
            rows=rows,
            context=context,
            draft_ms=turn.drafted - turn.asked,
            wait_ms=drafts.wait_ms,
            verify_ms=now - turn.begun,
            rest_ms=turn.rest_ms + turn.begun - turn.drafted,
            num_prefill_tokens=sum(size for _, size in turn.chunks),
            answered=drafts.answered,
            ahead=drafts.ahead,
        )
        self._observe(outcome)
        self._count(outcome)
        self._ended = None if self.is_idle else now
        if not self.is_idle:
            self._begin()

    def _observe(self, outcome: RoundOutcome) -> None:
        self._policy.observe(outcome)
        if self._drafting is not None:
            self._drafting.observe(outcome)

    def _commit_row(self, turn: Turn, index: int) -> RowOutcome:
        sequence, block = turn.decoding[index], turn.drafts.blocks[index]
        verified = turn.lengths[index]
        accepted = min(turn.drafts.runs[index], verified)
        self._generate(sequence, accepted + 1)
        if block is None:
            return RowOutcome(sequence.key, 0, 0)
        fed = turn.drafts.fed[index]
        return RowOutcome(sequence.key, accepted, verified, block.exits, block.confidences, fed, block.probe)

    def _generate(self, sequence: Decoding, num_tokens: int) -> None:
        sequence.generated += num_tokens
        self.counts.decoded += num_tokens
        assert sequence.generated <= sequence.max_tokens, "a plan drafted past the end of a sequence"
        if sequence.generated == sequence.max_tokens:
            self._running.remove(sequence)
            self.served.append(Served(self._requests.pop(sequence.key), sequence.first_ms, self._loop.now))
            if self._drafting:
                self._drafting.close(sequence)

    def _count(self, outcome: RoundOutcome) -> None:
        counts, plan = self.counts, outcome.plan
        if not outcome.rows:
            return
        counts.rounds += 1
        counts.rows += len(outcome.rows)
        counts.committed += len(outcome.rows) + sum(row.accepted for row in outcome.rows)
        if plan.depth is not None:
            counts.asked += 1
            counts.missed += not outcome.answered
            counts.wait_ms += outcome.wait_ms
            counts.exposed_ms += outcome.draft_ms
        for index, row in enumerate(outcome.rows):
            rule = (plan.own[index] if plan.own else None) or plan.depth
            counts.drafted[rule if row.exits else None, len(row.exits)] += 1
