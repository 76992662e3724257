"""Choosing between kinds of rounds by playing them, against a machine whose rounds take what the test says."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from router.modes import Mode, Modes, playable

AHEAD = (Mode.MIRROR, Mode.HINTED, Mode.SERIAL)


def play(modes: Modes, ms: dict[Mode, float], rounds: int, rng: random.Random, num_rows: int = 4) -> Counter[Mode]:
    """Rounds of 1 to 5 tokens whose time spreads by a fifth."""
    played: Counter[Mode] = Counter()
    for _ in range(rounds):
        mode = modes.choose(num_rows)
        played[mode] += 1
        modes.observe(num_rows, rng.randint(1, 5) * num_rows, ms[mode] * rng.uniform(0.8, 1.2))
    return played


@pytest.mark.parametrize("best", list(Mode))
@pytest.mark.parametrize("seed", range(5))
def test_the_best_mode_is_found_and_kept_to(best: Mode, seed: int) -> None:
    rng, modes = random.Random(seed), Modes()
    ms = {mode: 6.0 if mode is best else 9.0 for mode in Mode}
    play(modes, ms, 150, rng)
    assert play(modes, ms, 2000, rng)[best] >= 0.9 * 2000


@pytest.mark.parametrize("seed", range(5))
def test_a_mode_that_becomes_the_best_is_found(seed: int) -> None:
    rng, modes = random.Random(seed), Modes(AHEAD)
    play(modes, {Mode.SERIAL: 6.0, Mode.MIRROR: 9.0, Mode.HINTED: 9.0}, 500, rng)
    later = {Mode.SERIAL: 6.0, Mode.MIRROR: 3.0, Mode.HINTED: 9.0}
    play(modes, later, 3000, rng)
    assert play(modes, later, 1000, rng)[Mode.MIRROR] >= 850


def test_trials_in_vain_grow_rare() -> None:
    rng, modes = random.Random(0), Modes(AHEAD)
    ms = {Mode.SERIAL: 5.0, Mode.MIRROR: 9.0, Mode.HINTED: 9.0}
    early = play(modes, ms, 2000, rng)[Mode.SERIAL]
    late = play(modes, ms, 2000, rng)[Mode.SERIAL]
    assert late > early
    assert late >= 0.97 * 2000


def test_batches_of_other_sizes_are_judged_apart() -> None:
    rng, modes = random.Random(0), Modes(AHEAD)
    alone = {Mode.SERIAL: 9.0, Mode.MIRROR: 5.0, Mode.HINTED: 9.0}
    many = {Mode.SERIAL: 5.0, Mode.MIRROR: 9.0, Mode.HINTED: 9.0}
    for _ in range(40):
        play(modes, alone, 12, rng, num_rows=1)
        play(modes, many, 12, rng, num_rows=8)
    assert modes.choose(1) is Mode.MIRROR
    assert modes.choose(8) is Mode.SERIAL
    assert modes.rates(1)[Mode.MIRROR] > modes.rates(1)[Mode.SERIAL]


def test_a_single_mode_is_always_played() -> None:
    modes = Modes((Mode.MIRROR,))
    assert play(modes, {Mode.MIRROR: 1.0}, 1000, random.Random(0)) == Counter({Mode.MIRROR: 1000})


def test_a_single_row_is_never_played_in_lanes_and_two_are() -> None:
    rng, modes = random.Random(0), Modes()
    ms = {mode: 1.0 if mode is Mode.LANES else 5.0 for mode in Mode}
    for _ in range(20):
        assert play(modes, ms, 12, rng, num_rows=0)[Mode.LANES] == 0
        assert play(modes, ms, 12, rng, num_rows=1)[Mode.LANES] == 0
        play(modes, ms, 12, rng, num_rows=2)
    assert modes.choose(2) is Mode.LANES
    assert playable((Mode.LANES,), 1) == [Mode.SERIAL]
