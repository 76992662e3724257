"""A simulated target's way to its draft replica: what targets/drafting.py and link/transport.py do, in time.

Half of the link lies before the pool and half behind it. Nobody waits beyond the deadline; after three misses in a row
the pool is left alone for a pause that grows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from protocol.draft import DraftBlock, DraftStatus
from protocol.outcome import Probe, RoundOutcome
from protocol.plan import DepthRule, Plan
from router.pipeline import Source
from router.simulate_acceptance import NOTHING, Draft, Profile
from router.simulate_jobs import Call, Decoding, Job, Round
from router.simulate_pool import Loop, Replica

MISSES = 3
PAUSES_MS = (1e3, 2e3, 4e3, 8e3, 16e3, 30e3)


class Drafts:
    """What a round gave. blocks, runs (leading tokens that are right), fed: by row. answered: not asked in vain. plan:
    as it was played, where that is another. ahead: some were at hand.
    """

    __slots__ = ("ahead", "answered", "blocks", "fed", "plan", "runs", "wait_ms")

    def __init__(self, num_rows: int) -> None:
        self.blocks: list[DraftBlock | None] = [None] * num_rows
        self.runs = [0] * num_rows
        self.fed = [0] * num_rows
        self.wait_ms = 0.0
        self.answered = True
        self.ahead = False
        self.plan: Plan | None = None

    def extend(self, num_rows: int) -> None:
        """More rows, without drafts."""
        more = num_rows - len(self.blocks)
        self.blocks += [None] * more
        self.runs += [0] * more
        self.fed += [0] * more


Take = Callable[[Drafts], None]


class _Asked:
    """A round that a target waits for. rows: of the batch, with the job of each once the pool has it."""

    __slots__ = ("decoding", "fed", "num_rows", "round", "rows", "take")

    def __init__(self, decoding: Sequence[Decoding], num_rows: int, take: Take) -> None:
        self.decoding = decoding
        self.num_rows = num_rows
        self.take = take
        self.round = Round(None)
        self.rows: list[tuple[int, Job]] = []
        self.fed = [0] * len(decoding)


class Drafting:
    """Of one target. near: no link between it and its replica."""

    def __init__(self, loop: Loop, replica: Replica, profile: Profile, near: bool, deadline_ms: float) -> None:
        self.hits: Counter[Source] = Counter()
        self.num_missed = 0
        self._loop = loop
        self._replica = replica
        self._profile = profile
        self._near = near
        self._deadline_ms = deadline_ms
        self._waiting: _Asked | None = None
        self._arrives = 0.0  # the last message
        self._misses = 0
        self._pause = 0
        self._resume_ms = 0.0

    def open(self, sequences: Sequence[Decoding], rule: DepthRule) -> None:
        """Hand over the contexts of admitted sequences."""
        round_ = Round(None)
        makes = [(one.key, self._job_maker(round_, one, rule, NOTHING, False)) for one in sequences]
        self._send(round_, len(makes), lambda: self._replica.submit(round_, [(key, make()) for key, make in makes]))

    def draft(self, decoding: Sequence[Decoding], plan: Plan, take: Take) -> None:
        """`take` is called with what comes, at once if nothing is asked for."""
        wanting = [row for row, length in enumerate(plan.lengths) if length or row in plan.probes]
        if not wanting or self._loop.now < self._resume_ms:
            drafts = Drafts(len(decoding))
            drafts.answered = not wanting
            return take(drafts)
        asked = self._waiting = _Asked(decoding, len(wanting), take)
        asked.round = Round(partial(self._reply, asked))
        makes = []
        for row in wanting:
            rule = rule_of(plan, row)
            one = decoding[row]
            asked.fed[row] = one.num_tokens - (one.sent if one.known else 0)
            draft = self._text(decoding[row], rule, plan.lengths[row], plan.floor)
            makes.append((row, self._job_maker(asked.round, decoding[row], rule, draft, row in plan.probes)))
        self._send(asked.round, len(wanting), partial(self._submit, asked, makes))
        if math.isfinite(self._deadline_ms):
            self._loop.at(self._loop.now + self._deadline_ms, partial(self._late, asked))
        return None

    def verifying(
        self,
        decoding: Sequence[Decoding],
        lengths: Sequence[int],
        ms: float,
        ending: Sequence[Decoding],
    ) -> float:
        """A pass of so many ms begins, over so many tokens of each draft; what it takes longer for what is done
        meanwhile. ending: whose prompts end with it.
        """
        return 0.0

    def observe(self, outcome: RoundOutcome) -> None:
        """Of every round."""

    def close(self, sequence: Decoding) -> None:
        sequence.end_ahead(self._replica.close)
        self._replica.close(sequence.key)

    def _submit(self, asked: _Asked, makes: Sequence[tuple[int, Callable[[], Job]]]) -> None:
        asked.rows = [(row, make()) for row, make in makes]
        self._replica.submit(asked.round, [(asked.decoding[row].key, job) for row, job in asked.rows])

    def _text(self, sequence: Decoding, rule: DepthRule, length: int, floor: float) -> Draft:
        if not length:
            return NOTHING
        table = self._profile.at(sequence.generated, self._loop.now)
        return sequence.text.draft(table, rule, sequence.generated, length, floor)

    def _job_maker(
        self, round_: Round, sequence: Decoding, rule: DepthRule, draft: Draft, probes: bool
    ) -> Callable[[], Job]:
        """Makes the job when the pool takes the message."""
        sequence.sent = sequence.num_tokens
        return partial(self._job, round_, sequence, sequence.num_tokens, rule, draft, probes)

    def _job(self, round_: Round, sequence: Decoding, base: int, rule: DepthRule, draft: Draft, probes: bool) -> Job:
        exits, rules = self._profile.exits, self._replica.rules
        resident = sequence.held(len(exits), base)
        known = sequence.end_ahead(self._replica.close)
        num_done = num_held = 0
        if known is not None and draft.exits and not probes and known.window.rule == rule:
            draft = known.window.draft.first(len(draft.exits))
            num_done = min(known.job.done, len(draft.exits))
            num_held = num_done if known.window.in_place else 0
        resident.take_over(base, draft, num_held)
        told = resident.untold(min(rules.probe_tokens, rules.prefill_tokens)) if probes else None
        job = Job(round_, resident, exits.index(rule.exits[-1]), draft, told)
        job.done = num_done
        return job

    def _link_ms(self, num_rows: int) -> float:
        return 0.0 if self._near else self._replica.tables.link_ms(num_rows) / 2

    def _send(self, round_: Round, num_rows: int, message: Call) -> None:
        """Messages come in the order in which they are sent."""
        if self._near:
            return self._arrive(round_, message)
        self._arrives = max(self._arrives, self._loop.now + self._link_ms(num_rows))
        return self._loop.at(self._arrives, partial(self._arrive, round_, message))

    def _arrive(self, round_: Round, message: Call) -> None:
        round_.arrive(self._loop.now)
        self._replica.tell(message)

    def _reply(self, asked: _Asked) -> None:
        over = partial(self._over, asked)
        if self._near:
            over()
        else:
            self._loop.at(self._loop.now + self._link_ms(asked.num_rows), over)

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
            asked.decoding[row].known = True
            drafts.blocks[row] = self._block(asked.decoding[row], job)
            drafts.runs[row] = job.draft.run
        self._count(asked.num_rows - len(came), len(came))
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


def rule_of(plan: Plan, row: int) -> DepthRule:
    rule = (plan.own[row] if plan.own else None) or plan.depth
    assert rule is not None, "a plan that drafts names a depth"
    return rule
