"""What the law says of each mode, against the law of router/law.py and against rounds tossed one by one."""

from __future__ import annotations

import random

import pytest

from router.law import Law
from router.modes import AHEAD, Misses, Mode, Outlook, foreseen, goodput, half_share, law_ms, playable


def outlook(rng: random.Random, num_rows: int) -> Outlook:
    return Outlook(num_rows, rng.uniform(1, 20), rng.uniform(0.1, 20), rng.uniform(0, 1), rng.uniform(0, 4))


@pytest.mark.parametrize("seed", range(10))
def test_a_single_row_that_waits_takes_what_the_law_says(seed: int) -> None:
    rng = random.Random(seed)
    one, hits = outlook(rng, 1), rng.random()
    law = Law(one.verify_ms, one.draft_ms, one.rest_ms, hits)
    assert law_ms(Mode.SERIAL, one, 1.0) == pytest.approx(law.in_turn_ms)
    for mode in AHEAD:
        assert law_ms(mode, one, 1 - hits) == pytest.approx(law.mirror_ms)
        assert goodput(mode, one, Misses(1 - hits, 1.0)) == pytest.approx((1 + one.accepted) / law.mirror_ms)


@pytest.mark.parametrize("seed", range(10))
def test_misses_are_foreseen_as_rounds_of_many_rows_turn_out_whichever_is_better(seed: int) -> None:
    rng = random.Random(seed)
    view, hits, num_rounds = outlook(rng, rng.randint(1, 8)), rng.random(), 4000
    rate = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for _ in range(num_rounds):
        num_hits = sum(rng.random() < hits for _ in range(view.num_rows))
        hidden_ms = max(view.verify_ms, view.draft_ms) + view.rest_ms
        for waits, (tokens, ms) in rate.items():
            windows = view.num_rows if waits else num_hits
            late_ms = view.draft_ms if waits and num_hits < view.num_rows else 0.0
            rate[waits] = [tokens + view.num_rows + windows * view.accepted, ms + hidden_ms + late_ms]
    best = max(tokens / ms for tokens, ms in rate.values())
    misses = foreseen(Mode.MIRROR, view, hits)
    assert goodput(Mode.MIRROR, view, misses) == pytest.approx(best, rel=0.03)


def test_drafts_that_are_not_worth_their_wait_are_done_without() -> None:
    assert foreseen(Mode.SERIAL, Outlook(1, 10, 5, 0, 2.0), 0.0) == Misses(1.0, 1.0)
    assert foreseen(Mode.SERIAL, Outlook(1, 10, 50, 0, 2.0), 0.0) == Misses(0.0, 0.0)


def test_lanes_hide_drafting_and_pay_for_two_passes() -> None:
    view = Outlook(8, 10, 5, 0.5, 2.0)
    half_ms = half_share(8) * 10 + 0.5
    assert goodput(Mode.LANES, view, foreseen(Mode.LANES, view, 0.0)) == pytest.approx(4 * 3 / half_ms)
    shares = [half_share(num_rows) for num_rows in range(2, 33)]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < shares[-1] < shares[0] < 1


def test_a_single_row_has_no_second_lane() -> None:
    assert playable(tuple(Mode), 1) == [Mode.MIRROR, Mode.HINTED, Mode.SERIAL]
    assert playable(tuple(Mode), 2) == list(Mode)
    assert playable((Mode.LANES,), 1) == [Mode.SERIAL]
