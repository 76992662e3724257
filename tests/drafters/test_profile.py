"""Timed rounds of a real worker: each finds the same state, feeds what it says, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from drafters.nested import NestedDrafter
from drafters.picks import PassRow, Pick
from drafters.profile import DraftRound, draft_context, draft_timer, largest_batch
from model.decoder import Decoder
from protocol.errors import ConfigError

ROUNDS = [DraftRound(3, 4, 4, 3), DraftRound(1, 1, 1, 3), DraftRound(2, 2, 16, 1), DraftRound(3, 4, 1, 5)]


@pytest.fixture
def drafter(llama: Decoder) -> NestedDrafter:
    return NestedDrafter(llama, (1, 2, 4), num_pages=12, page_size=16)


def test_every_round_feeds_its_new_tokens_at_its_depth_whatever_came_before(
    drafter: NestedDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[list[int]] = []
    depths: list[int] = []  # of the drafted tokens
    run = drafter.run

    def record(rows: Sequence[PassRow]) -> list[list[Pick]]:
        fed.append([len(row.tokens) for row in rows])
        picks = run(rows)
        depths.extend(row.depth for row, own in zip(rows, picks, strict=True) for _ in own)
        return picks

    context = draft_context(drafter, 3)
    assert context == 4 * 16 - 16 - 5
    with draft_timer(drafter, num_rows=3) as measure:
        monkeypatch.setattr(drafter, "run", record)
        for one in [*ROUNDS, *reversed(ROUNDS), *ROUNDS]:
            fed.clear()
            depths.clear()
            assert measure(one) > 0
            assert fed == [[one.num_new] * one.num_rows, *[[1] * one.num_rows] * (len(fed) - 1)]
            assert depths == [one.depth] * one.length * one.num_rows
            drafter.check()
    assert drafter.ledger.num_free == drafter.ledger.num_pages
    assert drafter.ledger.sequences == ()


def test_deeper_layers_hold_the_whole_context_so_that_no_round_pays_for_an_earlier_one(drafter: NestedDrafter) -> None:
    context = draft_context(drafter, 2)
    with draft_timer(drafter, num_rows=2) as measure:
        for one in (DraftRound(2, 1, 4, 5), DraftRound(2, 4, 4, 1)):
            measure(one)
        for sequence in drafter.ledger.sequences:
            assert all(mark >= context for mark in drafter._marks[sequence].marks)


def test_an_error_leaves_nothing_behind(drafter: NestedDrafter) -> None:
    with pytest.raises(AssertionError), draft_timer(drafter, num_rows=2) as measure:
        measure(DraftRound(2, 3, 1, 1))  # no exit
    assert drafter.ledger.num_free == drafter.ledger.num_pages


def test_as_many_rows_are_measured_as_the_memory_holds(llama: Decoder) -> None:
    drafter = NestedDrafter(llama, (4,), num_pages=12, page_size=16)
    assert [largest_batch(drafter, rows) for rows in (2, 64)] == [2, 6]
    with draft_timer(drafter, largest_batch(drafter, 64)) as measure:
        assert measure(DraftRound(6, 4, 16, 5)) > 0
    with pytest.raises(ConfigError, match="pool does not hold 12 rows to profile with; raise its kv_mb"):
        draft_context(drafter, 12)
