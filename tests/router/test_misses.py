from __future__ import annotations

import random

import pytest

from router.misses import (
    ENOUGH,
    RETRY,
    VAIN,
    Rates,
    awaited,
    patience_ms,
    skipped,
    verified,
    waited,
    worth_waiting,
)


def known(verify_ms: float, wait_ms: float, accepted: float) -> Rates:
    return Rates(verify_ms, wait_ms, accepted, num_waits=ENOUGH, num_windows=ENOUGH)


def test_a_round_waits_until_it_knows_what_waiting_costs() -> None:
    assert worth_waiting(Rates(), 4, 3, 1)
    assert worth_waiting(Rates(verify_ms=2.0, accepted=1.0), 4, 3, 1)
    assert worth_waiting(Rates(2.0, 50.0, 0.0, num_waits=ENOUGH, num_windows=ENOUGH - 1), 4, 3, 1)


def test_one_hiccup_at_the_start_does_not_end_waiting() -> None:
    rates = waited(verified(Rates(), 4.0, 1, 0), 60.0)
    for _ in range(ENOUGH):
        assert worth_waiting(rates, 1, 0, 1)
        rates = waited(verified(rates, 4.0, 1, 2), 1.0)
    assert worth_waiting(rates, 1, 0, 1)


@pytest.mark.parametrize(
    ("verify_ms", "wait_ms", "accepted", "waits"),
    [(10.0, 5.0, 1.0, True), (10.0, 9.9, 1.0, True), (10.0, 10.1, 1.0, False), (10.0, 20.0, 2.5, True)],
)
def test_a_lone_row_waits_while_what_is_accepted_outweighs_the_time(
    verify_ms: float, wait_ms: float, accepted: float, waits: bool
) -> None:
    assert worth_waiting(known(verify_ms, wait_ms, accepted), 1, 0, 1) is waits


@pytest.mark.parametrize("seed", range(50))
def test_the_rule_is_tokens_per_second(seed: int) -> None:
    rng = random.Random(seed)
    rates = known(rng.uniform(1, 20), rng.uniform(0, 20), rng.uniform(0, 4))
    num_hits, num_missed = rng.randint(0, 8), rng.randint(1, 8)
    num_rows = num_hits + num_missed + rng.randint(0, 2)
    assert rates.verify_ms is not None
    assert rates.wait_ms is not None
    assert rates.accepted is not None
    without = (num_rows + num_hits * rates.accepted) / rates.verify_ms
    waiting = (num_rows + (num_hits + num_missed) * rates.accepted) / (rates.verify_ms + rates.wait_ms)
    assert worth_waiting(rates, num_rows, num_hits, num_missed) is (waiting >= without)


def test_one_miss_among_many_hits_is_not_waited_for_where_all_of_many_misses_are() -> None:
    rates = known(verify_ms=10.0, wait_ms=6.0, accepted=1.5)
    assert not worth_waiting(rates, 8, 7, 1)
    assert worth_waiting(rates, 8, 0, 8)


def test_a_wait_that_was_not_worth_it_is_tried_again_some_time_and_then_believed() -> None:
    rates = known(verify_ms=1.0, wait_ms=50.0, accepted=1.0)
    for _ in range(RETRY):
        assert not worth_waiting(rates, 1, 0, 1)
        rates = skipped(rates)
    assert worth_waiting(rates, 1, 0, 1)
    assert worth_waiting(waited(rates, 0.5), 1, 0, 1)
    assert not worth_waiting(waited(rates, 5.0), 1, 0, 1)


def test_the_rates_follow_what_rounds_bring() -> None:
    rates = Rates()
    for _ in range(100):
        rates = waited(verified(rates, 4.0, 2, 3), 7.0)
    assert (rates.verify_ms, rates.wait_ms, rates.accepted) == pytest.approx((4.0, 7.0, 1.5))
    rates = verified(rates, 4.0, 0, 0)
    assert rates.accepted == pytest.approx(1.5)


def test_a_branch_on_its_way_is_waited_for_no_longer_than_a_fresh_draft_or_a_pass() -> None:
    assert patience_ms(known(verify_ms=4.0, wait_ms=2.5, accepted=1.0)) == 2.5
    assert patience_ms(known(verify_ms=4.0, wait_ms=9.0, accepted=1.0)) == 4.0
    assert patience_ms(Rates()) == patience_ms(Rates(verify_ms=4.0)) == patience_ms(Rates(wait_ms=2.0)) == 0.0


def test_a_pool_whose_branches_do_not_come_is_waited_for_rarely_until_some_come() -> None:
    rates, waits = known(4.0, 2.0, 1.0), []
    for turn in range(4 * RETRY):
        if patience_ms(rates):
            waits.append(turn)
        rates = awaited(rates, came=False)
    assert waits == [*range(VAIN), RETRY, 2 * RETRY, 3 * RETRY]
    assert patience_ms(awaited(rates, came=True)) == 2.0
