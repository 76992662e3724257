from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from drafters.cached_tokens import CachedTokens, draft_room, positions_fed
from protocol.branch import prefix_hash
from protocol.request import SamplingParams


def cached(tokens: Sequence[int] = (), committed: int = 0) -> CachedTokens:
    return CachedTokens(("large", 1), 1, 4, SamplingParams(), 0.0, list(tokens), committed)


@pytest.mark.parametrize("seed", range(50))
def test_after_reconciling_the_pool_knows_the_truth_and_how_much_of_it_it_knew_before(seed: int) -> None:
    rng = random.Random(seed)
    known, truth = cached(), [rng.randrange(2) for _ in range(rng.randint(1, 4))]
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
            assert known.prefix_key() == prefix_hash(truth)
        drafts = [rng.randrange(2) for _ in range(rng.randint(0, 4))]
        known.tokens += drafts
        truth = truth + drafts[: rng.randint(0, len(drafts))] + [rng.randrange(2)]


def test_drafts_behind_the_truth_are_kept_as_far_as_they_were_known() -> None:
    known = cached([1, 2, 3, 4, 5], committed=2)
    assert known.reconcile(2, [3], [4, 6]) == 4
    assert (known.tokens, known.committed) == ([1, 2, 3, 4, 6], 3)


def test_the_key_is_that_of_the_committed_tokens_even_if_they_are_others_than_before() -> None:
    known = cached([1, 2, 3], committed=3)
    assert known.prefix_key() == prefix_hash([1, 2, 3])
    known.reconcile(0, [1, 7], [3])
    assert known.prefix_key() == prefix_hash([1, 7])


def test_the_last_drafted_token_is_not_fed() -> None:
    assert positions_fed(10, 4) == 13
    assert positions_fed(10, 0) == 10


def test_what_fits_is_drafted_and_no_more() -> None:
    assert positions_fed(10, draft_room(10, 13)) == 13
    assert draft_room(13, 13) == 1
    assert draft_room(14, 13) == 0
