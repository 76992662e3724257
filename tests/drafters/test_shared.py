"""Contexts that begin alike are read once, and every draft is the one of a drafter that reads its own alone."""

from __future__ import annotations

import random

import pytest

from drafters.depth import Watermarks
from drafters.limits import PoolLimits
from drafters.shared import SharedPages
from model.decoder import Decoder
from model.pages import PageLedger
from protocol.draft import DraftStatus
from simulation.decoder import TableDecoder
from simulation.text import Drawn, Rates, World
from tests.drafters.ahead import AheadTarget
from tests.drafters.pool import DEEP, EXITS, SHALLOW, Pool, RandomTarget, expected, row, text
from tests.sizes import quick

DRAWN = Drawn(EXITS, (Rates(((0.2, 0.6, 0.9), (0.5, 0.8, 0.95), (0.7, 0.9, 1.0))),))


def table() -> Decoder:
    """One whose text shows what was read: KV or a boundary state that is missing, stale or foreign gives another."""
    return TableDecoder(World(160, [DRAWN]), EXITS, 256, lambda *_: None)  # type: ignore[return-value]


def alike(rng: random.Random) -> list[int]:
    """The beginning of one of two texts, and perhaps something else."""
    beginning = text(40, rng.randrange(2))[: rng.randint(1, 40)]
    return beginning + [rng.randrange(160) for _ in range(rng.choice([0, 0, 1, 5]))]


def limits(rng: random.Random) -> PoolLimits:
    return PoolLimits(
        prefill_tokens=rng.choice([3, 8, 64]),
        max_ride=rng.choice([2, 8, 32]),
        ahead=rng.choice([1, 3, 8]),
        branch_ahead=rng.choice([1, 4]),
        beside_tokens=rng.choice([4, 32]),
        idle_s=0.0,
    )


def drafting(decoder: Decoder, seed: int) -> Pool:
    """Two targets of sequences that begin alike, end and begin anew; random depths, exits, accepts and rejects."""
    rng = random.Random(seed)
    pool = Pool(decoder, limits(rng), num_pages=rng.choice([80, 600]), page_size=rng.choice([1, 2, 4]))
    targets = [RandomTarget(pool, decoder, name, rng) for name in ("large", "small")]
    for _ in range(150):
        for target in targets:
            target.take_reply()
            if target.waiting is not None:
                continue
            sequence_id = rng.randrange(3)
            if rng.random() < 0.3:
                target.close(sequence_id)
                target.texts[sequence_id], target.sent[sequence_id] = alike(rng), 0
            elif rng.random() < 0.02:  # another text in the place of what was committed
                target.texts[sequence_id], target.sent[sequence_id] = alike(rng), 0
            if rng.random() < 0.5:
                target.ask(rng.choice(EXITS))
        pool.step()
        pool.worker.check()
    pool.run()
    for target in targets:
        target.take_reply()
        assert target.waiting is None
        pool.worker.drop(target.incarnation)
    return pool


@pytest.mark.parametrize("seed", quick(range(60), 15))
def test_drafts_are_those_of_a_drafter_that_reads_every_context_itself(seed: int) -> None:
    stats = drafting(table(), seed).worker.stats()
    assert stats.num_adopted > 20
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


@pytest.mark.parametrize("seed", quick(range(6), 1))
def test_drafts_of_a_model_are_the_same_bit_for_bit(llama: Decoder, seed: int) -> None:
    assert drafting(llama, seed).worker.stats().num_adopted > 20


class AlikeAhead(AheadTarget):
    def start_over(self, sequence_id: int) -> None:
        self.close(sequence_id)
        self.texts[sequence_id], self.windows[sequence_id] = alike(self.rng), ()


@pytest.mark.parametrize("seed", quick(range(60), 15))
def test_branches_are_those_of_a_drafter_that_reads_every_context_itself(seed: int) -> None:
    rng, decoder = random.Random(seed), table()
    pool = Pool(decoder, limits(rng), num_pages=rng.choice([60, 600]), page_size=rng.choice([1, 2, 4]))
    targets = [AlikeAhead(pool, decoder, name, rng) for name in ("large", "small")]
    for target in targets:
        for sequence_id in target.texts:
            target.start_over(sequence_id)
    for _ in range(150):
        for target in targets:
            target.turn(rng.choice(EXITS))
            target.take()
            if target.flight is None and rng.random() < 0.1:
                target.start_over(rng.randrange(3))
        pool.step()
        pool.worker.check()
    assert pool.worker.stats().num_adopted > 20
    assert all(target.num_whole > 0 for target in targets)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_shared_beginning_is_read_once_by_all_targets_one_after_another_or_all_at_once(at_once: bool) -> None:
    decoder = table()
    pool, shared = Pool(decoder, PoolLimits(ahead=8), num_pages=400), text(192)
    prompts = {number: [*shared, number, 5, 6] for number in range(8)}
    for number, tokens in prompts.items():
        pool.submit(row(number, tokens, 3), incarnation=("large", "small")[number % 2])
        if not at_once:
            pool.run()
    pool.run()
    stats = pool.worker.stats()
    assert (stats.num_read, stats.num_adopted) == (192 + 8 * 3, 7 * 192)
    assert {number: pool.blocks()[number].tokens for number in prompts} == {
        number: expected(decoder, tokens, 3) for number, tokens in prompts.items()
    }


def test_the_turns_of_a_chat_go_on_from_those_before() -> None:
    """Eight turns, each a sequence of its own; without sharing each reads all of the chat again."""
    decoder, chat, num_read = table(), text(40), []
    pool = Pool(decoder, PoolLimits(ahead=8), num_pages=400)
    for turn in range(8):
        before = pool.worker.stats().num_read
        start, base = 0, len(chat)
        for _ in range(4):  # rounds, of which each commits three drafts and a token
            block = pool.ask(row(turn, chat[start:], 3, start))
            assert block.tokens == expected(decoder, chat, 3)
            start, chat = len(chat), [*chat, *block.tokens, 9]
        pool.worker.close("large", [turn])
        chat = [*chat, *text(5, turn)]
        num_read.append(pool.worker.stats().num_read - before)
        assert base + 4 * 4 + 5 == len(chat)
    alone = [40 + 21 * turn + 3 * 2 for turn in range(8)]
    assert num_read[0] == alone[0]
    assert all(read <= 5 + 2 + 6 + 16 for read in num_read[1:]), "what is new, and a page that was not full"
    assert (sum(num_read), sum(alone)) == (204, 956)


def test_a_context_that_others_read_is_drafted_on_at_once_though_its_deadline_is_near() -> None:
    decoder, tokens = table(), text(100)
    pool = Pool(decoder, PoolLimits(ahead=8, max_ride=8))
    pool.ask(row(1, tokens, 2))
    pool.worker.close("large", [1])
    assert pool.ask(row(1, tokens, 2), incarnation="small").tokens == expected(decoder, tokens, 2)
    assert pool.worker.stats().num_read == 100 + 4


def test_what_was_read_for_a_shallow_exit_is_taken_deeper_where_it_is_and_no_further_than_it_must_be() -> None:
    decoder, tokens = table(), text(64)
    pool = Pool(decoder)
    pool.ask(row(1, [*tokens, 1], 1), depth=SHALLOW)
    assert pool.ask(row(2, [*tokens, 2], 2), depth=DEEP).tokens == expected(decoder, [*tokens, 2], 2)
    assert pool.worker.stats().num_read == 65 + 1
    assert pool.ask(row(3, [*tokens, 3], 2), depth=DEEP).tokens == expected(decoder, [*tokens, 3], 2)
    marks = pool.drafter._shared._read.values()
    assert {len(set(own.marks)) for own in marks} == {1}, "all pages are known to be read to the end"


def test_a_target_that_takes_back_what_it_committed_spoils_nobody_elses_drafts() -> None:
    decoder, tokens = table(), text(40)
    pool = Pool(decoder)
    pool.ask(row(1, tokens, 2))
    pool.ask(row(2, [*tokens, 3], 2))
    assert pool.ask(row(1, [*tokens[:20], 150, 151, *tokens[22:]], 2)).status is DraftStatus.OK
    assert pool.ask(row(2, [4], 2, start=41)).tokens == expected(decoder, [*tokens, 3, 4], 2)
    assert pool.ask(row(3, [*tokens, 9], 2)).tokens == expected(decoder, [*tokens, 9], 2)


def test_pages_that_nobody_holds_go_when_others_need_them_and_the_rest_is_read_again() -> None:
    decoder, tokens = table(), text(12, 1)
    pool = Pool(decoder, num_pages=4, page_size=4)
    pool.ask(row(1, tokens, 1))
    pool.worker.close("large", [1])
    pool.ask(row(2, text(10, 2), 1))
    pool.worker.close("large", [2])
    assert pool.ask(row(3, tokens, 1)).tokens == expected(decoder, tokens, 1)
    stats = pool.worker.stats()
    assert (stats.num_adopted, stats.num_read, stats.num_evicted) == (4, 12 + 10 + 8, 0)


def test_a_victim_that_shares_its_pages_is_evicted_only_where_that_gives_enough() -> None:
    decoder, tokens = table(), text(9)
    pool = Pool(decoder, PoolLimits(idle_s=0.0), num_pages=4, page_size=4)
    for number in (1, 2):
        pool.ask(row(number, tokens, 1))
    assert pool.drafter.ledger.num_free == 0
    assert pool.ask(row(3, text(20, 3), 1)).status is DraftStatus.BUSY
    assert pool.worker.stats().num_sequences == 2
    assert pool.ask(row(4, text(7, 4), 1)).tokens == expected(decoder, text(7, 4), 1)
    assert pool.worker.stats().num_evicted == 2


class Sequences:
    """Of a ledger with pages of 8."""

    def __init__(self) -> None:
        self.ledger, self.shared, self.keys = PageLedger(16, 8), SharedPages(), [b"a", b"ab", b"abc"]

    def read(self, sequence: int, *marks: int) -> None:
        self.ledger.open(sequence)
        self.ledger.reserve(sequence, 24)
        self.shared.keep(self.ledger, sequence, Watermarks(marks), self.keys)

    def adopted(self, sequence: int, *marks: int) -> tuple[int, ...]:
        self.ledger.open(sequence)
        self.ledger.reserve(sequence, 24)
        return self.shared.adopt(self.ledger, sequence, Watermarks(marks), self.keys, marks[-2]).marks


def test_who_adopts_goes_on_where_each_segment_was_left() -> None:
    one = Sequences()
    one.read(1, 23, 12, 5)
    assert one.adopted(2, 0, 0, 0) == (16, 12, 5), "the third page is not full"


def test_of_two_readers_of_a_page_the_one_that_came_further_in_a_segment_counts() -> None:
    one = Sequences()
    one.read(1, 16, 12, 5)
    assert one.adopted(2, 0, 0, 0) == (16, 12, 5)
    one.shared.keep(one.ledger, 2, Watermarks((16, 12, 9)), one.keys)
    one.shared.keep(one.ledger, 1, Watermarks((16, 16, 5)), one.keys)
    assert one.adopted(3, 0, 0, 0) == (16, 16, 9)


def test_a_deep_page_behind_a_shallow_one_is_left_where_it_is() -> None:
    one = Sequences()
    one.read(1, 8, 3, 0)
    one.read(2, 16, 16, 0)
    assert one.adopted(3, 0, 0, 0) == (8, 3, 0), "its states flowed on, so what is missing before it cannot follow"


def test_a_page_of_ones_own_that_was_read_further_stays() -> None:
    one = Sequences()
    one.read(1, 16, 8, 0)
    assert one.adopted(2, 12, 12, 0) == (12, 12, 0)
    assert one.adopted(3, 12, 8, 0) == (16, 8, 0)
