"""What ends a branch, and what is never begun: messages, pages, failures."""

from __future__ import annotations

import pytest

from drafters.limits import PoolLimits
from drafters.picks import PassRow
from model.decoder import Decoder
from protocol.branch import AheadRequest, AheadRow, BranchReply, BranchSource
from protocol.draft import DraftStatus
from tests.drafters.mirror import Verified
from tests.drafters.pool import DEEP, row, text


@pytest.mark.parametrize("how", ["draft", "context", "ahead", "close", "drop", "expire"])
def test_whatever_comes_next_ends_the_branches_and_frees_their_pages(llama: Decoder, how: str) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1))
    without = one.pool.worker.stats().num_free_pages
    one.ahead(length=4)
    one.pool.step()
    assert one.pool.worker.stats().num_free_pages < without - 3
    match how:
        case "draft":
            one.pool.submit(row(1, [5], 1, start=20))
        case "context":
            one.pool.submit(row(1, [5, 6], 1, start=99))
        case "ahead":
            one.ahead(fan_out=0, round_id=2)
        case "close":
            one.pool.worker.close("large", [1])
        case "drop":
            one.pool.worker.drop("large")
        case "expire":
            one.ahead(length=1, fan_out=1)
            one.pool.run()
            one.pool.worker.expire(one.pool.clock.now + 1000)
    one.pool.worker.check()
    one.replies.clear()
    one.pool.run()
    assert one.pool.worker.stats().num_free_pages >= without
    assert one.parts == []


def test_a_draft_that_needs_pages_takes_them_from_branches_and_branches_take_them_from_nobody(llama: Decoder) -> None:
    one = Verified(llama, PoolLimits(branch_ahead=1), num_pages=8)
    one.ahead(length=4)
    one.pool.step()
    assert one.pool.worker.stats().num_free_pages == 2
    assert one.pool.ask(row(2, text(80, 3), 2)).status is DraftStatus.OK
    assert [own.source for own in one.branches] == [BranchSource.FULL]
    one.ahead(length=4, round_id=2)
    one.pool.run()
    assert one.pool.worker.stats().num_sequences == 2
    assert one.pool.ask(row(2, [5], 2, start=80)).status is DraftStatus.OK


def test_what_the_pool_cannot_draft_ahead_for_is_told_of_at_once(llama: Decoder) -> None:
    one = Verified(llama)
    one.send(AheadRow(row(2, [5], 0, start=7), (), 2, 2))
    one.send(AheadRow(row(1, [], 0, start=20), (900,), 2, 2), round_id=2)
    one.send(AheadRow(row(1, [], 0, start=20), one.window, 2, 2), depth=3, round_id=3)
    assert one.replies == [BranchReply("large", round_id, ()) for round_id in (1, 2, 3)]


def test_near_the_end_of_its_context_the_drafter_has_branches_as_long_as_they_fit(llama: Decoder) -> None:
    one, tokens = Verified(llama), text(251, 4)
    window = one.pool.ask(row(3, tokens, 2)).tokens
    one.send(AheadRow(row(3, [], 0, start=251), window, 8, 8))
    one.pool.run()
    assert {(own.base_length, len(own.tokens)) for own in one.branches} == {(252, 5), (253, 4), (254, 3)}


def test_a_failed_pass_forgets_the_sequences_whose_branches_were_in_it(
    llama: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(rows: list[PassRow]) -> None:
        raise RuntimeError("out of memory")

    one = Verified(llama)
    one.ahead()
    one.pool.step()
    with monkeypatch.context() as patch:
        patch.setattr(one.pool.drafter, "run", fail)
        one.pool.step()
    stats = one.pool.worker.stats()
    assert (stats.num_sequences, stats.num_free_pages) == (0, stats.num_pages)


def test_branches_that_cannot_be_handed_over_hurt_nobody(llama: Decoder) -> None:
    def gone(reply: BranchReply) -> None:
        raise ConnectionError("stream closed")

    one = Verified(llama)
    own = AheadRow(row(1, [], 0, start=20), one.window, 2, 4)
    one.pool.worker.ahead(AheadRequest("large", 1, DEEP, (own,)), gone)
    one.pool.run()
    assert one.pool.worker.stats().num_branches == 4
