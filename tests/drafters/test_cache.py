"""Who lives in the pool, who is told that it is full, and who has to go."""

from __future__ import annotations

from collections import Counter

import pytest

from drafters.limits import PoolLimits
from model.decoder import Decoder
from protocol.draft import DraftStatus
from tests.drafters.pool import Pool, expected, row, text


def test_a_closed_sequence_frees_its_pages_and_the_rest_of_its_request_is_answered(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(1, text(40), 3), row(2, text(5), 2))
    pool.step()
    pool.worker.close("large", [1, 77])
    pool.run()
    assert [len(block.tokens) for block in pool.blocks().values()] == [1, 2]
    pool.worker.close("large", [2])
    stats = pool.worker.stats()
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)
    pool.worker.check()


def test_dropping_a_target_forgets_its_sequences_and_no_others(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.submit(row(1, text(4), 3), incarnation="large")
    pool.submit(row(1, text(4), 3), incarnation="small")
    pool.worker.drop("large")
    pool.worker.check()
    pool.run()
    assert [reply.incarnation for reply in pool.replies] == ["small"]
    assert pool.worker.stats().num_sequences == 1


def test_a_new_sequence_beyond_the_pages_is_told_that_the_pool_is_busy(llama: Decoder) -> None:
    pool = Pool(llama, num_pages=4, page_size=4)
    pool.submit(row(1, text(12), 3))
    assert pool.ask(row(2, text(12), 3)).status is DraftStatus.BUSY
    assert pool.replies[0].blocks[0].tokens == expected(llama, text(12), 3)
    assert pool.worker.stats().num_busy == 1
    assert pool.worker.stats().num_sequences == 1


def test_a_new_sequence_beyond_the_rows_is_told_that_the_pool_is_busy(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(max_rows=1))
    pool.submit(row(1, text(4), 3))
    assert pool.ask(row(1, text(4), 3), incarnation="small").status is DraftStatus.BUSY


def test_one_target_may_be_kept_from_taking_all_rows(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(max_rows=4, rows_of_one=2))
    statuses = [pool.ask(row(number, text(4), 1)).status for number in range(3)]
    assert statuses == [DraftStatus.OK, DraftStatus.OK, DraftStatus.BUSY]
    assert pool.ask(row(1, text(4), 1), incarnation="small").status is DraftStatus.OK
    pool.worker.close("large", [0])
    assert pool.ask(row(2, text(4), 1)).status is DraftStatus.OK


def asked(pool: Pool, incarnation: str, number: int, length: int = 4) -> DraftStatus:
    return pool.ask(row(number, text(length, number), 1), incarnation=incarnation).status


@pytest.mark.parametrize("of", ["rows", "pages"])
def test_a_target_that_fills_the_pool_gives_way_to_another_until_both_have_half(llama: Decoder, of: str) -> None:
    limits = PoolLimits(max_rows=8 if of == "rows" else 64)
    pool = Pool(llama, limits, num_pages=512 if of == "rows" else 8, page_size=4)
    assert {asked(pool, "large", number) for number in range(8)} == {DraftStatus.OK}
    assert asked(pool, "large", 8) is DraftStatus.BUSY, "none of its own is idle"
    statuses = [asked(pool, "small", number) for number in range(6)]
    assert statuses == [DraftStatus.OK] * 4 + [DraftStatus.BUSY] * 2
    assert asked(pool, "large", 9) is DraftStatus.BUSY, "it takes nothing back"
    owned = Counter(key[0] for key in pool.worker._cache._cached)
    assert owned == {"large": 4, "small": 4}


def test_a_sequence_that_its_target_waits_for_is_not_given_up_to_another(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(max_rows=2))
    pool.submit(row(1, text(4, 1), 4), row(2, text(4, 2), 4))
    assert asked(pool, "small", 1) is DraftStatus.BUSY
    assert [len(block.tokens) for block in pool.blocks().values()] == [4, 4]


def test_a_sequence_between_two_rounds_is_not_evicted_and_one_that_went_idle_is(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(max_rows=2, idle_s=2.0))
    pool.ask(row(1, text(4, 1), 1))
    pool.clock.now += 1
    pool.ask(row(2, text(4, 2), 1))
    assert pool.ask(row(3, text(4, 3), 1)).status is DraftStatus.BUSY
    pool.clock.now += 1.5
    assert pool.ask(row(3, text(4, 3), 1)).status is DraftStatus.OK
    assert pool.ask(row(2, [5], 1, start=4)).status is DraftStatus.OK
    assert pool.ask(row(1, [5], 1, start=4)).status is DraftStatus.NEED_CONTEXT


def test_a_sequence_with_work_is_never_evicted(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(max_rows=2, idle_s=0.0))
    pool.submit(row(1, text(60), 0))
    pool.submit(row(2, text(4), 3))
    pool.clock.now += 1000
    pool.submit(row(3, text(4), 3))
    assert pool.replies[1].blocks[0].status is DraftStatus.BUSY


def test_idle_pages_are_taken_only_when_they_suffice(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(idle_s=0.0), num_pages=6, page_size=4)
    pool.ask(row(1, text(4), 1))
    pool.submit(row(2, text(16), 2))
    assert pool.ask(row(3, text(12), 1)).status is DraftStatus.BUSY
    assert pool.ask(row(1, [5], 1, start=4)).status is DraftStatus.OK


def test_a_known_sequence_drafts_fewer_tokens_when_pages_run_short_and_keeps_its_place(llama: Decoder) -> None:
    pool, tokens = Pool(llama, num_pages=4, page_size=4), text(10)
    assert pool.ask(row(1, tokens, 20)).tokens == expected(llama, tokens, 7)
    longer = [*tokens, *text(6, 1)]
    assert pool.ask(row(1, longer[10:], 3, start=10)).tokens == expected(llama, longer, 1)
    assert pool.ask(row(1, [1], 3, start=16)).status is DraftStatus.BUSY
    assert pool.ask(row(1, longer, 1)).tokens == expected(llama, longer, 1)


def test_residents_that_outgrow_the_pages_together_give_them_up_so_that_one_can_go_on(llama: Decoder) -> None:
    pool, first, second = Pool(llama, num_pages=4, page_size=16), text(30, 1), text(30, 2)
    assert {pool.ask(row(1, first, 2)).status, pool.ask(row(2, second, 2)).status} == {DraftStatus.OK}
    statuses = []
    for _ in range(20):  # asking keeps both from ever being idle
        pool.clock.now += 0.7
        statuses += [pool.ask(row(1, [*first, 5, 5, 5], 4)).status, pool.ask(row(2, [*second, 5, 5, 5], 4)).status]
    assert statuses.count(DraftStatus.OK) >= 20
    assert pool.ask(row(2, [*second, 5, 5, 5], 4)).tokens == expected(llama, [*second, 5, 5, 5], 4)


def test_past_the_context_of_the_drafter_a_sequence_is_too_long_and_forgotten(llama: Decoder) -> None:
    pool, tokens = Pool(llama), text(256)
    assert pool.ask(row(1, tokens[:254], 5)).tokens == expected(llama, tokens[:254], 3)
    assert pool.ask(row(1, tokens[254:], 5, start=254)).tokens == expected(llama, tokens, 1)
    assert pool.ask(row(1, [1], 5, start=256)).status is DraftStatus.TOO_LONG
    assert pool.ask(row(2, [*tokens, 1], 0)).status is DraftStatus.TOO_LONG
    assert pool.worker.stats().num_sequences == 0


def test_what_nobody_used_for_the_ttl_expires_unless_it_has_work(llama: Decoder) -> None:
    pool = Pool(llama, PoolLimits(ttl_s=60.0))
    pool.ask(row(1, text(4), 1))
    pool.submit(row(2, text(4), 1))
    pool.worker.expire(pool.clock.now + 59)
    assert pool.worker.stats().num_sequences == 2
    pool.worker.expire(pool.clock.now + 60)
    pool.worker.check()
    assert pool.worker.stats().num_sequences == 1
    assert pool.ask(row(1, [3], 1, start=4)).status is DraftStatus.NEED_CONTEXT


@pytest.mark.parametrize("tokens", [[], [160], [-1, 5]])
def test_tokens_that_make_no_sense_are_refused_for_good_and_not_logged(
    llama: Decoder, caplog: pytest.LogCaptureFixture, tokens: list[int]
) -> None:
    pool = Pool(llama)
    assert pool.ask(row(1, tokens, 2)).status is DraftStatus.TOO_LONG
    assert pool.worker.stats().num_sequences == 0
    assert "('large', 1)" in caplog.text
    assert "160" not in caplog.text


def test_a_known_sequence_with_an_id_beyond_the_vocabulary_is_refused_for_good_and_forgotten(llama: Decoder) -> None:
    pool = Pool(llama)
    pool.ask(row(1, text(6), 2))
    assert pool.ask(row(1, [160], 2, start=6)).status is DraftStatus.TOO_LONG
    assert pool.worker.stats().num_free_pages == pool.worker.stats().num_pages
