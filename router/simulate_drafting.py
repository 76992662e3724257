"""A simulated target's way to its draft replica: what targets/drafting.py and deployments/transport.py do, in time.

Half of the link lies before the pool and half behind it. Nobody waits beyond the deadline; after three misses in a row
the pool is left alone for a pause that grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from protocol.draft import DraftBlock, DraftStatus, Probe
from protocol.plan import DepthRule, Plan, SequenceView
from router.simulate_acceptance import Draft, Fate, Profile
from router.simulate_pool import Job, Loop, Replica, Resident, Round

MISSES = 3
PAUSES_MS = (1e3, 2e3, 4e3, 8e3, 16e3, 30e3)
NOTHING = Draft([], [], 0)


class Decoding:
    """One admitted sequence. sent: committed tokens that the pool was handed. resident: what the pool holds of it."""

    __slots__ = ("computed", "first_ms", "generated", "key", "max_tokens", "prompt_tokens", "resident", "sent", "text")

    def __init__(self, key: int, prompt_tokens: int, max_tokens: int, text: Fate) -> None:
        """key: unique over all targets."""
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.text = text
        self.computed = 0
        self.generated = 0
        self.sent = 0
        self.first_ms = 0.0
        self.resident: Resident | None = None

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.generated

    def view(self) -> SequenceView:
        return SequenceView(self.num_tokens, self.max_tokens - self.generated, self.key, self.num_tokens - self.sent)


class Drafts:
    """What a round gave. blocks, runs (leading tokens that are right), fed: by row. answered: not asked in vain."""

    __slots__ = ("answered", "blocks", "fed", "runs", "wait_ms")

    def __init__(self, num_rows: int) -> None:
        self.blocks: list[DraftBlock | None] = [None] * num_rows
        self.runs = [0] * num_rows
        self.fed = [0] * num_rows
        self.wait_ms = 0.0
        self.answered = True


Take = Callable[[Drafts], None]


class _Asked:
    """A round that a target waits for. rows: of the batch, with the job of each."""

    __slots__ = ("decoding", "fed", "round", "rows", "take")

    def __init__(self, decoding: Sequence[Decoding], take: Take) -> None:
        self.decoding = decoding
        self.take = take
        self.round = Round(None)
        self.rows: list[tuple[int, Job]] = []
        self.fed = [0] * len(decoding)


class Drafting:
    """Of one target. near: no link between it and its replica."""

    def __init__(self, loop: Loop, replica: Replica, profile: Profile, near: bool, deadline_ms: float) -> None:
        self._loop = loop
        self._replica = replica
        self._profile = profile
        self._near = near
        self._deadline_ms = deadline_ms
        self._waiting: _Asked | None = None
        self._misses = 0
        self._pause = 0
        self._resume_ms = 0.0

    def open(self, sequences: Sequence[Decoding], rule: DepthRule) -> None:
        """Hand over the contexts of admitted sequences."""
        round_ = Round(None)
        self._send(round_, [(one.key, self._job(round_, one, rule, NOTHING, False)) for one in sequences])

    def draft(self, decoding: Sequence[Decoding], plan: Plan, take: Take) -> None:
        """`take` is called with what comes, at once if nothing is asked for."""
        wanting = [row for row, length in enumerate(plan.lengths) if length or row in plan.probes]
        drafts = Drafts(len(decoding))
        if not wanting or self._loop.now < self._resume_ms:
            drafts.answered = not wanting
            return take(drafts)
        asked = self._waiting = _Asked(decoding, take)
        asked.round = Round(partial(self._reply, asked, len(wanting)))
        for row in wanting:
            rule = (plan.own[row] if plan.own else None) or plan.depth
            assert rule is not None, "a plan that drafts names a depth"
            asked.fed[row] = decoding[row].num_tokens - decoding[row].sent
            draft = self._text(decoding[row], rule, plan.lengths[row], plan.floor)
            asked.rows.append((row, self._job(asked.round, decoding[row], rule, draft, row in plan.probes)))
        self._send(asked.round, [(decoding[row].key, job) for row, job in asked.rows])
        if math.isfinite(self._deadline_ms):
            self._loop.at(self._loop.now + self._deadline_ms, partial(self._late, asked))
        return None

    def close(self, sequence: Decoding) -> None:
        self._replica.close(sequence.key)

    def _text(self, sequence: Decoding, rule: DepthRule, length: int, floor: float) -> Draft:
        if not length:
            return NOTHING
        table = self._profile.at(sequence.generated, self._loop.now)
        return sequence.text.draft(table, rule, sequence.generated, length, floor)

    def _job(self, round_: Round, sequence: Decoding, rule: DepthRule, draft: Draft, probes: bool) -> Job:
        base, exits = sequence.num_tokens, self._profile.exits
        if sequence.resident is None:
            sequence.resident = Resident(len(exits), base)
        sequence.resident.take_over(base, draft)
        sequence.sent = base
        rules = self._replica.rules
        told = sequence.resident.untold(min(rules.probe_tokens, rules.prefill_tokens)) if probes else None
        return Job(round_, sequence.resident, exits.index(rule.exits[-1]), draft, told)

    def _link_ms(self, num_rows: int) -> float:
        return 0.0 if self._near else self._replica.tables.link_ms(num_rows) / 2

    def _send(self, round_: Round, jobs: list[tuple[int, Job]]) -> None:
        submit = partial(self._replica.submit, round_, jobs)
        if self._near:
            submit()
        else:
            self._loop.at(self._loop.now + self._link_ms(len(jobs)), submit)

    def _reply(self, asked: _Asked, num_rows: int) -> None:
        over = partial(self._over, asked)
        if self._near:
            over()
        else:
            self._loop.at(self._loop.now + self._link_ms(num_rows), over)

    def _late(self, asked: _Asked) -> None:
        if asked is self._waiting:
            asked.round.give_up()
            self._over(asked)

    def _over(self, asked: _Asked) -> None:
        """All rows have come, or no more will be waited for."""
        if asked is not self._waiting:
            return
        self._waiting = None
        came = [(row, job) for row, job in asked.rows if asked.decoding[row].key in asked.round.finished]
        drafts = Drafts(len(asked.decoding))
        drafts.answered = bool(came)
        drafts.wait_ms = asked.round.wait_ms
        drafts.fed = asked.fed
        for row, job in came:
            drafts.blocks[row] = self._block(asked.decoding[row], job)
            drafts.runs[row] = job.draft.run
        self._count(len(asked.rows) - len(came), len(came))
        asked.take(drafts)

    def _count(self, num_late: int, num_came: int) -> None:
        if num_late <= num_came:
            self._misses = self._pause = 0
            return
        self._misses += 1
        if self._misses >= MISSES:
            self._resume_ms = self._loop.now + PAUSES_MS[self._pause]
            self._pause = min(self._pause + 1, len(PAUSES_MS) - 1)

    def _block(self, sequence: Decoding, job: Job) -> DraftBlock:
        draft, exits = job.draft, self._profile.exits
        return DraftBlock(
            sequence.key,
            sequence.num_tokens,
            DraftStatus.OK,
            (0,) * len(draft.exits),
            tuple([exits[number] for number in draft.exits]),
            tuple(draft.confidences),
            None if job.told is None else self._probe(sequence, job.told),
        )

    def _probe(self, sequence: Decoding, told: range) -> Probe:
        first = sequence.prompt_tokens
        matches, sure = sequence.text.probe(self._profile, told.start - first, told.stop - first, self._loop.now)
        return Probe(told.start, tuple(map(tuple, matches)), tuple(map(tuple, sure)))
