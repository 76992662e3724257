"""Simulated text: pure, calibrated, nested, and as recorded."""

from __future__ import annotations

from statistics import fmean

import pytest

from protocol.errors import ConfigError
from simulation.text import Drawn, Place, World, drawn, mix, owner_of, quantiles, seed_of, stage
from tests.simulation.recorded import Recorded

RATES = {2: 0.5, 4: 0.7, 6: 0.8}
STATES = [mix(1, number) for number in range(4000)]


def test_a_pick_is_a_function_of_the_state_and_the_seed() -> None:
    world = World(50, [drawn(RATES)])
    assert [world.pick(state, 3) for state in STATES] == [world.pick(state, 3) for state in STATES]
    for seed in (4, seed_of(1, 3)):
        same = fmean(world.pick(state, 3) == world.pick(state, seed) for state in STATES)
        assert same == pytest.approx(1 / 50, abs=0.01)
    assert {world.pick(state, 3) for state in STATES} == set(range(50))


@pytest.mark.parametrize("concentration", [float("inf"), 4.0])
def test_an_exit_agrees_as_often_as_its_rate_says_and_as_its_confidences_say(concentration: float) -> None:
    world = World(50, [drawn(RATES, concentration)])
    right_before = [False] * len(STATES)
    for depth, rate in RATES.items():
        found = [world.drafted(state, 3, 9, depth) for state in STATES]
        right = [token == world.pick(state, 3) for state, (token, _) in zip(STATES, found, strict=True)]
        assert fmean(right) == pytest.approx(rate, abs=0.03)
        for low in (0.0, 0.5, 0.9):
            own = [(good, sure) for good, (_, sure) in zip(right, found, strict=True) if low <= sure < low + 0.4]
            if len(own) > 300:
                assert fmean(good for good, _ in own) == pytest.approx(fmean(sure for _, sure in own), abs=0.05)
        assert all(now >= before for now, before in zip(right, right_before, strict=True)), "exits are nested"
        right_before = right


def test_the_last_stage_that_has_begun_counts() -> None:
    stages = (stage({2: 0.1}), stage({2: 0.2}, position=10), stage({2: 0.3}, position=5, ms=100.0))
    acceptance = Drawn((2,), stages)
    for position, ms, rate in ((9, 0.0, 0.1), (10, 0.0, 0.2), (4, 200.0, 0.1), (5, 100.0, 0.3), (50, 99.0, 0.2)):
        assert acceptance.at(Place(1, 0, position, ms), 0)[1] == rate


def test_a_record_is_replayed() -> None:
    found = [[None, ((True, 0.9), (False, 0.2))], []]
    world = World(50, [Recorded((2, 4), found)])
    state, seed = STATES[0], seed_of(0, 2)  # the first text again
    assert world.drafted(state, seed, 1, 2)[:2] == (world.pick(state, seed), 0.9)
    assert world.drafted(state, seed, 1, 4)[1] == 0.2
    for position, depth in ((1, 4), (0, 2), (7, 2)):
        assert world.drafted(state, seed, position, depth)[0] != world.pick(state, seed)


def test_seeds_say_whose_a_sequence_is_and_rates_are_probabilities() -> None:
    assert owner_of(seed_of(3, 17)) == (3, 17)
    assert fmean(quantiles(0.3, 5.0)) == pytest.approx(0.3)
    for rates, concentration in (({}, 1.0), ({2: 1.5}, 1.0), ({2: 0.5}, 0.0)):
        with pytest.raises(ConfigError):
            drawn(rates, concentration)
