"""The ragged batch: every new token appears once, and a mask says exactly what it may look at."""

from __future__ import annotations

import random

import numpy as np
import pytest

from model.batch import LONG_ROW, MAX_PADDING, BatchRow, RaggedBatch, build_batch, group_by_length


def random_rows(seed: int) -> list[BatchRow]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(rng.integers(1, 8)):
        num_new = int(rng.integers(LONG_ROW, LONG_ROW + 5) if rng.random() < 0.3 else rng.integers(1, 7))
        rows.append(BatchRow(rng.permutation(200)[: num_new + rng.integers(0, 40)], num_new))
    return rows


@pytest.mark.parametrize("seed", range(50))
def test_tokens_know_their_positions_and_slots(seed: int) -> None:
    rows = random_rows(seed)
    batch = build_batch(rows)
    assert batch.num_tokens == sum(row.num_new for row in rows)
    assert batch.max_total == max(len(row.slots) for row in rows)
    for row, start, stop in zip(rows, batch.offsets, batch.offsets[1:], strict=False):
        positions = batch.positions[start:stop].numpy()
        assert positions.tolist() == list(range(len(row.slots) - row.num_new, len(row.slots)))
        assert batch.slots[start:stop].tolist() == row.slots[positions].tolist()


@pytest.mark.parametrize("seed", range(50))
def test_a_token_sees_itself_and_what_its_window_reaches(seed: int) -> None:
    batch = build_batch(random_rows(seed))
    for window in (None, 1, 5, 500):
        for token, visible in visible_slots(batch, window).items():
            row = next(r for r in range(len(batch.rows)) if token < batch.offsets[r + 1])
            position = int(batch.positions[token])
            first = 0 if window is None else max(0, position - window + 1)
            assert visible == batch.rows[row].slots[first : position + 1].tolist()


def visible_slots(batch: RaggedBatch, window: int | None) -> dict[int, list[int]]:
    visible: dict[int, list[int]] = {}
    for group in batch.groups:
        for queries, slots, seen in zip(group.queries.tolist(), group.slots, group.mask(window)[:, 0], strict=True):
            for token, mask in zip(queries, seen, strict=True):
                slots_of_token = slots[mask].tolist()
                assert visible.setdefault(token, slots_of_token) == slots_of_token, "padding sees what its token sees"
    assert sorted(visible) == list(range(batch.num_tokens))
    return visible


def test_masks_are_built_once_a_pass() -> None:
    group = build_batch([BatchRow(np.arange(20), 3)]).groups[0]
    assert group.mask(7) is group.mask(7)
    assert group.mask(None) is group.mask(20), "a window that reaches everything is no window"
    assert group.mask(19) is not group.mask(None)


@pytest.mark.parametrize("num_new", [0, -1, 4])
def test_a_row_without_room_for_its_new_tokens_is_refused(num_new: int) -> None:
    with pytest.raises(ValueError, match=f"{num_new} new tokens and 3 positions"):
        build_batch([BatchRow(np.arange(3), num_new)])


@pytest.mark.parametrize("seed", range(50))
def test_rows_are_grouped_so_that_padding_at_most_doubles_what_is_gathered(seed: int) -> None:
    rng = random.Random(seed)
    totals = [rng.choice([rng.randint(1, 20), rng.randint(1, 4000)]) for _ in range(rng.randint(1, 16))]
    groups = group_by_length(range(len(totals)), totals)
    assert sorted(row for group in groups for row in group) == list(range(len(totals)))
    for group in groups:
        held = [totals[row] for row in group]
        assert group == sorted(group)
        assert len(held) * max(held) <= MAX_PADDING * sum(held)


def test_rows_of_like_length_share_one_call() -> None:
    assert group_by_length(range(4), [200, 256, 300, 220]) == [[0, 1, 2, 3]]
    assert group_by_length([], []) == []
