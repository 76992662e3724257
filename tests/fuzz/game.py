"""An honest target among hostile ones, and what must hold whatever these send."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from drafters.limits import PoolLimits
from drafters.picks import PassRow, Pick
from drafters.row import Row
from drafters.worker import DraftWorker
from link.pool_thread import act
from link.share import Share, merged
from protocol.branch import BranchReply
from protocol.draft import DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.limits import MessageLimits, limits_of
from protocol.request import SamplingParams
from protocol.wire import decode_pool, decode_target
from targets.pipeline import Order, Pipeline
from tests.fuzz.integers import IntegerDrafter, drafted_behind

DEPTH = 2
NUM_ROWS = 32


def limits() -> MessageLimits:
    return limits_of(NUM_ROWS, 128)


class Victim:
    """Its texts grow by what was drafted and by tokens of its own; each draft is compared with one from scratch."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._texts = {name: [5, 6, 7, name] for name in range(3)}
        self._sent = dict.fromkeys(self._texts, 0)
        self._round = 0
        self.num_right = 0

    def ask(self) -> DraftRequest:
        self._round += 1
        rows = tuple(self._row(name) for name in self._texts)
        return DraftRequest("victim", self._round, DEPTH, rows)

    def _row(self, name: int) -> DraftRow:
        start, self._sent[name] = self._sent[name], len(self._texts[name])
        return DraftRow(name, start, tuple(self._texts[name][start:]), 4, SamplingParams(seed=name))

    def take(self, reply: DraftReply | None) -> None:
        assert reply is not None, "no answer"
        assert [block.sequence_id for block in reply.blocks] == list(self._texts), "rows without an answer"
        for block in reply.blocks:
            name, text = block.sequence_id, self._texts[block.sequence_id]
            assert block.status is DraftStatus.OK, f"a sequence is not known any more: {block.status}"
            assert block.tokens == drafted_behind(text, 4, DEPTH, name), "somebody else wrote into a sequence"
            self.num_right += 1
            text += [*block.tokens[: self._rng.randint(0, 4)], self._rng.randrange(90)]
            if len(text) > 100:
                self._texts[name], self._sent[name] = [5, 6, 7, name], 0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Unguarded(DraftWorker):
    """What goes wrong in a pass is to be seen."""

    def _run(self, rows: Sequence[Row], parts: Sequence[PassRow]) -> list[list[Pick]]:
        return self._drafter.run(parts)

    def _advance(self, row: Row, picks: Sequence[Pick]) -> None:
        if row in self._rows:
            self._take_picks(row, picks)


class Bench:
    """Decoders and a worker in this thread: the fastest way to most states."""

    def __init__(self, seed: int, num_pages: int = 64) -> None:
        self.clock = Clock()
        self.worker = Unguarded(IntegerDrafter(num_pages), PoolLimits(max_rows=NUM_ROWS), self.clock)
        self.victim = Victim(seed)
        self.num_taken = self.num_refused = 0
        self._limits = limits()
        self._rng = random.Random(seed)

    def to_pool(self, data: bytes) -> None:
        """As the pool's end of a link does: what is refused ends the link, and with it its sequences."""
        owner = f"hostile#{self._rng.randrange(3)}"
        self.clock.now += 1e-4
        try:
            message: Any = decode_target(data, owner, self._limits)
        except ValueError:
            self.num_refused += 1
            if self._rng.random() < 0.05:
                self.worker.drop(owner)
            return
        self.num_taken += 1
        act(self.worker, message, _ignore)
        self.worker.expire(self.clock.now)
        if self._rng.random() < 0.5:
            self.worker.step()

    def to_target(self, data: bytes) -> None:
        """As the target's end does: into the round that waits, and the proposals at hand."""
        try:
            message = decode_pool(data, "target")
            self._take(message)
            self.num_taken += 1
        except ValueError:
            self.num_refused += 1

    def _take(self, message: DraftReply | BranchReply) -> None:
        if isinstance(message, DraftReply):
            link: Any = SimpleNamespace(open=True, member=SimpleNamespace(max_positions=128))
            rows = tuple(DraftRow(name, 0, (1, 2, 3, 4), 4, SamplingParams()) for name in range(3))
            share = Share(DraftRequest("target", 1, DEPTH, rows), link, 1.0)
            share.add(message, 0.0)
            merged(share.asked, [share])
            return
        pipeline = Pipeline()
        for name in range(3):
            pipeline.resolve(name, (1, 2, 3, 4))
            pipeline.begin(name, 4, Order(DEPTH, 4, 1))
        pipeline.take(message.branches)

    def round(self) -> None:
        """One of the victim's."""
        replies: list[DraftReply] = []
        asked = self.victim.ask()
        self.worker.submit(asked, replies.append)
        while sum(len(reply.blocks) for reply in replies) < len(asked.rows) and self.worker.step() is not None:
            pass
        blocks = {block.sequence_id: block for reply in replies for block in reply.blocks}
        self.victim.take(DraftReply("victim", 1, tuple(blocks[row.sequence_id] for row in asked.rows)))
        self.worker.check()


def _ignore(reply: object) -> None:
    """Who asked is hostile, and does not read."""
