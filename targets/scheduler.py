"""Which sequences take part in a step, and with how many tokens. Decides over integers; tensors never come here.

One step holds a verify row for every decoding sequence and, within a token budget, chunks of prompts. Decoding goes
first: its pages are reserved before a round, lengths fall to 0 when pages run short, and only then is the last sequence
by rank preempted, to be computed again at the same positions.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, replace

from model.pages import PageLedger
from model.prefixes import page_keys
from protocol.plan import Plan
from targets.sequence import Sequence

TOLD_CHUNK = 64  # tokens of a prompt that is told, in one step: each has its logits


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """prefill_chunk: prompt tokens in one step, over all sequences. short_share: of these, for the prompts with the
    least left (docs/decisions/0016-short-prompts.md).
    """

    max_batch: int = 16
    prefill_chunk: int = 512
    short_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step. plan: of the decoding sequences, as far as pages reach. chunks: (sequence, number of prompt tokens).

    rooms: tokens that may be verified behind the newest of each decoding sequence; at least the planned lengths.
    """

    decoding: tuple[Sequence, ...]
    plan: Plan
    chunks: tuple[tuple[Sequence, int], ...]
    num_preempted: int = 0
    rooms: tuple[int, ...] = ()


class Scheduler:
    def __init__(self, ledger: PageLedger, config: SchedulerConfig) -> None:
        self._ledger = ledger
        self._config = config
        self.waiting: list[Sequence] = []  # by turn
        self.running: list[Sequence] = []  # by rank: the last is preempted first
        self.num_adopted = 0  # prompt tokens whose KV was there already
        self.room = config.max_batch  # sequences that run at once, as far as pages reached when some waited last
        self.num_queried = 0  # prompt tokens of sequences that were admitted for the first time
        self.num_hits = 0  # of these, adopted ones

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.is_decoding]

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=turn)

    def remove(self, sequence: Sequence) -> None:
        """Gives back the pages of a finished or cancelled sequence; ignores one that is gone already."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._ledger.free(sequence.id)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Waiting sequences, in order, while there is room in the batch and a page for each running one besides."""
        admitted = []
        self.room = self._config.max_batch
        while self.waiting and len(self.running) < self._config.max_batch:
            sequence = self.waiting[0]
            self._ledger.open(sequence.id)
            sequence.keys = page_keys(sequence.keys, sequence.tokens, self._ledger.page_size)
            self._adopt(sequence)
            needed = self._ledger.missing(sequence.id, len(sequence.tokens))
            if needed + len(self.running) > self._ledger.num_free:
                self._ledger.free(sequence.id)
                sequence.computed = sequence.num_kept = 0
                self.room = len(self.running)
                break
            self._ledger.reserve(sequence.id, len(sequence.tokens))
            self.num_queried += 0 if sequence.was_preempted else len(sequence.tokens)
            self._count_adopted(sequence, sequence.computed)
            insort(self.running, self.waiting.pop(0), key=rank)
            admitted.append(sequence)
        return admitted

    def _adopt(self, sequence: Sequence) -> int:
        """Goes on behind the longest beginning whose KV is kept. One token is left to run, which gives the next."""
        if sequence.is_told:
            return 0
        size, before = self._ledger.page_size, sequence.computed
        last = (sequence.prefill_end - 1) // size
        found = self._ledger.adopt(sequence.id, sequence.num_kept, sequence.keys[sequence.num_kept : last])
        if found:
            sequence.num_kept += found
            sequence.computed = sequence.num_kept * size
        return sequence.computed - before

    def _count_adopted(self, sequence: Sequence, num_tokens: int) -> None:
        """What a preempted sequence adopts it has read itself, so that is no hit."""
        self.num_adopted += num_tokens
        if not sequence.was_preempted:
            self.num_hits += num_tokens
            sequence.num_cached += num_tokens

    def keep(self, sequence: Sequence) -> None:
        """Full pages of committed tokens that have KV may be adopted from now on."""
        size, num_sure = self._ledger.page_size, min(sequence.computed, len(sequence.tokens))
        if sequence.num_kept == num_sure // size:
            return
        sequence.keys = page_keys(sequence.keys, sequence.tokens, size)
        for index in range(sequence.num_kept, num_sure // size):
            self._ledger.keep(sequence.id, index, sequence.keys[index])
        sequence.num_kept = num_sure // size

    def schedule(self, decoding: list[Sequence], plan: Plan) -> Schedule:
        """plan: one length for each of the decoding sequences, which lose the ones that are preempted."""
        rooms = self._affordable(decoding, plan)
        num_preempted = self._reserve(decoding, rooms)
        rooms = rooms[: len(decoding)]
        for sequence in self.running:
            if not sequence.is_decoding:
                self._count_adopted(sequence, self._adopt(sequence))
        taken = tuple(chunks(self.running, self._config))
        lengths = tuple(map(min, plan.lengths, rooms))
        return Schedule(tuple(decoding), _cut(plan, lengths), taken, num_preempted, tuple(rooms))

    def _affordable(self, decoding: list[Sequence], plan: Plan) -> list[int]:
        """Room for the planned lengths, or none at all when the free pages do not hold every row."""
        rooms = [sequence.room(length) for sequence, length in zip(decoding, plan.lengths, strict=True)]
        needed = sum(self._ledger.missing(s.id, len(s.tokens) + room) for s, room in zip(decoding, rooms, strict=True))
        return rooms if needed <= self._ledger.num_free else [0] * len(decoding)

    def _reserve(self, decoding: list[Sequence], rooms: list[int]) -> int:
        """Pages for every row, by rank; preempts the last running sequence while they are short."""
        num_preempted = row = 0
        while row < len(decoding):
            if self._ledger.reserve(decoding[row].id, len(decoding[row].tokens) + rooms[row]):
                row += 1
                continue
            victim = self._preempt_last()
            num_preempted += 1
            if victim in decoding:
                decoding.remove(victim)
        return num_preempted

    def _preempt_last(self) -> Sequence:
        victim = self.running.pop()
        self._ledger.free(victim.id)
        victim.computed = victim.num_kept = 0
        victim.of_prompt.clear()
        victim.was_preempted = True
        self.add(victim)
        return victim


def rank(sequence: Sequence) -> tuple[int, int]:
    """Who keeps its pages longest: by priority, then by arrival."""
    return sequence.request.priority, sequence.id


def turn(sequence: Sequence) -> tuple[int, bool, int]:
    """Who is admitted next: by priority, then those whose answer has begun, here or elsewhere, then by arrival."""
    return sequence.request.priority, not sequence.num_generated, sequence.id


def _cut(plan: Plan, lengths: tuple[int, ...]) -> Plan:
    """What is left of the plan: its first rows, with these lengths."""
    if lengths == plan.lengths:
        return plan
    return replace(plan, depth=plan.depth if any(lengths) else None, lengths=lengths, own=plan.own[: len(lengths)])


def chunks(running: Iterable[Sequence], config: SchedulerConfig) -> list[tuple[Sequence, int]]:
    """Prompt tokens for this step: by rank, but for a share that goes to those
    with the least left to read, so that a short prompt does not wait for long ones.
    """
    reading = [(sequence, sequence.unread) for sequence in running if not sequence.is_decoding]
    sizes = dict.fromkeys([sequence.id for sequence, _ in reading], 0)
    shortest = sorted(reading, key=lambda one: one[1])
    budget = config.prefill_chunk
    for order, end in ((shortest, budget - int(budget * config.short_share)), (reading, 0)):
        for sequence, left in order:
            most = min(left, TOLD_CHUNK) if sequence.is_told else left
            size = min(most - sizes[sequence.id], budget - end)
            sizes[sequence.id] += size
            budget -= size
    return [(sequence, sizes[sequence.id]) for sequence, _ in reading if sizes[sequence.id]]
