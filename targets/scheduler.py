"""Which sequences take part in a step, and with how many tokens. Decides over integers; tensors never come here.

One step holds a verify row for every decoding sequence and, within a token budget, chunks of prompts. Decoding goes
first: its pages are reserved before a round, lengths fall to 0 when pages run short, and only then is the youngest
sequence preempted, to be computed again at the same positions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from model.pages import PageLedger
from protocol.plan import Plan
from targets.prefixes import page_keys
from targets.sequence import Sequence

SHORT_SHARE = 0.25  # of the prompt tokens in a step, for the prompts with the least left


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """prefill_chunk: prompt tokens in one step, over all sequences."""

    max_batch: int = 16
    prefill_chunk: int = 512


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
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission, oldest first
        self.num_adopted = 0  # prompt tokens whose KV was there already

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.is_decoding]

    def add(self, sequence: Sequence) -> None:
        """One whose answer has begun elsewhere goes before those that have none yet."""
        if sequence.num_generated:
            self.waiting.appendleft(sequence)
        else:
            self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Finished or cancelled: give its pages back. Nothing happens to one that is gone already."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._ledger.free(sequence.id)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Waiting sequences, in order, while there is room in the batch and a page for each running one besides."""
        admitted = []
        while self.waiting and len(self.running) < self._config.max_batch:
            sequence = self.waiting[0]
            self._ledger.open(sequence.id)
            self._adopt(sequence)
            needed = self._ledger.missing(sequence.id, len(sequence.tokens))
            if needed + len(self.running) > self._ledger.num_free:
                self._ledger.free(sequence.id)
                sequence.computed = sequence.num_kept = 0
                break
            self._ledger.reserve(sequence.id, len(sequence.tokens))
            self.num_adopted += sequence.computed
            self.running.append(self.waiting.popleft())
            admitted.append(sequence)
        return admitted

    def _adopt(self, sequence: Sequence) -> None:
        """Begins behind the longest beginning whose KV is kept. One token is left to run, which gives the next."""
        size = self._ledger.page_size
        sequence.keys = page_keys(sequence.keys, sequence.tokens, size)
        sequence.computed = self._ledger.adopt(sequence.id, sequence.keys[: (sequence.prefill_end - 1) // size])
        sequence.num_kept = sequence.computed // size

    def _skip(self, sequence: Sequence) -> None:
        """Goes on behind what another has run of the same prompt since this one was admitted."""
        size, last = self._ledger.page_size, (sequence.prefill_end - 1) // self._ledger.page_size
        while sequence.num_kept < last:
            if not self._ledger.swap(sequence.id, sequence.num_kept, sequence.keys[sequence.num_kept]):
                break
            sequence.num_kept += 1
            self.num_adopted += sequence.num_kept * size - sequence.computed
            sequence.computed = sequence.num_kept * size

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
                self._skip(sequence)
        taken = tuple(chunks(self.running, self._config.prefill_chunk))
        lengths = tuple(map(min, plan.lengths, rooms))
        return Schedule(tuple(decoding), _cut(plan, lengths), taken, num_preempted, tuple(rooms))

    def _affordable(self, decoding: list[Sequence], plan: Plan) -> list[int]:
        """Room for the planned lengths, or none at all when the free pages do not hold every row."""
        rooms = [sequence.room(length) for sequence, length in zip(decoding, plan.lengths, strict=True)]
        needed = sum(self._ledger.missing(s.id, len(s.tokens) + room) for s, room in zip(decoding, rooms, strict=True))
        return rooms if needed <= self._ledger.num_free else [0] * len(decoding)

    def _reserve(self, decoding: list[Sequence], rooms: list[int]) -> int:
        """Pages for every row, oldest first; preempts the youngest running sequence while they are short."""
        num_preempted = row = 0
        while row < len(decoding):
            if self._ledger.reserve(decoding[row].id, len(decoding[row].tokens) + rooms[row]):
                row += 1
                continue
            victim = self._preempt_youngest()
            num_preempted += 1
            if victim in decoding:
                decoding.remove(victim)
        return num_preempted

    def _preempt_youngest(self) -> Sequence:
        victim = self.running.pop()
        self._ledger.free(victim.id)
        victim.computed = victim.num_kept = 0
        self.waiting.appendleft(victim)
        return victim


def _cut(plan: Plan, lengths: tuple[int, ...]) -> Plan:
    """What is left of the plan: its first rows, with these lengths."""
    if lengths == plan.lengths:
        return plan
    return replace(plan, depth=plan.depth if any(lengths) else None, lengths=lengths, own=plan.own[: len(lengths)])


def chunks(running: Iterable[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """Prompt tokens for this step, together at most `budget`: oldest sequence first, but for a share that goes to those
    with the least left to read, so that a short prompt does not wait for long ones.
    """
    reading = [(sequence, sequence.prefill_end - sequence.computed) for sequence in running if not sequence.is_decoding]
    sizes = dict.fromkeys([sequence.id for sequence, _ in reading], 0)
    shortest = sorted(reading, key=lambda one: one[1])
    for order, end in ((shortest, budget - int(budget * SHORT_SHARE)), (reading, 0)):
        for sequence, left in order:
            size = min(left - sizes[sequence.id], budget - end)
            sizes[sequence.id] += size
            budget -= size
    return [(sequence, sizes[sequence.id]) for sequence, _ in reading if sizes[sequence.id]]
