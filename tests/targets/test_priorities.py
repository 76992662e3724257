"""Who is admitted first and preempted last: by priority, then by arrival."""

from __future__ import annotations

import random

import pytest

from model.pages import PageLedger
from protocol.plan import Plan
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.scheduler import Schedule, Scheduler, SchedulerConfig
from targets.sequence import Sequence


def sequence(number: int, priority: int, num_prompt: int = 3, resumed: int = 0) -> Sequence:
    request = GenerateRequest(
        str(number),
        (7,) * num_prompt,
        SamplingParams(),
        StopRules(100),
        resume_ids=(7,) * resumed,
        priority=priority,
    )
    return Sequence(number, request, 512)


def scheduler(num_pages: int = 1000, **config: int) -> Scheduler:
    return Scheduler(PageLedger(num_pages, 4), SchedulerConfig(**config))


def plain_round(sched: Scheduler) -> Schedule:
    decoding = sched.decoding
    schedule = sched.schedule(decoding, Plan(None, (0,) * len(decoding)))
    for member in schedule.decoding:
        member.computed += 1
        member.commit([7])
    for member, size in schedule.chunks:
        ends = member.gives_first(size)
        member.computed += size
        if ends:
            member.commit([7])
    return schedule


def ids(sequences: list[Sequence]) -> list[int]:
    return [member.id for member in sequences]


@pytest.mark.parametrize("seed", range(50))
def test_turns_come_by_priority_then_to_those_that_have_begun_then_by_arrival(seed: int) -> None:
    rng = random.Random(seed)
    sched, made = scheduler(max_batch=1), []
    for number in range(12):
        made.append(sequence(number, rng.randint(-1, 1), resumed=rng.choice([0, 0, 2])))
        sched.add(made[-1])
    turns = []
    while sched.waiting:
        (admitted,) = sched.admit()
        turns.append(admitted.id)
        sched.remove(admitted)
    wanted = sorted(made, key=lambda one: (one.request.priority, not one.request.resume_ids, one.id))
    assert turns == ids(wanted)


def test_one_that_comes_later_with_a_lower_number_goes_first() -> None:
    sched = scheduler(max_batch=1)
    for number, priority in enumerate((0, 5, 0, -5)):
        sched.add(sequence(number, priority))
    assert ids(sched.waiting) == [3, 0, 2, 1]


def test_the_youngest_of_the_lowest_priority_is_preempted_and_nobody_of_a_higher_one() -> None:
    """Six pages for four sequences that want two each in the end."""
    sched = scheduler(num_pages=6, max_batch=4)
    for number, priority in enumerate((2, 0, 2, 1)):
        sched.add(sequence(number, priority))
    sched.admit()
    assert ids(sched.running) == [1, 3, 0]
    sched.admit()
    preempted = list[int]()
    for _ in range(12):
        before = set(ids(sched.running))
        plain_round(sched)
        preempted += sorted(before - set(ids(sched.running)))
    assert preempted == [0, 3], "the last by rank first, the first never"
    assert ids(sched.waiting) == [3, 0, 2], "one that has begun waits before another of its priority"


@pytest.mark.parametrize("seed", range(40))
def test_no_sequence_is_preempted_while_one_of_lower_rank_runs(seed: int) -> None:
    rng = random.Random(seed)
    sched = scheduler(num_pages=rng.randint(8, 20), max_batch=rng.randint(2, 6), prefill_chunk=9)
    coming = [sequence(number, rng.randint(-2, 2), rng.randint(1, 8)) for number in range(10)]
    for _ in range(60):
        if coming and rng.random() < 0.5:
            sched.add(coming.pop(0))
        sched.admit()
        if not sched.running:
            continue
        before = list(sched.running)
        plain_round(sched)
        gone = [member for member in before if member not in sched.running]
        assert before == sched.running + gone, "the running ones stand by rank, and the last ones go"
        sched._ledger.check()


def test_prompts_of_a_higher_priority_are_read_first() -> None:
    sched = scheduler(prefill_chunk=8)
    for number, priority in enumerate((1, 0)):
        sched.add(sequence(number, priority, num_prompt=20))
    sched.admit()
    taken = {member.id: size for member, size in plain_round(sched).chunks}
    assert taken[1] >= 6, "all but the share of the shortest"
