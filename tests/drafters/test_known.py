from __future__ import annotations

import random

import pytest

from drafters.known import Idle, Known, Span, context_span, draft_room, evictions, next_span, positions_fed, untold
from protocol.branch import prefix_hash


@pytest.mark.parametrize("seed", range(50))
def test_after_reconciling_the_pool_knows_the_truth_and_how_much_of_it_it_knew_before(seed: int) -> None:
    rng = random.Random(seed)
    known, truth = Known(), [rng.randrange(2) for _ in range(rng.randint(1, 4))]
    for _ in range(20):
        start = rng.randint(0, known.committed)
        before = list(known.tokens)
        kept = known.reconcile(start, truth[start:])
        agreed = next(
            (i for i, (a, b) in enumerate(zip(before, truth, strict=False)) if a != b), min(len(before), len(truth))
        )
        assert kept == agreed
        assert known.tokens == truth
        assert known.committed == len(truth)
        if rng.random() < 0.5:
            assert known.key() == prefix_hash(truth)
        drafts = [rng.randrange(2) for _ in range(rng.randint(0, 4))]
        known.tokens += drafts
        truth = truth + drafts[: rng.randint(0, len(drafts))] + [rng.randrange(2)]


def test_drafts_behind_the_truth_are_kept_as_far_as_they_were_known() -> None:
    known = Known([1, 2, 3, 4, 5], committed=2)
    assert known.reconcile(2, [3], [4, 6]) == 4
    assert (known.tokens, known.committed) == ([1, 2, 3, 4, 6], 3)


def test_the_key_is_that_of_the_committed_tokens_even_if_they_are_others_than_before() -> None:
    known = Known([1, 2, 3], committed=3)
    assert known.key() == prefix_hash([1, 2, 3])
    known.reconcile(0, [1, 7], [3])
    assert known.key() == prefix_hash([1, 7])


def test_the_last_drafted_token_is_not_fed() -> None:
    assert positions_fed(10, 4) == 13
    assert positions_fed(10, 0) == 10


def test_what_fits_is_drafted_and_no_more() -> None:
    assert positions_fed(10, draft_room(10, 13)) == 13
    assert draft_room(13, 13) == 1
    assert draft_room(14, 13) == 0


def test_a_probe_tells_of_what_was_committed_since_the_last_one_and_of_the_newest_when_that_is_much() -> None:
    assert untold(probed=10, base_length=14, limit=64) == range(10, 14)
    assert untold(probed=10, base_length=100, limit=64) == range(36, 100)
    assert untold(probed=14, base_length=14, limit=64) == range(14, 14)
    assert not untold(probed=20, base_length=14, limit=64)
    assert not untold(probed=10, base_length=14, limit=0)


def test_a_few_missing_positions_ride_along_and_many_are_settled_in_chunks() -> None:
    assert next_span(num_tokens=100, settled=67, max_ride=32, budget=0) == Span(100, 0)
    assert next_span(num_tokens=100, settled=66, max_ride=32, budget=33) == Span(100, 99, 33)
    assert next_span(num_tokens=100, settled=0, max_ride=32, budget=40) == Span(40, 40, 40)
    assert next_span(num_tokens=100, settled=40, max_ride=32, budget=59) == Span(100, 99, 59)
    assert next_span(num_tokens=100, settled=40, max_ride=32, budget=0) is None


def test_a_context_that_is_only_handed_over_stops_before_its_last_token() -> None:
    assert context_span(num_tokens=10, settled=0, budget=50) == Span(9, 9, 9)
    assert context_span(num_tokens=10, settled=9, budget=50) is None


def test_the_longest_unused_are_evicted_and_nobody_when_that_is_too_little() -> None:
    idle = [Idle(("a", 1), 5.0, 2), Idle(("a", 2), 3.0, 2), Idle(("b", 1), 4.0, 2)]
    assert evictions(idle, 3, 0) == [("a", 2), ("b", 1)]
    assert evictions(idle, 0, 1) == [("a", 2)]
    assert evictions(idle, 0, 0) == []
    assert evictions(idle, 7, 0) is None
