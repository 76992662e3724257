"""Probes: paid for from a share of the time, and asked of sequences that have something to tell."""

from __future__ import annotations

import random

import pytest

from protocol.plan import SequenceView
from router.probing import FIRST, Probing


def sequence(
    number: int, num_tokens: int, num_unseen: int = 1, remaining: int = 50, drafts: bool = True
) -> SequenceView:
    return SequenceView(num_tokens, remaining, number, num_unseen, drafts)


@pytest.mark.parametrize("seed", range(5))
def test_probes_take_no_more_than_their_share_whatever_they_turn_out_to_cost(seed: int) -> None:
    rng = random.Random(seed)
    probing = Probing(share=0.01, tokens=8, cost_ms=1.0)
    spent, passed, num_tokens = 0.0, 0.0, 100
    for _ in range(20_000):
        num_tokens += 3
        if probing.choose([sequence(0, num_tokens)]):
            cost = rng.uniform(0.5, 8.0)
            probing.pay(cost)
            spent += cost
        probing.earn(2.0)
        passed += 2.0
    assert 0.005 < spent / passed < 0.0115 + FIRST / passed


def test_without_a_share_nobody_is_asked() -> None:
    probing = Probing(share=0.0, tokens=8, cost_ms=1.0)
    probing.earn(1e9)
    assert probing.choose([sequence(0, 100)]) == ()


def test_the_sequence_with_the_most_to_tell_for_its_length_is_asked() -> None:
    probing = Probing(share=0.01, tokens=8, cost_ms=1.0)
    assert probing.choose([sequence(0, 100), sequence(1, 1000)]) == ()
    assert probing.choose([sequence(0, 120), sequence(1, 1030)]) == (0,)
    assert probing.choose([sequence(0, 121), sequence(1, 1031)]) == (1,)


def test_a_sequence_that_the_pool_has_never_seen_is_asked_only_where_it_knows_none() -> None:
    probing = Probing(share=0.01, tokens=8, cost_ms=1.0)
    known, unknown = sequence(0, 100), sequence(1, 50, num_unseen=50, remaining=90)
    assert probing.choose([known, unknown]) == ()
    assert probing.choose([unknown]) == (0,)
    assert probing.choose([sequence(1, 54, num_unseen=4)]) == ()
    assert probing.choose([sequence(1, 60, num_unseen=10)]) == (0,)


def test_sequences_that_the_pool_will_not_serve_are_not_asked() -> None:
    probing = Probing(share=0.01, tokens=8, cost_ms=1.0)
    assert probing.choose([sequence(0, 50, num_unseen=50, drafts=False)]) == ()
