"""Rows that would be late are answered in time, and hold up nobody. The clock is the tests' own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from drafters.limits import PoolLimits
from drafters.picks import PassRow, Pick
from model.decoder import Decoder
from protocol.draft import DraftReply, DraftRequest, DraftRow, DraftStatus
from tests.drafters.pool import DEEP, EXITS, Pool, expected, row, text
from tests.reference.drafting import draft_from_scratch


class TimedPool(Pool):
    """A pass takes pass_ms, and position_ms for each position that it runs."""

    def __init__(
        self,
        decoder: Decoder | None,
        limits: PoolLimits | None = None,
        pass_ms: float = 1.0,
        position_ms: float = 0.0,
    ) -> None:
        super().__init__(decoder, limits)
        run: Callable[[Sequence[PassRow]], list[list[Pick]]] = self.drafter.run

        def timed(rows: Sequence[PassRow]) -> list[list[Pick]]:
            picks = run(rows)
            self.clock.now += 1e-3 * (
                pass_ms * max([1, *map(len, picks)]) + position_ms * sum(len(own.tokens) for own in rows)
            )
            return picks

        self.drafter.run = timed  # type: ignore[method-assign]

    def within(self, deadline_ms: float, *rows: DraftRow, round_id: int = 0) -> None:
        self.worker.submit(DraftRequest("large", round_id, DEEP, rows, deadline_ms), self.replies.append)
        self.worker.check()


def test_a_row_whose_context_is_yet_to_be_read_is_answered_at_once_and_drafted_for_when_it_is_read(
    llama: Decoder,
) -> None:
    pool, tokens = TimedPool(llama, PoolLimits(prefill_tokens=64)), text(200)
    pool.within(50.0, row(1, tokens, 3), row(2, text(5), 3))
    assert {name: block.status for name, block in pool.blocks().items()} == {1: DraftStatus.NOT_YET}
    pool.run()
    pool.within(50.0, row(1, [5], 3, start=200), round_id=2)
    pool.run()
    assert pool.blocks(2)[1].tokens == expected(llama, [*tokens, 5], 3)


def test_without_a_deadline_a_row_waits_for_its_context(llama: Decoder) -> None:
    pool, tokens = TimedPool(llama, PoolLimits(prefill_tokens=64)), text(200)
    assert pool.ask(row(1, tokens, 3)).tokens == expected(llama, tokens, 3)


def test_at_its_deadline_a_row_has_the_tokens_that_it_has(llama: Decoder) -> None:
    pool, tokens = TimedPool(llama, PoolLimits(ahead=1)), text(9)
    pool.within(4.5, row(1, tokens, 20))
    pool.run()
    (reply,) = pool.replies
    assert reply.blocks[0].tokens == expected(llama, tokens, 4)
    assert pool.clock.now <= 100.0045
    assert pool.worker.stats().num_drafted == 4, "what is late is not drafted for"
    assert pool.ask(row(1, [], 6, start=9)).tokens == expected(llama, tokens, 6)


def test_a_row_that_comes_to_nothing_by_its_deadline_is_not_forgotten(
    llama: Decoder,
) -> None:
    pool = TimedPool(llama)
    pool.within(5.0, row(1, text(9), 4))
    pool.clock.now += 0.005
    assert pool.run() == [] or pool.worker.stats().num_drafted == 0
    assert pool.blocks()[1].status is DraftStatus.NOT_YET
    pool.within(50.0, row(1, [], 4, start=9), round_id=2)
    pool.run()
    assert pool.blocks(2)[1].tokens == expected(llama, text(9), 4)


def test_a_row_with_a_near_deadline_is_answered_in_time_whatever_others_want(llama: Decoder) -> None:
    pool = TimedPool(llama, PoolLimits(ahead=8))
    pool.ask(row(9, text(4), 8))
    for _ in range(30):  # until it knows how long a token takes
        pool.ask(row(9, [], 8, start=4))
    began = pool.clock.now
    pool.submit(row(2, text(5), 8))
    pool.within(2.5, row(1, text(9), 2), round_id=5)
    pool.step()
    assert len(pool.blocks(5)[1].tokens) == 2
    assert pool.clock.now - began == pytest.approx(0.002)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_deadlines_what_comes_is_a_part_of_what_a_fresh_drafter_says(llama: Decoder, seed: int) -> None:
    rng = random.Random(seed)
    pool = TimedPool(llama, PoolLimits(prefill_tokens=16, max_ride=4, ahead=rng.choice([1, 3])), position_ms=0.05)
    texts = {name: text(rng.randint(1, 60), seed + name) for name in range(4)}
    sent, statuses = dict.fromkeys(texts, 0), set[DraftStatus]()
    for round_id in range(40):
        depth = rng.choice(EXITS)
        rows = [
            row(name, own[sent[name] :], rng.randint(1, 6), sent[name])
            for name, own in texts.items()
            if rng.random() < 0.8
        ]
        request = DraftRequest("large", round_id, depth, tuple(rows), rng.uniform(0.1, 12.0))
        sent |= {one.sequence_id: one.base_length for one in rows}
        replies: list[DraftReply] = []
        pool.worker.submit(request, replies.append)
        for _ in range(rng.randint(1, 6)):
            pool.step()
        pool.clock.now += 0.012
        pool.step()
        blocks = {block.sequence_id: block for reply in replies for block in reply.blocks}
        assert len(blocks) == len(rows), "a row was answered late, or not at all"
        for one in rows:
            block, own = blocks[one.sequence_id], texts[one.sequence_id]
            fresh = draft_from_scratch(llama, own, one.length, depth, one.sampling)
            assert block.tokens == tuple(token for token, _ in fresh[: len(block.tokens)])
            assert block.status is not DraftStatus.OK or block.tokens
            statuses.add(block.status)
            own += [*block.tokens[: rng.randint(0, len(block.tokens))], rng.randrange(160)]
            if len(own) > 150:
                pool.worker.close("large", [one.sequence_id])
                texts[one.sequence_id], sent[one.sequence_id] = text(9, seed), 0
    assert statuses == {DraftStatus.OK, DraftStatus.NOT_YET}


class Integers(TimedPool):
    """Over a drafter without a model, with room for long contexts. A pass takes 1 ms and 0.02 ms for each position, as
    on a GPU or on many cores; a target verifies for 30 ms.
    """

    def __init__(self, pass_ms: float = 1.0, position_ms: float = 0.02) -> None:
        super().__init__(None, PoolLimits(), pass_ms, position_ms)

    def rounds(self, num_rounds: int, *, is_slow: bool) -> float:
        """Tokens per second that seven rows get; the eighth is like them, or in prefill all the time."""
        began, drafted, texts = self.clock.now, 0, {name: [name] for name in range(8)}
        sent = dict.fromkeys(texts, 0)
        for number in range(num_rounds):
            if is_slow and number % 6 == 0:
                self.worker.close("large", [7])
                texts[7], sent[7] = [number % 90] * 4000, 0
            rows = [row(name, own[sent[name] :], 4, sent[name]) for name, own in texts.items()]
            sent = {name: len(own) for name, own in texts.items()}
            self.replies.clear()
            self.within(40.0, *rows, round_id=number)
            while len(self.blocks(number)) < len(rows):
                assert self.worker.step() is not None
            for name, block in self.blocks(number).items():
                drafted += len(block.tokens) * (name != 7)
                texts[name] = [*texts[name], *block.tokens, 5]
            self.verify(self.clock.now + 0.030)
        return drafted / (self.clock.now - began)

    def verify(self, until: float) -> None:
        """The pool goes on meanwhile, and does not stop in mid-pass."""
        while self.clock.now < until and self.worker.step() is not None:
            pass
        self.clock.now = max(self.clock.now, until)


def test_one_row_in_prefill_costs_the_other_seven_less_than_a_twentieth() -> None:
    fast, slow = (Integers().rounds(60, is_slow=is_slow) for is_slow in (False, True))
    assert fast > 700
    assert slow > 0.95 * fast


def test_two_targets_draft_side_by_side_and_many_long_sequences_take_no_more_than_their_share() -> None:
    """The one alone with half of the pool, which is as fast as a pool whose passes take twice as long."""
    alone = served(Integers(2.0, 0.04), num_others=0)
    beside = served(Integers(), num_others=60)
    assert beside > 0.9 * alone


def test_beside_many_long_contexts_of_another_target_a_context_is_read_at_half_the_pace() -> None:
    alone, beside = (read_after_s(Integers(), num_others) for num_others in (0, 12))
    assert beside < 2.2 * alone


def read_after_s(pool: Integers, num_others: int) -> float:
    """Seconds until a target, which asks after each pass, is no longer told that a context of it is still to be read.
    The contexts of the other target came before.
    """
    pool.worker.submit(context({name: [name] * 2000 for name in range(num_others)}), ignore)
    pool.within(40.0, row(1, [95] * 600, 4))
    began = pool.clock.now
    for number in range(1, 1000):
        pool.step()
        pool.within(40.0, row(1, [], 4, start=600), round_id=number)
        if not pool.blocks(number):
            break
    return pool.clock.now - began


def served(pool: Integers, num_others: int) -> float:
    """Rounds per second of a target with four sequences, beside another that asks for all of its own all the time."""
    texts, others = {name: [name] for name in range(4)}, {name: [name % 90] * 300 for name in range(num_others)}
    pool.worker.submit(context(others), ignore)
    while pool.worker.step() is not None:
        pass
    sent, began, pending = dict.fromkeys(texts, 0), pool.clock.now, [0]
    for number in range(40):
        if num_others and not pending[0]:
            pending[0] = num_others
            rows = tuple(row(name, [], 4, len(own)) for name, own in others.items())
            pool.worker.submit(DraftRequest("small", number, DEEP, rows, 40.0), lambda reply: counted(pending, reply))
        rows = tuple(row(name, own[sent[name] :], 4, sent[name]) for name, own in texts.items())
        sent = {name: len(own) for name, own in texts.items()}
        pool.replies.clear()
        pool.within(40.0, *rows, round_id=number)
        while len(pool.blocks(number)) < len(rows):
            assert pool.worker.step() is not None
        texts = {name: [*own, *pool.blocks(number)[name].tokens, 5] for name, own in texts.items()}
    return 40 / (pool.clock.now - began)


def context(texts: dict[int, list[int]]) -> DraftRequest:
    return DraftRequest("small", 0, DEEP, tuple(row(name, own, 0) for name, own in texts.items()))


def counted(pending: list[int], reply: DraftReply) -> None:
    pending[0] -= len(reply.blocks)


def ignore(reply: DraftReply) -> None:
    """Context was handed over; nobody waits for the answer."""
