"""Simulated text against the probabilities that it was made from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from protocol.errors import ConfigError
from protocol.plan import DepthRule
from router.simulate_acceptance import (
    AcceptanceTable,
    Profile,
    Stage,
    Text,
    acceptance_table,
    always,
    confidences,
)

HAZARDS = {2: (0.5, 0.7), 4: (0.7, 0.8), 6: (0.9,)}
NUM_TOKENS = 40_000


def text(seed: int, num_tokens: int = NUM_TOKENS) -> Text:
    return Text(num_tokens, np.random.default_rng(seed))


@pytest.mark.parametrize("concentration", [math.inf, 20.0, 2.0])
@pytest.mark.parametrize("exit_", [2, 4, 6])
def test_drafts_survive_as_often_as_the_table_says(exit_: int, concentration: float) -> None:
    table, own = acceptance_table(HAZARDS, concentration), text(1)
    runs = [own.draft(table, DepthRule((exit_,)), at, 4, 0.0).run for at in range(0, NUM_TOKENS - 4, 4)]
    survivals = [sum(run > position for run in runs) / len(runs) for position in range(4)]
    assert survivals == pytest.approx(table.survivals(exit_, 4), abs=0.02)


@pytest.mark.parametrize("concentration", [math.inf, 5.0])
def test_a_deeper_exit_with_higher_hazards_is_right_wherever_a_shallower_one_is(concentration: float) -> None:
    table = acceptance_table(HAZARDS, concentration)
    for seed in range(20):
        own = text(seed, 200)
        runs = [[own.draft(table, DepthRule((e,)), at, 5, 0.0).run for at in range(195)] for e in (2, 4, 6)]
        assert all(a <= b <= c for a, b, c in zip(*runs, strict=True))


@pytest.mark.parametrize("concentration", [1.0, 8.0])
def test_of_the_tokens_drafted_with_a_confidence_that_share_is_right(concentration: float) -> None:
    table, own = acceptance_table({2: (0.6,)}, concentration), text(2)
    drafts = [own.draft(table, DepthRule((2,)), at, 1, 0.0) for at in range(NUM_TOKENS)]
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = [draft for draft in drafts if low <= draft.confidences[0] < low + 0.2]
        if len(inside) > 500:
            foretold = sum(draft.confidences[0] for draft in inside) / len(inside)
            assert sum(draft.run for draft in inside) / len(inside) == pytest.approx(foretold, abs=0.04)


def test_confidences_spread_around_the_hazard_as_a_beta_distribution_does() -> None:
    for hazard in (0.1, 0.5, 0.83):
        for concentration in (1.0, 4.0, 50.0, 1e4):
            values = np.asarray(confidences(hazard, concentration))
            assert values.mean() == pytest.approx(hazard, abs=1e-3)
            assert values.var() == pytest.approx(hazard * (1 - hazard) / (concentration + 1), rel=0.05)
    assert confidences(0.5, math.inf) == (0.5,)
    assert confidences(0.0, 3.0) == (0.0,)
    assert confidences(1.0, 3.0) == (1.0,)


def test_a_ladder_leaves_at_the_first_exit_that_is_sure_and_a_floor_ends_a_draft() -> None:
    table, own = acceptance_table(HAZARDS), text(3, 100)
    draft = own.draft(table, DepthRule((2, 4, 6), (0.6, 0.75)), 0, 3, 0.0)
    assert draft.exits == [2, 0, 0]
    assert draft.confidences == pytest.approx([0.9, 0.7, 0.7])
    assert len(own.draft(table, DepthRule((2,)), 0, 9, 0.3).exits) == 3, "0.5, 0.35, 0.245"
    assert len(own.draft(table, DepthRule((2,)), 0, 9, 0.5).exits) == 1, "a product that equals the floor is sunk"
    assert own.draft(table, DepthRule((2,)), 0, 0, 0.0).exits == []


def test_a_probe_tells_what_drafting_the_committed_tokens_would_have_told() -> None:
    profile = always(acceptance_table({2: (0.5,), 4: (0.8,)}, 6.0))
    for seed in range(10):
        own = text(seed, 60)
        matches, sure = own.probe(profile, 7, 50, 0.0)
        for number, exit_ in enumerate((2, 4)):
            drafts = [own.draft(profile.at(at, 0.0), DepthRule((exit_,)), at, 1, 0.0) for at in range(7, 50)]
            assert matches[number] == [bool(draft.run) for draft in drafts]
            assert sure[number] == [draft.confidences[0] for draft in drafts]


def test_a_profile_switches_with_the_text_or_with_time() -> None:
    code, noise = acceptance_table({2: (0.9,)}), acceptance_table({2: (0.1,)})
    by_token = Profile((Stage(code), Stage(noise, from_token=10)))
    assert [by_token.at(token, 1e9) is code for token in (0, 9, 10)] == [True, True, False]
    there_and_back = Profile((Stage(code), Stage(noise, from_ms=50.0), Stage(code, from_ms=70.0)))
    assert [there_and_back.at(0, ms) is code for ms in (0.0, 49.0, 50.0, 70.0)] == [True, True, False, True]


def test_what_is_no_table_of_probabilities_is_refused() -> None:
    for hazards in ({}, {2: ()}, {2: (1.2,)}, {2: (-0.1,)}):
        with pytest.raises(ConfigError):
            acceptance_table(hazards)
    with pytest.raises(ConfigError, match="give more than 0"):
        acceptance_table({2: (0.5,)}, 0.0)
    with pytest.raises(ConfigError, match="must ascend"):
        AcceptanceTable((4, 2), (((0.5,),), ((0.5,),)))
    with pytest.raises(ConfigError, match="exit 4 is not in the acceptance table"):
        acceptance_table({2: (0.5,)}).ladder(DepthRule((2, 4), (0.5,)))
    table = acceptance_table({2: (0.5,)})
    with pytest.raises(ConfigError, match="begins at token 0"):
        Profile((Stage(table, from_token=1),))
    with pytest.raises(ConfigError, match="same exits"):
        Profile((Stage(table), Stage(acceptance_table({4: (0.5,)}), from_token=1)))
