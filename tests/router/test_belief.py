"""What rounds teach, with records made by hand and by games."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from protocol.plan import Mode, Plan
from protocol.record import Origin, RoundRecord, RowRecord
from router.belief import DRAFT, PART, PLAIN, REST, WIDE, Belief, learn, prior
from router.filters import Filter, sigmoid
from router.policy import Fixed, Off, Policy
from router.seen import Seen, exit_of
from router.tables import tables
from tests.router.game import Game, Luck, Truth
from tests.router.worlds import world

LARGE = world("large")
COSTS = tables(LARGE.curves, LARGE.exits, 12, 32)
WRONG = {"plain": 1.1, "wide": 1.1, "rest": 1.3, "draft 4": 1.4}


def record(depth: int, *fates: tuple[int, int], mode: Mode = Mode.IN_TURN, **changes: object) -> RoundRecord:
    """fates: proposed and accepted tokens of each row, of 4 that were planned."""
    rule = depth
    rows = [
        RowRecord(at, proposed, accepted, Origin.FRESH, rule, 4, (0.7,) * proposed, 1)
        for at, (proposed, accepted) in enumerate(fates)
    ]
    committed = len(rows) + sum(accepted for _, accepted in fates)
    made = RoundRecord(1, Plan(rule, (4,) * len(rows), mode=mode), tuple(rows), 300.0, committed)
    times = {"planned_s": 0.001, "drafted_s": 0.002, "verified_s": 0.005, "ended_s": 0.005}
    return replace(made, **(times | changes))  # type: ignore[arg-type]


def after(belief: Belief, records: Sequence[RoundRecord]) -> Belief:
    """What these rounds teach; those that are alike and follow each other, together."""
    seen: Seen | None = None
    for made in records:
        if seen is None or not seen.takes(made, COSTS):
            belief = belief if seen is None else learn(belief, COSTS, seen)
            seen = Seen(len(made.rows), made.plan.mode, exit_of(made, COSTS))
        seen.add(made, COSTS)
    return belief if seen is None else learn(belief, COSTS, seen)


def learned(policy: Policy, rounds: int = 200, **game: object) -> Belief:
    rng = np.random.default_rng(0)
    played = Game(policy, Truth(LARGE, WRONG), Luck(LARGE, 4, 1), lambda turn: "code", 4, rng, **game)  # type: ignore[arg-type]
    played.play(rounds)
    belief = prior(COSTS)
    for first in range(0, rounds, 4):
        belief = after(belief, played.records[first : first + 4])
    return belief


def at(belief: Belief, num_rows: int) -> Filter:
    """What is believed of times in a batch of this size."""
    return belief.cost[COSTS.size(num_rows)]


def test_the_acceptance_rate_of_an_exit_is_learned_and_draws_the_others_along() -> None:
    belief = learned(Fixed(4, 4))
    rates = [sigmoid(odds) for odds in belief.accept.values]
    assert rates[1] == pytest.approx(0.83, abs=0.03)
    assert rates[0] > sigmoid(prior(COSTS).accept.value(0))
    assert belief.accept.doubt(1) < belief.accept.doubt(0)


def test_what_parts_take_beyond_their_profile_is_learned() -> None:
    ratios = np.exp(learned(Fixed(4, 4), noise=0.05).cost[COSTS.size(4)].values)
    assert [ratios[WIDE], ratios[REST], ratios[DRAFT]] == pytest.approx([1.1, 1.3, 1.4], rel=0.07)
    assert math.exp(at(learned(Off()), 4).value(PLAIN)) == pytest.approx(1.1, rel=0.05)


def test_how_often_drafts_go_on_is_learned_from_those_that_ended_early() -> None:
    whole, early = record(2, (4, 4), (4, 1)), record(2, (2, 2), (1, 0))
    assert after(prior(COSTS), [whole] * 50).goes_on == 1.0
    belief = after(prior(COSTS), [whole, early] * 500)
    assert belief.goes_on == pytest.approx(7 / 9, abs=0.02)  # 3 + 3 + 1 + 0 went on; 2 ended
    assert belief.goes_on_right == pytest.approx(5 / 6, abs=0.02)  # 3 + 1 + 1 + 0 behind an accepted one; 1 ended


def test_prompts_that_ride_along_teach_no_times_but_tokens() -> None:
    belief = after(prior(COSTS), [record(2, (4, 4), num_prefill_tokens=100)])
    assert at(belief, 1).means == pytest.approx(at(prior(COSTS), 1).means)
    assert belief.accept.value(0) > prior(COSTS).accept.value(0)


@pytest.mark.parametrize("changed", [{"num_fed": 100}, {"origin": Origin.AHEAD}])
def test_drafts_that_catch_up_or_were_at_hand_teach_no_drafting_times(changed: dict[str, object]) -> None:
    made = record(2, (4, 4))
    rows = tuple(replace(row, **changed) for row in made.rows)  # type: ignore[arg-type]
    belief = after(prior(COSTS), [replace(made, rows=rows)])
    assert at(belief, 1).variances[1 + DRAFT] == pytest.approx(PART**2)


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_the_first_draft_behind_branches_waits_for_them_and_teaches_no_drafting_times(num_rounds: int) -> None:
    whole = (COSTS.link[1] + COSTS.draft_ms(0, [4])) / 1e3
    slow, usual = (record(2, (4, 4), drafted_s=0.001 + ms, verified_s=0.001 + ms + 0.004) for ms in (5 * whole, whole))
    busy, idle = Seen(1, exit=0, busy=True), Seen(1, exit=0)
    for made in (slow, *[usual] * (num_rounds - 1)):
        busy.add(made, COSTS)
        idle.add(made, COSTS)
    assert (busy.num_drafts, idle.num_drafts, busy.right) == (num_rounds - 1, num_rounds, 4 * num_rounds)
    told, misled = (learn(prior(COSTS), COSTS, seen) for seen in (busy, idle))
    assert at(told, 1).value(DRAFT) < at(misled, 1).value(DRAFT)


def test_exits_of_another_drafter_teach_nothing_and_harm_nothing() -> None:
    belief = after(prior(COSTS), [record(3, (4, 2))])
    assert belief.accept.means == pytest.approx(prior(COSTS).accept.means, abs=0.01)
    assert after(belief, []) is belief


def test_layers_lag_by_what_was_committed_since_they_ran() -> None:
    belief = after(prior(COSTS), [record(6, (4, 1)), record(2, (4, 2)), record(2, (4, 0))])
    assert belief.lags == (1.0, 6.0, 6.0)


def test_while_off_deeper_layers_lag_further_and_what_the_first_exit_lacks_a_view_says() -> None:
    off = replace(record(2, (0, 0)), plan=Plan(None, (0,)))
    assert after(prior(COSTS), [record(2, (4, 2)), off, off]).lags == (3.0, 6.0, 6.0)


def test_deeper_layers_lack_the_contexts_that_shallower_ones_have_read() -> None:
    read = record(2, (4, 1))
    read = replace(read, rows=(replace(read.rows[0], num_fed=200),))
    assert after(prior(COSTS), [read]).lags == (2.0, 202.0, 202.0)


def test_what_a_pass_takes_in_one_size_of_batch_is_not_believed_of_another() -> None:
    """At one row passes with drafts take as profiled, at eight twice as long."""
    records = []
    for num_rows, slower in ((1, 1.0), (8, 2.0)):
        times = [COSTS.rest[num_rows], COSTS.link[num_rows] + COSTS.draft_ms(0, [4] * num_rows)]
        times.append(slower * COSTS.verify_ms(num_rows, 5 * num_rows, 300.0))
        planned, drafted, verified = (np.cumsum(times) / 1e3).tolist()
        moments = {"planned_s": planned, "drafted_s": drafted, "verified_s": verified}
        records.append(record(2, *[(4, 2)] * num_rows, **moments))
    belief = prior(COSTS)
    for _ in range(30):
        belief = after(belief, records)
    assert math.exp(at(belief, 1).value(WIDE)) == pytest.approx(1.0, abs=0.05)
    assert math.exp(at(belief, 7).value(WIDE)) == pytest.approx(2.0, abs=0.1)


def test_the_wait_at_the_pool_is_followed_and_is_no_drafting_time() -> None:
    made = record(2, (4, 4), drafted_s=0.0045, verified_s=0.0075, wait_ms=2.5)
    same = record(2, (4, 4))
    belief, plain = after(prior(COSTS), [made] * 20), after(prior(COSTS), [same] * 20)
    assert belief.wait_ms == pytest.approx(2.5, abs=0.1)
    assert at(belief, 1).value(DRAFT) == pytest.approx(at(plain, 1).value(DRAFT), abs=0.02)


def ahead(share: float, length: int, *fates: tuple[int, int]) -> list[RoundRecord]:
    """Rounds that take as profiled, of whose drafts so much is waited for."""
    draft_ms = COSTS.link[len(fates)] + COSTS.draft_ms(0, [drafted for drafted, _ in fates])
    pass_ms = COSTS.verify_ms(len(fates), len(fates) + sum(drafted for drafted, _ in fates), 300.0)
    times = COSTS.rest[len(fates)], share * draft_ms, pass_ms
    planned, drafted, verified = (np.cumsum(times) / 1e3).tolist()
    made = record(2, *fates, mode=Mode.AHEAD, planned_s=planned, drafted_s=drafted, verified_s=verified)
    return [replace(made, plan=replace(made.plan, lengths=(length,) * len(fates)))] * 4


def learned_ahead(rounds: list[RoundRecord]) -> list[float]:
    belief = prior(COSTS)
    for _ in range(15):
        belief = after(belief, rounds)
    return belief.ahead.values


def test_how_many_rows_are_served_ahead_and_what_is_waited_for_is_learned() -> None:
    assert learned_ahead(ahead(0.0, 4, (4, 4), (4, 1))) == pytest.approx([1.0, 0.0], abs=0.12)
    for share in (1.0, 2.0):
        assert learned_ahead(ahead(share, 4, (4, 4), (0, 0))) == pytest.approx([0.5, share], abs=0.12)


def test_a_row_that_reads_its_context_hides_nothing_of_the_others_and_is_none_of_them() -> None:
    rounds = ahead(1.0, 4, (4, 4), (0, 0), (0, 0))
    rows = rounds[0].rows
    reads = [replace(one, rows=(*rows[:2], replace(rows[2], num_fed=200))) for one in rounds]
    assert learned_ahead(reads)[0] == pytest.approx(0.5, abs=0.12)


def test_a_draft_that_ended_early_hid_no_more_than_itself() -> None:
    """Of eight tokens planned, two were drafted, and waited for."""
    assert learned_ahead(ahead(1.0, 8, (2, 1)))[1] == pytest.approx(1.0, abs=0.12)


def test_python_that_takes_longer_beside_drafts_says_nothing_of_passes() -> None:
    belief, plain, wide = prior(COSTS), COSTS.verify_ms(1, 1, 300.0), COSTS.verify_ms(1, 3, 300.0)
    off = Seen(1, timed=4, num_rounds=4, rest_ms=4 * COSTS.rest[1])
    off.plain.num_rounds, off.plain.ms, off.plain.num_tokens, off.plain.context = 4, 4 * 1.15 * plain, 4, 1200.0
    ahead = Seen(1, Mode.AHEAD, 0, timed=4, num_rounds=4, rest_ms=4 * 2.6 * COSTS.rest[1])
    ahead.wide.num_rounds, ahead.wide.ms, ahead.wide.num_tokens = 4, 4 * 1.4 * wide, 12
    ahead.wide.context = 1200.0
    for seen in [off] * 100 + [ahead] * 300:
        belief = learn(belief, COSTS, seen)
    ratios = np.exp(at(belief, 1).values)
    assert ratios[PLAIN] == pytest.approx(1.15, abs=0.1)
    assert ratios[REST] == pytest.approx(2.6, abs=0.2)
    assert ratios[WIDE + 1] == pytest.approx(1.4, abs=0.1)


def test_what_is_known_of_drafting_ahead_fades_while_rounds_are_in_turn() -> None:
    slow = Seen(
        1, Mode.AHEAD, 0, num_rounds=40, num_drafts=40, served=20, planned=40, waited_ms=400.0, drafted_ms=400.0
    )
    slow.wide.num_rounds, slow.wide.ms, slow.wide.num_tokens, slow.wide.context = 40, 400.0, 120, 12000.0
    belief = learn(prior(COSTS), COSTS, slow)
    served, waited = belief.ahead.values
    doubts = [belief.ahead.doubt(0), belief.ahead.doubt(1)]
    assert served < 0.6
    assert waited > 0.7
    for _ in range(300):
        belief = learn(belief, COSTS, Seen(1, Mode.IN_TURN, 0, num_rounds=10))
    assert belief.ahead.values == pytest.approx(prior(COSTS).ahead.values, abs=0.06)
    assert all(now > then for now, then in zip([belief.ahead.doubt(0), belief.ahead.doubt(1)], doubts, strict=True))
