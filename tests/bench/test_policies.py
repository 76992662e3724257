"""What rounds came to, and that made-up prices are the curves that are told of them."""

from __future__ import annotations

import pytest

from bench.policies import (
    ADAPTIVE,
    Prices,
    RoundRecorder,
    Times,
    adaptive,
    draft_ms_per_token,
    hits,
    latency_bound,
    plays,
    times,
)
from protocol.plan import BatchView, Plan, SequenceView
from protocol.record import Origin, RoundRecord, RowRecord
from protocol.stats import RoundStats
from router.policy import Fixed

EXITS = (2, 4, 6)
PRICES = Prices(verify=40.0, token=0.5, layer=0.8, row_layer=0.1)


def round_of(
    length: int,
    *,
    num_fed: int = 1,
    draft_ms: float = 0.0,
    verify_ms: float = 0.0,
    rest_ms: float = 0.0,
    num_prefill_tokens: int = 0,
    answered: bool = True,
) -> RoundRecord:
    depth = 4 if length else None
    row = RowRecord(0, length, length // 2, Origin.FRESH, depth, length, (0.5,) * length, num_fed=num_fed)
    planned_s = 1e-3 * rest_ms
    drafted_s = planned_s + 1e-3 * draft_ms
    return RoundRecord(
        round_id=0,
        plan=Plan(depth, (length,)),
        rows=(row,),
        context=10.0,
        num_committed=1 + length // 2,
        num_prefill_tokens=num_prefill_tokens,
        answered=answered,
        planned_s=planned_s,
        drafted_s=drafted_s,
        verified_s=drafted_s + 1e-3 * verify_ms,
    )


def test_plays_are_shares_of_decoding_rounds_by_depth_and_longest_draft() -> None:
    no_rows = RoundRecord(0, Plan(None, ()), (), 0.0, 0)
    assert plays([round_of(3), round_of(3), round_of(5), round_of(0), no_rows]) == {
        "4/3": 0.5,
        "4/5": 0.25,
        "off": 0.25,
    }


def test_times_are_medians_of_rounds_without_a_prompt() -> None:
    rounds = [round_of(2, draft_ms=ms, verify_ms=2 * ms, rest_ms=1) for ms in (1, 2, 30)]
    with_prompt = round_of(2, draft_ms=500, verify_ms=500, num_prefill_tokens=9)
    found = times([*rounds, with_prompt])
    assert (found.draft_ms, found.verify_ms, found.rest_ms) == pytest.approx((2, 4, 1))
    with pytest.raises(ValueError, match="ask for more tokens"):
        times([with_prompt])


def test_a_drafted_token_costs_what_rounds_took_in_which_the_pool_had_nothing_to_catch_up() -> None:
    rounds = [round_of(4, draft_ms=8.0, num_fed=5), round_of(2, draft_ms=1.0), round_of(0)]
    assert draft_ms_per_token(rounds) == pytest.approx(9 / 6)
    assert draft_ms_per_token([*rounds, round_of(4, draft_ms=99.0, num_fed=128)]) == pytest.approx(9 / 6)
    assert draft_ms_per_token([round_of(0)]) is None


def test_a_recorder_hands_everything_on() -> None:
    recorder = RoundRecorder(Fixed(2, 3))
    view = BatchView((SequenceView(5, 9),))
    assert recorder.plan(view) == recorder.policy.plan(view)
    assert recorder.opening() == 2
    recorder.observe(round_of(1, answered=False))
    assert [record.answered for record in recorder.rounds] == [False]


def test_hits_are_a_share_of_the_outcomes() -> None:
    found = hits(RoundStats(num_hits=15, num_misses=5, num_hit_rounds=4, hit_draft_ms=2.0))
    assert (found.share, found.wait_ms) == (0.75, 0.5)
    assert (hits(RoundStats()).share, hits(RoundStats()).wait_ms) == (0.0, None)


def test_the_bound_hides_all_of_drafting_where_every_proposal_was_at_hand() -> None:
    assert latency_bound(Times(5.0, 10.0, 1.0), 1.0) == pytest.approx(16 / 11)
    assert latency_bound(Times(5.0, 10.0, 1.0), 0.0) == pytest.approx(1.0)
    assert latency_bound(Times(20.0, 10.0, 0.0), 1.0) == pytest.approx(30 / 20)  # drafting is what remains


def test_every_policy_that_chooses_is_made_by_its_name() -> None:
    made = [adaptive(name, PRICES.curves(EXITS), EXITS, 4) for name in ADAPTIVE]
    assert len({type(policy) for policy in made}) == len(ADAPTIVE)


@pytest.mark.parametrize("num_rows", [1, 3, 16])
@pytest.mark.parametrize("length", [1, 4])
def test_curves_say_what_the_prices_come_to(num_rows: int, length: int) -> None:
    curves, num_tokens = PRICES.curves(EXITS), num_rows * (1 + length)
    assert curves.verify_ms(num_rows, num_tokens, 300.0) == pytest.approx(PRICES.verify_ms(num_tokens))
    for exit_ in EXITS:
        each = PRICES.draft_ms([exit_] * num_rows)
        assert curves.draft_ms(num_rows, exit_, length) == pytest.approx(length * each)
