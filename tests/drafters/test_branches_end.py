"""What ends a branch, and what is never begun: messages, pages, failures."""

from __future__ import annotations

import pytest

from drafters.limits import PoolLimits
from drafters.picks import PassRow
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, BranchReply
from protocol.draft import DraftStatus
from tests.drafters.ahead import Verified
from tests.drafters.pool import DEEP, expected, row, text


@pytest.mark.parametrize("how", ["draft", "context", "ahead", "close", "drop"])
def test_whatever_comes_next_ends_a_branch(llama: Decoder, how: str) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1))
    without = one.pool.worker.stats().num_free_pages
    one.ahead(length=4)
    one.pool.step()
    match how:
        case "draft":
            one.pool.submit(row(1, [5], 1, start=20))
        case "context":
            one.pool.submit(row(1, [5, 6], 1, start=99))
        case "ahead":
            one.ahead(length=0, window=(), round_id=2)
        case "close":
            one.pool.worker.close("large", [1])
        case "drop":
            one.pool.worker.drop("large")
    one.pool.worker.check()
    one.replies.clear()
    one.pool.run()
    assert one.pool.worker.stats().num_free_pages >= without
    assert one.parts == []


def test_a_branch_in_progress_does_not_expire(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1))
    one.ahead(length=4)
    one.pool.step()
    one.pool.worker.expire(one.pool.clock.now + 1000)
    one.pool.run()
    assert [own.tokens for own in one.branches] == [one.behind(4)[1]]
    one.pool.worker.expire(one.pool.clock.now + 1000)
    assert one.pool.worker.stats().num_sequences == 0, "once it is done it does"


def test_a_draft_takes_the_pages_of_a_sequence_that_is_only_drafted_ahead_for(llama: Decoder) -> None:
    """Its target holds more than its share, and another waits."""
    one = Verified(llama, PoolLimits(branch_ahead=1), num_pages=8)
    one.ahead(length=56)
    one.pool.step()
    block = one.pool.ask(row(2, text(60, 3), 2), incarnation="small")
    assert (block.status, block.tokens) == (DraftStatus.OK, expected(llama, text(60, 3), 2))
    one.pool.run()
    one.pool.worker.check()
    assert one.branches == []


def test_where_pages_run_short_a_branch_is_as_long_as_it_fits(llama: Decoder) -> None:
    lengths, whole = [], []
    for num_pages in range(2, 8):
        one = Verified(llama, num_pages=num_pages)
        one.ahead(length=60)
        one.pool.run()
        one.pool.worker.check()
        lengths.append(len(one.parts[-1].tokens))
        whole.append(not one.parts[-1].goes_on)
    assert lengths == [9, 25, 41, 57, 60, 60]
    assert whole == [length == 60 for length in lengths], "or it would count as stopped in doubt"


def test_what_the_pool_cannot_draft_ahead_for_brings_nothing(llama: Decoder) -> None:
    one = Verified(llama)
    one.send(AheadRow(row(2, [5], 0, start=7), (), 2))
    one.send(AheadRow(row(1, [], 0, start=20), (900,), 2), round_id=2)
    one.send(AheadRow(row(1, [], 0, start=20), one.window, 2), depth=3, round_id=3)
    one.pool.run()
    one.pool.worker.check()
    assert one.replies == []


def test_near_the_end_of_its_context_the_drafter_has_a_branch_as_long_as_it_fits(llama: Decoder) -> None:
    one, tokens = Verified(llama), text(251, 4)
    window = one.pool.ask(row(3, tokens, 2)).tokens
    one.send(AheadRow(row(3, [], 0, start=251), window, 8))
    one.pool.run()
    assert [(own.base_length, len(own.tokens), own.goes_on) for own in one.parts] == [(254, 3, True)]


def test_a_branch_that_stops_in_doubt_where_pages_run_short_is_whole(llama: Decoder) -> None:
    one = Verified(llama, num_pages=2)
    one.send(AheadRow(row(1, [], 0, start=20), one.window, 60, stop_probability=1.0))
    one.pool.run()
    assert [(len(own.tokens), own.goes_on) for own in one.parts] == [(1, False)]


def test_a_failed_pass_forgets_the_sequence_whose_branch_was_in_it(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(rows: list[PassRow]) -> None:
        raise RuntimeError("out of memory")

    one = Verified(llama)
    one.ahead(length=8)
    one.pool.step()
    with monkeypatch.context() as patch:
        patch.setattr(one.pool.drafter, "run", fail)
        one.pool.step()
    stats = one.pool.worker.stats()
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


def test_a_branch_that_cannot_be_handed_over_hurts_nobody(llama: Decoder) -> None:
    def gone(reply: BranchReply) -> None:
        raise ConnectionError("stream closed")

    one = Verified(llama)
    own = AheadRow(row(1, [], 0, start=20), one.window, 2)
    one.pool.worker.ahead(AheadRequest("large", 1, DEEP, (own,)), gone)
    one.pool.run()
    assert one.pool.worker.stats().num_branches == 1
