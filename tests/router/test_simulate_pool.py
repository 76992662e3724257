"""The simulated pool against a loop that knows no events, and its prices against the curves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

import pytest

from router.simulate_acceptance import Draft
from router.simulate_costs import PoolTables, TargetTables
from router.simulate_jobs import Job, Resident, Round
from router.simulate_pool import Device, Loop, PoolRules, Replica
from tests.router.curves import curves, draft_cost

EXITS = (2, 4, 6)
BASE = 100


@dataclass
class Asked:
    """lengths: of the drafts of its rows."""

    at_ms: float
    lengths: list[int]
    finished: float = field(default=0.0)
    wait_ms: float = field(default=0.0)


def replica(loop: Loop, rules: PoolRules | None = None) -> Replica:
    return Replica(loop, Device(loop), PoolTables(curves(), EXITS), len(EXITS), rules or PoolRules(), lambda: 1.0)


def settled(base: int = BASE) -> Resident:
    resident = Resident(len(EXITS), base)
    resident.settled = [base - 1] * len(EXITS)
    return resident


def row(round_: Round, length: int, exit_: int = 1, resident: Resident | None = None, told: range | None = None) -> Job:
    return Job(round_, resident or settled(), exit_, Draft([exit_] * length, [0.5] * length, length), told)


def submit(loop: Loop, pool: Replica, asked: Asked, first_key: int) -> None:
    def answered() -> None:
        asked.finished, asked.wait_ms = loop.now, round_.wait_ms

    round_ = Round(answered)
    jobs = [(first_key + index, row(round_, length)) for index, length in enumerate(asked.lengths)]
    loop.at(asked.at_ms, lambda: pool.submit(round_, jobs))


def plainly(rounds: list[Asked], ahead: int) -> list[tuple[float, float]]:
    """When each round is finished, and how long it waited: pass after pass, with all rows that are there."""
    now, left = 0.0, [list(one.lengths) for one in rounds]
    began: list[float | None] = [None] * len(rounds)
    finished = [0.0] * len(rounds)
    while any(map(sum, left)):
        present = [i for i, one in enumerate(rounds) if one.at_ms <= now and sum(left[i])]
        if not present:
            now = min(one.at_ms for i, one in enumerate(rounds) if sum(left[i]))
            continue
        began = [now if i in present and at is None else at for i, at in enumerate(began)]
        for _ in range(ahead):
            drafting = [(i, j) for i in present for j, length in enumerate(left[i]) if length]
            now += draft_cost(len(drafting), EXITS[1], 1) if drafting else 0.0
            for i, j in drafting:
                left[i][j] -= 1
        for i in present:
            if not sum(left[i]):
                finished[i] = now
    return [(end, (start or 0.0) - one.at_ms) for end, start, one in zip(finished, began, rounds, strict=True)]


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_rounds_share_passes_as_in_a_loop_that_runs_one_pass_after_the_other(ahead: int) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        rounds = [
            Asked(rng.uniform(0, 12), [rng.randint(1, 11) for _ in range(rng.randint(1, 4))])
            for _ in range(rng.randint(1, 8))
        ]
        loop = Loop()
        pool = replica(loop, PoolRules(ahead=ahead))
        for number, asked in enumerate(rounds):
            submit(loop, pool, asked, 10 * number)
        loop.run()
        expected = plainly(rounds, ahead)
        assert [one.finished for one in rounds] == pytest.approx([end for end, _ in expected])
        assert [one.wait_ms for one in rounds] == pytest.approx([wait for _, wait in expected])
        assert pool.busy_ms == pytest.approx(pool.device.busy_ms)


def test_a_device_does_one_thing_after_the_other_in_the_order_of_asking() -> None:
    loop, done = Loop(), []
    device = Device(loop)
    for name, at, ms in (("a", 0.0, 5.0), ("b", 1.0, 2.0), ("c", 0.5, 1.0), ("d", 20.0, 1.0)):
        loop.at(at, lambda name=name, ms=ms: device.ask(lambda: ms, lambda: done.append((name, loop.now))))
    loop.run()
    assert done == [("a", 5.0), ("c", 6.0), ("b", 8.0), ("d", 21.0)]
    assert device.busy_ms == 9.0


def test_a_round_of_one_depth_costs_what_the_curve_says() -> None:
    one = curves()
    for exit_, depth in enumerate(EXITS):
        for lengths in ([4], [1, 1, 1], [5, 5], [8] * 8):
            loop, ended = Loop(), []
            pool = replica(loop)
            round_ = Round(lambda loop=loop, ended=ended: ended.append(loop.now))
            pool.submit(round_, [(key, row(round_, length, exit_)) for key, length in enumerate(lengths)])
            loop.run()
            assert ended == [pytest.approx(one.draft_ms(len(lengths), depth, lengths[0]))]


def test_rows_of_several_depths_pay_for_the_layers_that_they_share_once() -> None:
    loop = Loop()
    pool, round_ = replica(loop), Round(None)
    pool.submit(round_, [(0, row(round_, 1, 0)), (1, row(round_, 1, 0)), (2, row(round_, 1, 2))])
    loop.run()
    assert pool.busy_ms == pytest.approx(draft_cost(3, 2, 1) + draft_cost(1, 6, 1) - draft_cost(1, 2, 1))


def test_a_context_is_settled_in_chunks_that_share_a_budget_and_a_draft_waits_for_its_own() -> None:
    loop, ended = Loop(), []
    pool = replica(loop, PoolRules(prefill_tokens=64))
    handed, drafted = Resident(len(EXITS), 151), Resident(len(EXITS), 41)
    opened, asked = Round(None), Round(lambda: ended.append(pool.num_passes))
    pool.submit(opened, [(0, row(opened, 0, 1, handed))])
    pool.submit(asked, [(1, row(asked, 2, 2, drafted))])
    loop.run()
    assert pool.num_passes == 3, "the one that began at once, and 150 + 40 - 64 positions in two more"
    assert ended == [3]
    assert handed.settled == [150, 150, 0]
    assert drafted.settled == [42, 42, 42]


def test_a_probe_has_a_pass_of_its_own_and_never_two_in_a_row_while_others_draft() -> None:
    loop, ended = Loop(), []
    pool = replica(loop)
    for key, told in enumerate((range(90, 100), range(95, 100), None)):
        round_ = Round(lambda key=key: ended.append((key, pool.num_passes)))
        pool.submit(round_, [(key, row(round_, 2, told=told))])
    loop.run()
    assert ended == [(0, 2), (2, 2), (1, 4)], "probe 0, draft 0 and 2, probe 1, draft 1"


def test_a_probe_with_nothing_to_tell_is_answered_at_once_and_its_context_settled_afterwards() -> None:
    loop, ended = Loop(), []
    pool, resident = replica(loop), Resident(len(EXITS), 41)
    round_ = Round(lambda: ended.append(loop.now))
    pool.submit(round_, [(0, row(round_, 0, 1, resident, range(0)))])
    loop.run()
    assert ended == [0.0]
    assert (resident.settled, pool.num_passes) == ([40, 40, 0], 1)


def test_a_message_about_the_same_sequence_replaces_the_one_before() -> None:
    loop, ended = Loop(), []
    pool = replica(loop)
    resident = settled()
    first, second = Round(lambda: ended.append("first")), Round(lambda: ended.append("second"))
    pool.submit(first, [(0, row(first, 20, resident=resident))])
    loop.at(0.1, lambda: pool.submit(second, [(0, row(second, 1, resident=resident))]))
    loop.run()
    assert ended == ["second"]


def test_what_was_drafted_right_needs_no_feeding_and_what_was_wrong_does() -> None:
    resident = settled()
    resident.take_over(BASE, Draft([1] * 4, [0.5] * 4, run=2))
    resident.settled = [BASE + 3, BASE + 3, 0]
    resident.take_over(BASE + 3, None)
    assert resident.settled == [BASE + 2, BASE + 2, 0], "two were right, the third is the target's correction"
    resident = settled()
    resident.take_over(BASE, Draft([1] * 4, [0.5] * 4, run=4))
    resident.settled = [BASE + 3, BASE + 3, 0]
    resident.take_over(BASE + 5, None)
    assert resident.settled == [BASE + 3, BASE + 3, 0], "the last drafted token was never fed, nor was the bonus"
    assert resident.untold(64) == range(BASE, BASE + 5)
    assert resident.untold(2) == range(BASE + 3, BASE + 5)


def test_prices_are_read_off_the_curves() -> None:
    one = curves(overhead=0.3, link=0.2)
    tables, pool = TargetTables(one), PoolTables(one, EXITS)
    rng = random.Random(4)
    for _ in range(200):
        rows = rng.randint(1, 40)
        tokens, context = rows + rng.randint(0, 10 * rows), rng.uniform(1, 3000)
        assert tables.verify_ms(rows, tokens, context) == pytest.approx(one.verify_ms(rows, tokens, context))
        assert tables.overhead_ms(rows) == pytest.approx(one.overhead_ms(rows))
        assert pool.link_ms(rows) == pytest.approx(one.link_ms(rows))
    sizes = [rng.randint(1, 300) for _ in range(5)]
    chunks = [tables.chunk_ms(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(5)]
    assert tables.fixed_ms + sum(chunks) == pytest.approx(one.prefill_ms(sum(sizes)))


def test_a_device_is_slower_for_as_long_as_its_neighbour_is_busy() -> None:
    """10 ms of work, 4 ms of which pass beside the other's, at half the pace; that takes 3 ms by itself."""
    loop, ended = Loop(), {}
    one, other = Device(loop, beside=2.0), Device(loop, beside=4 / 3)
    one.neighbours.append(other)
    other.neighbours.append(one)
    one.ask(lambda: 10.0, lambda: ended.update(one=loop.now))
    loop.at(5.0, lambda: other.ask(lambda: 3.0, lambda: ended.update(other=loop.now)))
    loop.run()
    assert ended == {"other": pytest.approx(9.0), "one": pytest.approx(12.0)}
    assert (one.busy_ms, other.busy_ms) == pytest.approx((12.0, 4.0))


@pytest.mark.parametrize("seed", range(4))
def test_two_neighbours_take_what_small_steps_of_time_say(seed: int) -> None:
    rng, beside = random.Random(seed), (1.5, 2.5)
    work = [[(4.0 * at + rng.uniform(0, 2), rng.uniform(0.5, 4)) for at in range(8)] for _ in beside]
    loop = Loop()
    ends: tuple[list[float], list[float]] = ([], [])
    devices = [Device(loop, own) for own in beside]
    for number, (device, own) in enumerate(zip(devices, work, strict=True)):
        device.neighbours.append(devices[1 - number])
        for at, ms in own:
            loop.at(at, partial(device.ask, partial(float, ms), partial(_note, ends[number], loop)))
    loop.run()
    for found, expected in zip(ends, in_steps(work, beside, step=1e-3), strict=True):
        assert found == pytest.approx(expected, abs=0.05)


def _note(ends: list[float], loop: Loop) -> None:
    ends.append(loop.now)


def in_steps(work: list[list[tuple[float, float]]], beside: tuple[float, float], step: float) -> list[list[float]]:
    """When each piece of work of two neighbours ends, its own time and its milliseconds given."""
    left, ends, now = [list(own) for own in work], [[], []], 0.0
    while any(left):
        busy = [bool(own) and own[0][0] <= now for own in left]
        now += step
        for number, own in enumerate(left):
            if busy[number]:
                at, ms = own[0]
                ms -= step / (beside[number] if busy[1 - number] else 1.0)
                own[:1] = [(at, ms)] if ms > 0 else []
                ends[number] += [] if ms > 0 else [now]
    return ends
