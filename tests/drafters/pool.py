"""A worker under a clock that tests move, checked after every step, and targets that accept and reject at random."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from drafters.limits import PoolLimits
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.decoder import Decoder
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.request import SamplingParams
from protocol.stats import PassStats
from tests.fuzz.integers import IntegerDrafter
from tests.reference.drafting import draft_from_scratch

EXITS = (1, 2, 4)
VOCABULARY = 160
GREEDY = SamplingParams(temperature=0.0)
SHALLOW, DEEP = 1, 4


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Pool:
    def __init__(
        self, decoder: Decoder | None, limits: PoolLimits | None = None, num_pages: int = 64, page_size: int = 16
    ) -> None:
        """It is small when lengths may be cut for want of pages. decoder: None for a drafter without a model."""
        self.clock = Clock()
        self.is_small = num_pages * page_size < 1024
        large = IntegerDrafter(num_pages=2048, page_size=16, max_positions=8192)
        self.drafter = NestedDrafter(decoder, EXITS, num_pages, page_size) if decoder else large
        self.limits = limits or PoolLimits(ahead=1)
        self.worker = DraftWorker(self.drafter, self.limits, self.clock)
        self.replies: list[DraftReply] = []

    def submit(self, *rows: DraftRow, depth: int = DEEP, incarnation: str = "large", round_id: int = 0) -> None:
        self.worker.submit(DraftRequest(incarnation, round_id, depth, rows), self.replies.append)
        self.worker.check()

    def step(self) -> PassStats | None:
        stats = self.worker.step()
        self.worker.check()
        return stats

    def blocks(self, round_id: int = 0) -> dict[int, DraftBlock]:
        """What a round has been answered so far, by sequence."""
        replies = (reply for reply in self.replies if reply.round_id == round_id)
        return {block.sequence_id: block for reply in replies for block in reply.blocks}

    def run(self) -> list[PassStats]:
        """Steps until idle."""
        passes = []
        while (stats := self.step()) is not None:
            passes.append(stats)
        return passes

    def ask(self, row: DraftRow, depth: int = DEEP, incarnation: str = "large") -> DraftBlock:
        """The answer to one row, after all that there was to do."""
        replies: list[DraftReply] = []
        self.worker.submit(DraftRequest(incarnation, 0, depth, (row,)), replies.append)
        self.worker.check()
        self.run()
        return replies[0].blocks[0]


def text(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(160) for _ in range(length)]


def row(
    sequence_id: int,
    tokens: Sequence[int],
    length: int,
    start: int = 0,
    depth: int | None = None,
    stop_probability: float = 0.0,
) -> DraftRow:
    return DraftRow(sequence_id, start, tuple(tokens), length, GREEDY, depth, stop_probability)


def expected(decoder: Decoder, tokens: list[int], length: int, depth: int = DEEP) -> tuple[int, ...]:
    return tuple(token for token, _ in draft_from_scratch(decoder, tokens, length, depth, GREEDY))


class DrawnSequences:
    """Three sequences of one target, with texts and sampling at random."""

    def __init__(self, pool: Pool, decoder: Decoder, incarnation: str, rng: random.Random) -> None:
        self.pool, self.decoder, self.incarnation, self.rng = pool, decoder, incarnation, rng
        self.texts = {sequence_id: self.text(rng.randint(1, 30)) for sequence_id in range(3)}
        self.sampling = {
            sequence_id: SamplingParams(temperature=rng.choice([0.0, 0.8]), seed=rng.getrandbits(64))
            for sequence_id in self.texts
        }
        self.sent = dict.fromkeys(self.texts, 0)
        self.rounds = 0

    def text(self, length: int) -> list[int]:
        return [self.rng.randrange(VOCABULARY) for _ in range(length)]


class RandomTarget(DrawnSequences):
    """The truth is drawn near what was drafted; every answer is checked from scratch."""

    def __init__(self, pool: Pool, decoder: Decoder, incarnation: str, rng: random.Random) -> None:
        super().__init__(pool, decoder, incarnation, rng)
        self.waiting: DraftRequest | None = None
        self.replies: list[DraftReply] = []
        self.closed: set[int] = set()  # while its draft was under way
        self.num_accepted = self.num_rejected = self.num_full = self.num_sunk = 0
        self.num_refused: Counter[DraftStatus] = Counter()

    def ask(self, depth: int) -> None:
        self.rounds += 1
        chosen = [sequence_id for sequence_id in self.texts if self.rng.random() < 0.8]
        rows = tuple(self.row(sequence_id) for sequence_id in chosen)
        self.waiting = DraftRequest(self.incarnation, self.rounds, depth, rows)
        self.pool.worker.submit(self.waiting, self.replies.append)

    def row(self, sequence_id: int) -> DraftRow:
        start, text, rng = self.sent[sequence_id], self.texts[sequence_id], self.rng
        self.sent[sequence_id] = len(text)
        depth = rng.choice(EXITS) if rng.random() < 0.3 else None
        stop = 10 ** -rng.uniform(0, 2) if rng.random() < 0.3 else 0.0
        return DraftRow(
            sequence_id, start, tuple(text[start:]), rng.randint(0, 5), self.sampling[sequence_id], depth, stop
        )

    def take_reply(self) -> None:
        """Not from the callback: the worker would log a failed assertion and go on."""
        request = self.waiting
        blocks = [block for reply in self.replies for block in reply.blocks]
        if request is None or len(blocks) < len(request.rows):
            return
        assert {(one.incarnation, one.round_id) for one in self.replies} == {(self.incarnation, request.round_id)}
        self.waiting = None
        self.replies.clear()
        by_name = {block.sequence_id: block for block in blocks}
        assert len(by_name) == len(blocks)
        for asked in request.rows:
            self.verify(asked, by_name[asked.sequence_id], request.depth)
        self.closed.clear()

    def close(self, sequence_id: int) -> None:
        if self.waiting is not None:
            self.closed.add(sequence_id)
        self.pool.worker.close(self.incarnation, [sequence_id])

    def verify(self, asked: DraftRow, block: DraftBlock, depth: int) -> None:
        text = self.texts[asked.sequence_id]
        assert block.base_length == len(text)
        if block.status is not DraftStatus.OK:
            self.num_refused[block.status] += 1
            self.sent[asked.sequence_id] = 0
            return
        depth = asked.depth or depth
        expected = draft_from_scratch(self.decoder, text, asked.length, depth, asked.sampling, asked.stop_probability)
        if asked.sequence_id in self.closed or self.pool.is_small:
            expected = expected[: len(block.tokens)]
        assert block.tokens == tuple(token for token, _ in expected)
        self.num_full += len(block.tokens) == asked.length
        self.num_sunk += 0 < len(block.tokens) < asked.length
        accepted = self.rng.randint(0, len(block.tokens))
        self.num_accepted += accepted
        self.num_rejected += len(block.tokens) - accepted
        text += [*block.tokens[:accepted], *self.text(self.rng.choice([1, 1, 1, 3]))]  # it may decode on without us
