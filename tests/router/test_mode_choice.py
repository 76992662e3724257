"""Choosing between kinds of rounds on a machine whose rounds take what a scene says, against playing all of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from statistics import fmean

import pytest

from router.mode_choice import Modes
from router.modes import Mode
from router.offsets import Offsets
from tests.router.mode_game import Pace, PlayAll, Scene, paces, play_round, regret

MIRROR, HINTED, SERIAL, LANES = Mode
SEEDS = range(8)
OFF = {MIRROR: 1.1, HINTED: 1.25}

SCENES = {
    "in turn by 10 %": Scene(draft_ms=4, hits=0.55, off={MIRROR: 1.3, HINTED: 1.4}),
    "ahead by 10 %": Scene(draft_ms=6, off={MIRROR: 1.12, HINTED: 1.35}),
    "with early picks": Scene(draft_ms=8, hits=0.4, early=0.4, off={MIRROR: 1.05, HINTED: 1.05}),
    "in lanes": Scene(num_rows=8, draft_ms=9, hits=0.5, off=OFF | {LANES: 1.05}, half=0.6),
    "all much the same": Scene(hits=0.5, early=0.05, off={MIRROR: 1.2, HINTED: 1.22}),
    "drafts for nothing": Scene(draft_ms=0.3, off=OFF),
    "slow drafts": Scene(draft_ms=12, hits=0.8, off={MIRROR: 1.15, HINTED: 1.3}),
}
SLOWED = Scene(draft_ms=8, off=OFF)
CHANGES = {
    "drafts become slow": (Scene(draft_ms=0.5, off=OFF), SLOWED),
    "drafts become fast": (SLOWED, Scene(draft_ms=0.5, off=OFF)),
    "hits become rare": (Scene(draft_ms=6, hits=0.8, off=OFF), Scene(draft_ms=6, hits=0.02, early=0.05, off=OFF)),
    "the machine is shared": (
        Scene(draft_ms=6, hits=0.8, off=OFF),
        Scene(verify_ms=20, draft_ms=12, rest_ms=1, hits=0.8, off=OFF),
    ),
}


def played(modes: Modes, scene: Scene, rounds: int, rng: random.Random) -> Counter[Mode]:
    count: Counter[Mode] = Counter()
    before = None
    for _ in range(rounds):
        mode = modes.choose(scene.num_rows)
        count[mode] += 1
        modes.observe(scene.num_rows, play_round(scene, mode, mode is not before, rng))
        before = mode
    return count


def best(known: dict[Mode, Pace]) -> Mode:
    return max(known, key=lambda mode: known[mode].rate)


@pytest.mark.parametrize("name", SCENES)
def test_of_400_rounds_few_percent_are_lost_and_less_than_by_playing_all(name: str) -> None:
    scene = SCENES[name]
    known = paces(scene)
    own = fmean(regret(Modes(), scene, known, 400, random.Random(seed)) for seed in SEEDS)
    all_played = fmean(regret(PlayAll(), scene, known, 400, random.Random(seed)) for seed in SEEDS)
    assert own <= 0.03
    assert own <= 0.6 * all_played or all_played < 0.02


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_followed_within_400_rounds_and_sooner_than_by_playing_all(name: str) -> None:
    before, after = CHANGES[name]
    known = paces(before), paces(after)

    def lost(kind: type[Modes] | type[PlayAll], seed: int) -> float:
        chooser, rng = kind(), random.Random(seed)
        regret(chooser, before, known[0], 400, rng)
        return regret(chooser, after, known[1], 400, rng)

    own = fmean(lost(Modes, seed) for seed in SEEDS)
    assert own <= 0.05
    assert own <= 0.6 * fmean(lost(PlayAll, seed) for seed in SEEDS)


def test_who_learns_nothing_of_offsets_loses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = replace(SCENES["ahead by 10 %"], off={MIRROR: 1.6, HINTED: 1.7})
    known = paces(scene)
    assert best(known) is SERIAL
    own = fmean(regret(Modes(), scene, known, 400, random.Random(seed)) for seed in SEEDS)
    monkeypatch.setattr(Offsets, "observe", lambda self, mode, log_ratio, num_rounds: None)
    deaf = fmean(regret(Modes(), scene, known, 400, random.Random(seed)) for seed in SEEDS)
    assert own < 0.04 < 0.08 < deaf


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_out_of_reach_is_hardly_ever_tried(seed: int) -> None:
    rng = random.Random(seed)
    nothing_to_hide = Scene(draft_ms=0.1, off=OFF)
    assert played(Modes(), nothing_to_hide, 400, rng)[HINTED] <= Modes().trial + 1
    hopeless_in_turn = Scene(draft_ms=14, hits=0.95, off={MIRROR: 1.0, HINTED: 1.2})
    modes = Modes()
    opening = played(modes, hopeless_in_turn, modes.opening + 1, rng)
    assert opening == Counter({SERIAL: modes.opening + 1})
    assert played(modes, hopeless_in_turn, 400, rng)[SERIAL] <= 3 * modes.trial


def test_trials_grow_rare() -> None:
    scene, rng, modes = SCENES["in turn by 10 %"], random.Random(0), Modes()
    early = 500 - played(modes, scene, 500, rng)[SERIAL]
    played(modes, scene, 2000, rng)
    late = 500 - played(modes, scene, 500, rng)[SERIAL]
    assert late < early < 100


@pytest.mark.parametrize("seed", range(5))
def test_batches_of_other_sizes_are_judged_apart(seed: int) -> None:
    rng, modes = random.Random(seed), Modes((MIRROR, HINTED, SERIAL))
    alone = Scene(draft_ms=9, hits=0.9, off=OFF)
    many = Scene(num_rows=8, draft_ms=1, hits=0.3, off=OFF)
    for _ in range(40):
        played(modes, alone, 12, rng)
        played(modes, many, 12, rng)
    assert played(modes, alone, 100, rng)[SERIAL] <= 10
    assert played(modes, many, 100, rng)[SERIAL] >= 80
    assert modes.rates(1)[MIRROR] > modes.rates(1)[SERIAL]
    assert modes.rates(8)[MIRROR] < modes.rates(8)[SERIAL]


@pytest.mark.parametrize("seed", range(5))
def test_another_size_of_batch_begins_with_what_is_known_of_the_nearest(seed: int) -> None:
    one, few = (Scene(num_rows=number, draft_ms=4, hits=0.55, off={MIRROR: 1.4, HINTED: 1.5}) for number in (2, 5))
    modes, rng = Modes((MIRROR, HINTED, SERIAL)), random.Random(seed)
    modes.choose(0)
    alone = played(Modes(modes.modes), few, 100, rng)
    played(modes, one, 400, rng)
    assert 100 - played(modes, few, 100, rng)[SERIAL] <= min(100 - alone[SERIAL], 2 * modes.trial + 2)


def test_what_modes_are_believed_to_give_is_about_what_they_give() -> None:
    scene, modes = SCENES["ahead by 10 %"], Modes()
    assert modes.rates(1) == {}
    played(modes, scene, 400, random.Random(1))
    for mode, pace in paces(scene).items():
        assert modes.rates(1)[mode] == pytest.approx(1e3 * pace.rate, rel=0.25)


def test_a_single_mode_is_always_played_and_a_single_row_never_in_lanes() -> None:
    rng, scene = random.Random(0), Scene(num_rows=2, draft_ms=10, hits=0.1, early=0.1, half=0.5)
    assert played(Modes((MIRROR,)), scene, 300, rng) == Counter({MIRROR: 300})
    modes = Modes()
    assert played(modes, replace(scene, num_rows=1), 300, rng)[LANES] == 0
    assert played(modes, scene, 300, rng)[LANES] > 200
