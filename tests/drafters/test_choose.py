"""Which rows are in a pass: a pure choice, tried on rows without a drafter."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from drafters.choose import Part, Waiting, choose, context_part, draft_part, is_late
from drafters.limits import PoolLimits
from drafters.pace import UNKNOWN, Pace
from drafters.row import Priority

DEEP, SHALLOW = 4, 1
LIMITS = PoolLimits()


def draft(id_: int, target: str = "large", num_left: int = 4, missing: int = 1, deadline: float = math.inf) -> Waiting:
    return Waiting(id_, target, Priority.DRAFT, DEEP, 500, 499 - missing, num_left, deadline=deadline)


def context(id_: int, target: str = "large", missing: int = 400) -> Waiting:
    return Waiting(id_, target, Priority.CONTEXT, DEEP, 500, 499 - missing, 0)


def branch(id_: int, target: str = "large") -> Waiting:
    return Waiting(id_, target, Priority.AHEAD, DEEP, 500, 498, 9)


def chosen(*rows: Waiting, limits: PoolLimits = LIMITS, pace: Pace = UNKNOWN, now: float = 0.0) -> dict[int, Part]:
    return {part.id: part for part in choose(rows, limits, now, pace)}


def test_a_few_missing_positions_ride_along_and_many_are_settled_in_chunks() -> None:
    row = Waiting(1, "large", Priority.DRAFT, DEEP, 100, 67, 4)
    assert draft_part(row, 32, 0, 4) == Part(1, 100, 0, 4)
    assert draft_part(row._replace(settled=66), 32, 33, 4) == Part(1, 100, 33, 4)
    assert draft_part(row._replace(settled=0), 32, 40, 4) == Part(1, 40, 40)
    assert draft_part(row._replace(settled=40), 32, 59, 4) == Part(1, 100, 59, 4)
    assert draft_part(row._replace(settled=40), 32, 0, 4) is None


def test_a_context_that_is_only_handed_over_stops_before_its_last_token() -> None:
    assert context_part(Waiting(1, "large", Priority.CONTEXT, DEEP, 10, 0, 0), 50) == Part(1, 9, 9)
    assert context_part(Waiting(1, "large", Priority.CONTEXT, DEEP, 10, 9, 0), 50) is None


def test_of_rows_that_read_one_page_all_but_the_first_wait_to_go_on_behind_it() -> None:
    first, second = context(1, missing=40)._replace(page=b"a"), context(2, "small", missing=40)._replace(page=b"a")
    assert list(chosen(first, second)) == [1]
    assert list(chosen(first, second._replace(page=b"b"))) == [1, 2]
    assert list(chosen(draft(3, missing=40)._replace(page=b"a"), second)) == [3]
    assert list(chosen(draft(3, missing=4)._replace(page=b"a"), draft(4, missing=4)._replace(page=b"a"))) == [3, 4]


def test_drafts_go_first_and_branches_ride_along_where_they_leave_at_the_same_depth() -> None:
    other = branch(3)._replace(depth=SHALLOW)
    assert list(chosen(branch(1), other, draft(2))) == [2, 1]
    assert list(chosen(branch(1), other)) == [1, 3]


def test_branches_draft_no_more_tokens_than_who_waits() -> None:
    parts = chosen(draft(1, num_left=2), branch(2))
    assert (parts[1].num_drafts, parts[2].num_drafts) == (2, 2)
    assert chosen(branch(2))[2].num_drafts == LIMITS.branch_ahead


def test_branches_beside_a_draft_that_is_nearly_due_are_as_short_as_it() -> None:
    parts = chosen(draft(1, num_left=8, deadline=1.016), branch(2), pace=Pace(token_ms=8.0), now=1.0)
    assert (parts[1].num_drafts, parts[2].num_drafts) == (2, 2)


@pytest.mark.parametrize(("token_ms", "num_drafts"), [(0.0, 5), (0.5, 5), (2.5, 4), (4.0, 2), (17.0, 1)])
def test_branches_alone_hold_up_who_comes_meanwhile_for_a_short_time(token_ms: float, num_drafts: int) -> None:
    assert chosen(branch(1), branch(2), pace=Pace(token_ms=token_ms))[2].num_drafts == num_drafts


@pytest.mark.parametrize(
    ("position_ms", "beside", "between", "lull"),
    [
        (0.0, 32, 256, 256),
        (0.001, 32, 256, 256),
        (0.01, 14, 114, 256),
        (0.1, 1, 11, 80),
        (1.0, 1, 1, 8),
        (9.0, 1, 1, 1),
    ],
)
def test_contexts_hold_up_drafts_by_a_share_of_what_a_draft_takes(
    position_ms: float, beside: int, between: int, lull: int
) -> None:
    """Beside drafts a share of one token, between them one of a whole draft; in a lull one of a single row's."""
    pace = Pace(token_ms=2.0, position_ms=position_ms, drafted_s=10.0, num_drafting=7)
    assert chosen(context(1), *map(draft, range(2, 9)), pace=pace, now=10.1)[1].num_prefill == beside
    assert chosen(context(1), pace=pace, now=10.1)[1].num_prefill == between
    assert chosen(context(1), pace=pace, now=11.0)[1].num_prefill == lull


@pytest.mark.parametrize(("num_waiting", "num_drafting", "positions"), [(1, 7, 7), (1, 1, 50), (4, 4, 50), (6, 2, 150)])
def test_the_more_rows_wait_for_their_contexts_beside_those_that_draft_the_more_is_read(
    num_waiting: int, num_drafting: int, positions: int
) -> None:
    pace = Pace(token_ms=1.0, position_ms=0.01, drafted_s=10.0)
    rows = [*map(context, range(num_waiting)), *map(draft, range(10, 10 + num_drafting))]
    parts = chosen(*rows, pace=pace, now=10.1, limits=replace(LIMITS, beside_tokens=1000))
    assert sum(part.num_prefill for part in parts.values()) == positions


def test_what_passes_took_tells_what_a_token_and_a_position_cost() -> None:
    pace = UNKNOWN.after(6.0, 3, 0, 1.0)
    assert (pace.token_ms, pace.position_ms, pace.drafted_s) == (2.0, 0.0, 1.0)
    assert pace.after(7.0, 1, 10, 2.0).position_ms == 0.5  # beside a draft
    assert pace.after(7.0, 0, 10, 2.0) == Pace(2.0, 0.5, 1.0)  # alone: such a pass takes no less than a token
    assert pace.after(1.0, 0, 10, 2.0).position_ms == 0.0


def test_contexts_that_nobody_waits_for_take_little_of_a_pass_with_drafts_and_all_of_one_without() -> None:
    assert chosen(context(1), draft(2))[1].num_prefill == LIMITS.beside_tokens
    assert chosen(context(1))[1].num_prefill == LIMITS.prefill_tokens
    assert chosen(context(1), draft(2, missing=400))[2].num_prefill == LIMITS.prefill_tokens


def test_a_pass_has_no_more_rows_than_it_may() -> None:
    limits = PoolLimits(pass_rows=5)
    assert len(chosen(*(draft(number) for number in range(9)), limits=limits)) == 5
    assert next(iter(chosen(*(branch(number) for number in range(9)), draft(20), limits=limits))) == 20


@pytest.mark.parametrize(("left_ms", "length"), [(100.0, 8), (5.5, 5), (0.4, 1)])
def test_a_pass_drafts_no_longer_than_its_first_deadline_allows(left_ms: float, length: int) -> None:
    rows = draft(1, num_left=8, deadline=1.0 + left_ms / 1e3), draft(2, num_left=8)
    assert {part.num_drafts for part in chosen(*rows, pace=Pace(token_ms=1.0), now=1.0).values()} == {length}


def test_what_has_nothing_yet_is_tried_as_long_as_there_is_time_and_what_has_something_ends_in_time() -> None:
    assert not is_late(10.0, False, 9.999, token_ms=5.0)
    assert is_late(10.0, False, 10.0, token_ms=5.0)
    assert is_late(10.0, True, 9.996, token_ms=5.0)
    assert not is_late(10.0, True, 9.994, token_ms=5.0)
    assert not is_late(math.inf, True, 1e9, token_ms=5.0)


def played(rows: Sequence[Waiting], limits: PoolLimits, num_passes: int, pace: Pace = UNKNOWN) -> Counter[str]:
    """Tokens of work by target. All contexts want more for ever; who has drafted asks again, and so waits the least."""
    waiting = {row.id: row for row in rows}
    work: Counter[str] = Counter()
    for _ in range(num_passes):
        for part in choose(list(waiting.values()), limits, 0.0, pace):
            work[waiting[part.id].target] += part.num_prefill or part.num_drafts
            if part.num_drafts:
                waiting[part.id] = waiting.pop(part.id)
    return work


@pytest.mark.parametrize("seed", range(20))
def test_two_targets_share_the_passes_whatever_each_of_them_has(seed: int) -> None:
    """Of contexts by the budget, of drafts by the rows; the one with more rows, or longer ones, has no advantage."""
    rng = random.Random(seed)
    make = rng.choice([draft, context])
    many, few = [make(number) for number in range(64)], [make(100 + number, "small") for number in range(4)]
    rows = [*many, *few] if rng.random() < 0.5 else [*few, *many]
    work = played(rows, PoolLimits(pass_rows=rng.choice([4, 6, 8]), prefill_tokens=rng.choice([32, 100, 256])), 200)
    assert work["small"] >= 0.85 * min(work["large"], work.total() / 2)


def test_no_target_waits_for_ever_for_the_budget_that_another_could_use_alone() -> None:
    work = played([context(1, missing=490), context(2, "small", missing=490)], LIMITS, 10)
    assert work["small"] == work["large"] == 5 * LIMITS.prefill_tokens


def test_where_next_to_nothing_may_be_read_every_target_reads_some_of_it() -> None:
    slow = Pace(token_ms=1.0, position_ms=99.0)
    names = [f"target {number}" for number in range(3)]
    rows = [context(number, names[number % 3], missing=400 - number) for number in range(30)]
    assert played(rows, LIMITS, 10, slow) == dict.fromkeys(names, 10)


def test_what_another_reads_takes_none_of_the_budget() -> None:
    """Two targets with the same prompt: one of them reads it, at the pace of one alone."""
    same = [context(1)._replace(page=b"a"), context(2, "small")._replace(page=b"a")]
    assert chosen(*same) == chosen(same[0])


def test_of_more_targets_than_a_pass_has_rows_none_is_left_behind_by_one_with_many() -> None:
    """That one is in every pass, with a single row: the others share three of four."""
    names = [f"target {number}" for number in range(10)]
    rows = [draft(number, names[number % 10]) for number in range(20)]
    rows += [draft(100 + number, names[0]) for number in range(50)]
    work = played(rows, PoolLimits(pass_rows=4), 500)
    assert min(work.values()) > 0.8 * work.total() / len(names)


def test_what_one_target_leaves_another_takes() -> None:
    rows = [*(draft(number) for number in range(20)), draft(100, "small")]
    parts = chosen(*rows, limits=PoolLimits(pass_rows=10))
    assert len(parts) == 10
    assert 100 in parts
