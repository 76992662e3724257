"""Who is in which lane, and what a plan says of a lane that has changed since."""

from __future__ import annotations

import random

import pytest

from protocol.plan import DepthRule, Plan
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.lanes import halves, realigned
from targets.sequence import Sequence as Decoding

DEEP, SHALLOW = DepthRule((4,)), DepthRule((3,))


def sequences(count: int) -> list[Decoding]:
    return [
        Decoding(index, GenerateRequest(str(index), (1, 2), SamplingParams(), StopRules(9)), 64)
        for index in range(count)
    ]


@pytest.mark.parametrize("seed", range(50))
def test_halves_are_even_keep_the_order_and_leave_who_is_drafted_for_where_he_is(seed: int) -> None:
    rng = random.Random(seed)
    batch = sequences(rng.randint(1, 9))
    flying = {one.id for one in batch if rng.random() < rng.choice([0.0, 0.3, 0.5, 0.9])}
    ready, other = halves(batch, flying | {99})
    assert sorted([*ready, *other], key=lambda one: one.id) == batch
    assert ready == sorted(ready, key=lambda one: one.id)
    assert other == sorted(other, key=lambda one: one.id)
    assert flying <= {one.id for one in ready}
    moved = [one.id for one in ready if one.id not in flying]
    assert not moved or moved[0] > max((one.id for one in other), default=-1)
    assert len(other) - len(ready) <= 1
    assert not moved or len(other) >= len(ready)


@pytest.mark.parametrize("seed", range(50))
def test_a_plan_for_other_rows_says_of_each_what_it_said_before(seed: int) -> None:
    rng = random.Random(seed)
    before = rng.sample(range(12), rng.randint(1, 6))
    now = rng.sample(range(12), rng.randint(0, 6))
    own = tuple(rng.choice([None, SHALLOW]) for _ in before) if rng.random() < 0.5 else ()
    lengths = tuple(rng.randint(0, 5) for _ in before)
    probes = tuple(index for index in range(len(before)) if rng.random() < 0.3)
    plan = realigned(Plan(DEEP, lengths, own, 0.2, probes), before, now)
    assert plan.floor == 0.2
    for row, sequence_id in enumerate(now):
        place = before.index(sequence_id) if sequence_id in before else None
        assert plan.lengths[row] == (0 if place is None else lengths[place])
        assert (row in plan.probes) is (place in probes)
        assert not own or plan.own[row] == (None if place is None else own[place])
