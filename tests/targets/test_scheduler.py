"""Scheduling against its promises, with integers only: no model runs here."""

import random

import pytest

from model.pages import PageLedger
from protocol.plan import BatchView, Plan
from protocol.request import GenerateRequest, SamplingParams, StopRules
from router.policy import Fixed
from targets.scheduler import Schedule, Scheduler, SchedulerConfig
from targets.sequence import Sequence

DEPTH = 2


def sequence(number: int, num_prompt: int, max_tokens: int = 10, max_length: int = 512, priority: int = 0) -> Sequence:
    stop = StopRules(max_tokens)
    request = GenerateRequest(str(number), (7,) * num_prompt, SamplingParams(), stop, priority=priority)
    return Sequence(number, request, max_length)


def scheduler(num_pages: int, page_size: int = 4, **config: int) -> Scheduler:
    return Scheduler(PageLedger(num_pages, page_size), SchedulerConfig(**config))


def planned(sched: Scheduler, length: int = 0) -> Schedule:
    decoding = sched.decoding
    view = BatchView(tuple(member.view(num_unseen=1, drafts=True) for member in decoding))
    return sched.schedule(decoding, Fixed(DEPTH, length).plan(view))


def execute(sched: Scheduler, schedule: Schedule, rng: random.Random) -> None:
    """What the step does to the integers: prefill, accept some drafts at random, and remove what finished."""
    for member, length in zip(schedule.decoding, schedule.plan.lengths, strict=True):
        accepted = rng.randint(0, length)
        member.computed += 1 + accepted
        member.commit([7] * (accepted + 1))
    for member, size in schedule.chunks:
        fresh = member.num_generated == 0
        member.computed += size
        if fresh and member.computed == member.prefill_end:
            member.commit([7])
    for member in [m for m in sched.running if m.finish_reason]:
        sched.remove(member)


@pytest.mark.parametrize("seed", range(60))
def test_everything_finishes_and_every_round_has_its_pages_whatever_the_memory(seed):
    rng = random.Random(seed)
    page_size = rng.choice([1, 4, 16])
    num_pages = -(-rng.randint(30, 120) // page_size)
    capacity = num_pages * page_size
    sched, length = scheduler(num_pages, page_size, max_batch=rng.randint(1, 6), prefill_chunk=9), rng.randint(0, 6)
    ledger = sched._ledger
    ranks = [rng.randint(-1, 1) * (seed % 2) for _ in range(12)]
    sequences = [sequence(n, rng.randint(1, 20), rng.randint(1, 12), capacity, ranks[n]) for n in range(12)]
    for member in sequences:
        sched.add(member)
    for _ in range(2000):
        if not sched.has_work:
            break
        sched.admit()
        schedule = planned(sched, length)
        assert schedule.decoding or schedule.chunks, "a step must make progress"
        assert len(sched.running) <= sched._config.max_batch
        assert sum(size for _, size in schedule.chunks) <= 9
        for member, length in zip(schedule.decoding, schedule.plan.lengths, strict=True):
            assert ledger.capacity(member.id) >= member.computed + length + 1
            assert length <= max(0, member.remaining - 1)
        execute(sched, schedule, rng)
        ledger.check()
    assert all(member.finish_reason for member in sequences)
    assert ledger.num_free == ledger.num_pages


@pytest.mark.parametrize(("num_pages", "lengths"), [(6, (6, 6)), (5, (0, 0)), (2, (0, 0))])
def test_lengths_fall_to_zero_before_anything_is_preempted(num_pages, lengths):
    """Two sequences of 4 tokens, one page each; base + 6 + 1 takes two pages more."""
    sched = scheduler(num_pages, max_batch=2)
    for number in range(2):
        sched.add(sequence(number, 3))
    while len(sched.running) < 2:
        sched.running.append(sched.waiting.pop(0))
        sched._ledger.open(sched.running[-1].id)
        sched._ledger.reserve(sched.running[-1].id, 3)
    execute(sched, planned(sched, 6), random.Random(0))
    schedule = planned(sched, 6)
    assert (schedule.plan.lengths, schedule.num_preempted) == (lengths, 0)
    assert schedule.plan.depth == (DEPTH if any(lengths) else None)


def test_the_youngest_is_preempted_and_comes_back_before_those_that_waited():
    sched = scheduler(num_pages=4, max_batch=3)
    for number in range(3):
        sched.add(sequence(number, 3))
    first = sched.admit()
    assert [m.id for m in first] == [0, 1]
    execute(sched, planned(sched), random.Random(0))
    for _ in range(4):
        schedule = planned(sched)
        execute(sched, schedule, random.Random(0))
    while not schedule.num_preempted:
        schedule = planned(sched)
        execute(sched, schedule, random.Random(0))
    assert [m.id for m in sched.waiting] == [1, 2]
    assert sched.waiting[0].computed == 0
    assert sched.waiting[0].num_generated > 0


def test_prefills_take_the_token_budget_oldest_first_and_a_half_of_it_shortest_first():
    sched = scheduler(num_pages=64, prefill_chunk=10)
    for number, size in enumerate((6, 9, 5)):
        sched.add(sequence(number, size))
    sched.admit()
    assert [(m.id, size) for m, size in planned(sched).chunks] == [(0, 5), (2, 5)]


def test_a_short_prompt_does_not_wait_for_fifteen_long_ones_and_the_oldest_keeps_its_pace():
    sched = scheduler(num_pages=2000, prefill_chunk=64)
    for number in range(15):
        sched.add(sequence(number, 300))
    sched.add(sequence(15, 40))
    sched.admit()
    ended = {}
    for step in range(200):
        schedule = planned(sched)
        before = {member.id for member in sched.running if member.num_generated}
        execute(sched, schedule, random.Random(0))
        ended |= {m.id: step for m in sched.running if m.num_generated and m.id not in before}
        if len(ended) == 16:
            break
    assert ended[15] <= 40 // 32, "a half of 64 tokens a step is its own"
    assert ended[0] <= 300 // 32, "the other half is the oldest's"
    assert sorted(ended, key=ended.__getitem__)[:2] == [15, 0]


@pytest.mark.parametrize("seed", range(50))
def test_chunks_spend_the_whole_budget_where_there_is_that_much_to_read(seed):
    rng = random.Random(seed)
    sched = scheduler(num_pages=4000, prefill_chunk=rng.randint(1, 80))
    for number in range(rng.randint(1, 12)):
        sched.add(sequence(number, rng.randint(1, 60), max_length=4000))
    sched.admit()
    taken = {m.id: size for m, size in planned(sched).chunks}
    wanted = {member.id: member.prefill_end for member in sched.running}
    assert sum(taken.values()) == min(sched._config.prefill_chunk, sum(wanted.values()))
    assert all(0 < size <= wanted[number] for number, size in taken.items())


def test_a_plan_loses_the_rows_that_are_preempted_and_its_drafts_when_pages_are_short():
    sched = scheduler(num_pages=4, max_batch=2)
    for number in range(2):
        sched.add(sequence(number, 3))
    sched.admit()
    execute(sched, planned(sched), random.Random(0))
    decoding = sched.decoding
    plan = Plan(DEPTH, (40, 2), own=(None, 4), stop_probability=0.5)
    assert sched.schedule(decoding, plan).plan == Plan(None, (0, 0), own=plan.own, stop_probability=0.5)
    while len(sched.running) == 2:
        decoding = sched.decoding
        schedule = sched.schedule(decoding, Plan(None, (0, 0)))
        execute(sched, schedule, random.Random(0))
    assert schedule.plan == Plan(None, (0,))
