"""The filter against what conditioning on all observations at once gives, and what it makes of jumps."""

from __future__ import annotations

import random

import numpy as np
import pytest

from protocol.plan import Mode
from router import offsets
from router.offsets import LEVEL, LEVEL_WANDERS, OTHER_SIZE, PRIORS, SPREAD, Offsets

MODES = tuple(Mode)


def conditioned(seen: list[tuple[Mode, float, int]]) -> tuple[float, dict[Mode, float], dict[tuple[Mode, Mode], float]]:
    """Level, offsets and deviations of differences at the end: one joint Gaussian over all observations."""
    priors = [PRIORS[mode] for mode in MODES]
    mean = np.asarray([0.0, *(prior.guess for prior in priors)])
    start = np.diag(np.square([LEVEL, *(prior.doubt for prior in priors)]))
    wanders = np.diag(np.square([LEVEL_WANDERS, *(prior.wanders for prior in priors)]))
    picks = np.zeros((len(seen), len(mean)))
    picks[:, 0] = 1
    picks[range(len(seen)), [1 + MODES.index(mode) for mode, _, _ in seen]] = 1
    times = np.cumsum([num for _, _, num in seen])
    both = np.minimum.outer(times, times)
    joint = picks @ start @ picks.T + both * (picks @ wanders @ picks.T)
    joint += np.diag([SPREAD**2 / num for _, _, num in seen])
    cross = start @ picks.T + times * (wanders @ picks.T)
    gain = cross @ np.linalg.inv(joint)
    guess = mean + gain @ (np.asarray([value for _, value, _ in seen]) - picks @ mean)
    left = start + times[-1] * wanders - gain @ cross.T
    offs = {mode: float(guess[1 + at]) for at, mode in enumerate(MODES)}
    signs = {
        (a, b): np.eye(len(mean))[1 + MODES.index(a)] - np.eye(len(mean))[1 + MODES.index(b)]
        for a in MODES
        for b in MODES
    }
    return float(guess[0]), offs, {pair: float(np.sqrt(max(sign @ left @ sign, 0.0))) for pair, sign in signs.items()}


@pytest.mark.parametrize("seed", range(20))
def test_the_filter_knows_what_all_observations_at_once_tell(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "SURPRISE", float("inf"))
    rng, own = random.Random(seed), Offsets(MODES)
    seen = [(rng.choice(MODES), rng.gauss(0.1, 0.2), rng.randint(1, 12)) for _ in range(rng.randint(1, 40))]
    for mode, value, num_rounds in seen:
        own.observe(mode, value, num_rounds)
    level, offs, doubts = conditioned(seen)
    assert own.level == pytest.approx(level)
    assert {mode: own.of(mode) for mode in MODES} == pytest.approx(offs)
    assert {pair: own.doubt(*pair) for pair in doubts} == pytest.approx(doubts, abs=1e-6)


def test_a_machine_that_gets_slower_moves_the_level_and_a_change_of_mode_its_offset() -> None:
    own = Offsets(MODES)
    for number in range(100):
        own.observe(Mode.SERIAL, min(0.003 * number, 0.2), 8)
    assert own.level == pytest.approx(0.2, abs=0.02)
    own.observe(Mode.MIRROR, 0.2 + 0.3, 8)
    assert own.of(Mode.MIRROR) > PRIORS[Mode.MIRROR].guess + 0.1
    assert own.level == pytest.approx(0.2, abs=0.04)


def test_after_a_jump_modes_that_were_not_played_are_in_doubt_again() -> None:
    own = Offsets(MODES)
    for _ in range(50):
        own.observe(Mode.SERIAL, 0.0, 8)
        own.observe(Mode.MIRROR, 0.1, 8)
    before = own.doubt(Mode.SERIAL, Mode.MIRROR)
    own.observe(Mode.MIRROR, 0.5, 8)
    assert own.doubt(Mode.SERIAL, Mode.MIRROR) > 3 * before
    own.observe(Mode.SERIAL, 0.4, 8)
    assert own.doubt(Mode.SERIAL, Mode.MIRROR) < 3 * before


def test_another_size_of_batch_begins_with_these_offsets_less_sure() -> None:
    own = Offsets(MODES)
    for _ in range(50):
        own.observe(Mode.SERIAL, 0.0, 8)
        own.observe(Mode.HINTED, 0.4, 8)
    other = Offsets(MODES[:3], own)
    assert other.level == 0.0
    assert other.of(Mode.HINTED) == own.of(Mode.HINTED) == pytest.approx(0.4, abs=0.03)
    assert OTHER_SIZE <= other.doubt(Mode.HINTED, Mode.SERIAL) <= PRIORS[Mode.HINTED].doubt + OTHER_SIZE
    assert Offsets(MODES, other).of(Mode.LANES) == PRIORS[Mode.LANES].guess
