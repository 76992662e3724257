"""The choice of a head's size against an enumeration of everything that can happen in a round."""

from __future__ import annotations

import random
from itertools import product
from math import prod

import pytest

from drafters.trim_choice import Head, Prediction, TrimCosts, fastest, predict


def random_costs(seed: int) -> TrimCosts:
    rng = random.Random(seed)
    coverages = sorted(rng.uniform(0.3, 1.0) for _ in range(4))
    heads = tuple(Head(1000 << at, share, rng.uniform(0, 0.3) * 2**at) for at, share in enumerate(coverages))
    verify = sorted(rng.uniform(5, 20) for _ in range(rng.randint(2, 7)))
    return TrimCosts(heads, rng.uniform(0.1, 5), rng.uniform(0, 1), tuple(verify))


def enumerated_speed(costs: TrimCosts, head: Head, length: int) -> float:
    """Tokens over time, every way in which drafted tokens turn out right or wrong weighed by its probability."""
    right = costs.acceptance * head.coverage
    tokens = 0.0
    for outcome in product((True, False), repeat=length):
        accepted = (*outcome, False).index(False)
        tokens += prod(right if own else 1 - right for own in outcome) * (accepted + 1)
    ms = sum(costs.layers_ms + head.ms for _ in range(length)) + costs.verify_ms[length]
    return 1000 * tokens / ms


@pytest.mark.parametrize("seed", range(30))
def test_the_fastest_size_and_length_are_those_of_all_rounds_enumerated(seed: int) -> None:
    costs = random_costs(seed)
    speeds = {
        (head, length): enumerated_speed(costs, head, length)
        for head, length in product(costs.heads, range(1, len(costs.verify_ms)))
    }
    predictions = predict(costs)
    for head, prediction in zip(costs.heads, predictions, strict=True):
        own = {length: speed for (size, length), speed in speeds.items() if size is head}
        assert (prediction.head, prediction.length) == (head, max(own, key=lambda length: own[length]))
        assert prediction.tokens_per_s == pytest.approx(max(own.values()))
    best = fastest(predictions)
    assert (best.head, best.length) == max(speeds, key=lambda key: speeds[key])


def test_of_equals_the_smallest_head_is_chosen() -> None:
    costs = TrimCosts((Head(10, 1.0, 0.5), Head(20, 1.0, 0.5)), 1.0, 0.7, (5.0, 6.0))
    assert fastest(predict(costs)).head.size == 10


def test_a_small_head_wins_by_time_and_loses_by_what_it_lacks() -> None:
    def chosen(coverage: float) -> Prediction:
        return fastest(predict(TrimCosts((Head(10, coverage, 0.1), Head(99, 1.0, 1.0)), 1.0, 0.7, (9.0, 9.0, 9.0))))

    assert (chosen(0.99).head.size, chosen(0.5).head.size) == (10, 99)
