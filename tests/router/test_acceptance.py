"""The acceptance model against the draws that its windows were made of."""

from __future__ import annotations

import random
from statistics import median

import numpy as np
import pytest

from protocol.outcome import Probe
from protocol.plan import DepthRule
from router.acceptance import Acceptance, AcceptanceConfig, Window, counts, windows_of, would_match

EXITS = (2, 4, 6)
RULES = tuple(DepthRule((exit_,)) for exit_ in EXITS)
LENGTH = 8
NEVER = (0.0,) * 3  # stopped


def window(rng: random.Random, hazards: list[float], length: int) -> Window:
    accepted = 0
    while accepted < length and rng.random() < hazards[accepted]:
        accepted += 1
    return Window(accepted, length, length)


def model(**settings: float) -> Acceptance:
    return Acceptance(RULES, LENGTH, AcceptanceConfig(**settings))


@pytest.mark.parametrize("seed", range(8))
def test_hazards_come_out_as_drawn_whatever_the_lengths_of_the_windows(seed: int) -> None:
    rng = random.Random(seed)
    hazards = [rng.uniform(0.5, 0.9) for _ in range(LENGTH)]
    learned = model(half_life=2000.0)
    for _ in range(3000):
        learned.observe(0, [(0, window(rng, hazards, rng.randint(1, LENGTH)))])
    assert learned.hazards(0)[:4] == pytest.approx(hazards[:4], abs=0.06)


def test_what_the_end_of_a_window_cuts_off_counts_neither_way() -> None:
    accepted, reached = counts([Window(2, 2, 2), Window(1, 3, 3), Window(0, 1, 1)], 4)
    assert (accepted.tolist(), reached.tolist()) == ([2, 1, 0, 0], [3, 2, 0, 0])


def test_where_a_draft_lost_confidence_the_next_token_counts_as_refused() -> None:
    accepted, reached = counts([Window(1, 3, 1), Window(0, 1, 1)], 3)
    assert (accepted.tolist(), reached.tolist()) == ([1, 0, 0], [2, 1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_drafts_that_stop_where_they_are_doubtful_do_not_make_a_rule_look_better(seed: int) -> None:
    """Half of the tokens are right, the others rarely: who stops at those accepts almost all that it drafts."""
    rng = random.Random(seed)
    learned = model(half_life=2000.0)
    for _ in range(2000):
        sure = [rng.random() < 0.5 for _ in range(LENGTH)]
        right = [rng.random() < (0.98 if one else 0.1) for one in sure]
        drafted = next((number + 1 for number, one in enumerate(sure) if not one), LENGTH)
        accepted = next((number for number in range(drafted) if not right[number]), drafted)
        learned.observe(0, [(0, Window(accepted, LENGTH, drafted))])
    assert learned.hazards(0)[0] == pytest.approx(0.54, abs=0.05)
    assert learned.hazards(0)[1] == pytest.approx(0.5 * 0.98 * 0.54 / 0.54, abs=0.06)
    assert learned.drafted(0)[:3] == pytest.approx([1.0, 0.5, 0.25], abs=0.05)


def test_a_position_that_was_never_reached_leans_on_the_one_before() -> None:
    learned = model()
    for _ in range(200):
        learned.observe(0, [(0, Window(1, 1, 1))])
    hazards = learned.hazards(0)
    assert hazards[0] > 0.9
    assert hazards[1] == pytest.approx(hazards[0])


def test_a_rule_that_nothing_is_known_of_leans_on_the_best_known_one_by_the_layers_between() -> None:
    learned = model()
    for _ in range(200):
        learned.observe(1, [(0, Window(1, 2, 2))])
    shallow, known, deep = (float(learned.hazards(rule)[0]) for rule in range(3))
    assert 0.9 < shallow < known < deep < 1


@pytest.mark.parametrize("seed", range(20))
def test_the_windows_of_a_probe_are_those_that_drafting_would_have_made(seed: int) -> None:
    rng = random.Random(seed)
    matches = [rng.random() < 0.7 for _ in range(rng.randint(0, 60))]
    length = rng.randint(1, LENGTH)
    windows, start = windows_of(matches, [0.9] * len(matches), length), 0
    for one in windows:
        assert matches[start : start + one.accepted] == [True] * one.accepted
        assert one.accepted <= one.drafted <= length
        if one.planned > one.accepted:
            assert not matches[start + one.accepted]
        start += one.accepted + 1
    assert start >= len(matches)


def test_a_cascade_leaves_at_the_first_exit_that_is_sure_enough() -> None:
    probe = Probe(
        9,
        ((True, False, False), (False, True, False), (False, False, True)),
        ((0.9, 0.1, 0.5), (0.9, 0.8, 0.5), (0.1,) * 3),
    )
    assert would_match(probe, EXITS, DepthRule(EXITS, (0.5, 0.5))) == ([True, True, True], [0.9, 0.8, 0.1])
    assert would_match(probe, EXITS, DepthRule((4,))) == ([False, True, False], [0.9, 0.8, 0.5])


def test_a_probe_is_cut_where_a_draft_would_have_been_stopped() -> None:
    assert windows_of([True] * 5, [0.9, 0.4, 0.9, 0.9, 0.9], 4, least=0.5) == [Window(2, 4, 2), Window(2, 2, 2)]
    assert windows_of([False, True], [0.8, 0.9], 4, least=0.5) == [Window(0, 4, 4), Window(1, 1, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_probe_tells_of_every_rule_what_playing_it_would_have_told(seed: int) -> None:
    rng = random.Random(seed)
    rates = (0.55, 0.7, 0.85)
    learned = model(half_life=1000.0, unseen_half_life=1e9)
    for _ in range(60):
        draws = [rng.random() for _ in range(50)]
        matches = tuple(tuple(draw < rate for draw in draws) for rate in rates)
        learned.tell(Probe(0, matches, tuple((0.5,) * 50 for _ in rates)), EXITS, None, NEVER)
    assert [float(learned.hazards(rule)[0]) for rule in range(3)] == pytest.approx(rates, abs=0.06)


def test_a_probe_does_not_count_again_for_the_rule_that_drafted_its_tokens() -> None:
    learned = model()
    learned.tell(Probe(0, ((True,) * 9,) * 3, ((0.5,) * 9,) * 3), EXITS, 0, NEVER)
    assert learned.weight(0) == 0
    assert learned.weight(1) > 0


def rounds_of(rng: random.Random, rate: float, batch: int) -> list[tuple[int, Window]]:
    return [(row, window(rng, [rate] * LENGTH, 4)) for row in range(batch)]


def believed(learned: Acceptance, seed: int, *played: tuple[int, float, int]) -> float:
    """Of rule 0, after rounds of four rows. played: rule, rate and rounds."""
    rng = random.Random(seed)
    for rule, rate, count in played:
        for _ in range(count):
            learned.observe(rule, rounds_of(rng, rate, 4))
    return float(learned.hazards(0)[0])


def test_a_rule_that_was_played_for_a_hard_beginning_is_not_given_up_for_it() -> None:
    """All exits are right in 0.5 of all cases at first, then in 0.88; the shallow one is played before that only."""
    rounds = ((0, 0.5, 4), (1, 0.5, 2), (1, 0.88, 20))
    doubting, trusting, stubborn = (
        median(believed(model(**settings), seed, *rounds) for seed in range(20))
        for settings in ({}, {"doubt": 0.0}, {"doubt": 0.0, "kin_tokens": 4.0})
    )
    assert doubting > trusting + 0.02 > stubborn + 0.07


def test_a_rule_that_is_worse_in_the_same_text_stays_known_for_it() -> None:
    rounds = ((1, 0.88, 20), (0, 0.3, 10), (1, 0.88, 20))
    assert median(believed(model(), seed, *rounds) for seed in range(20)) < 0.62


@pytest.mark.parametrize("seed", range(5))
def test_evidence_fades_by_rounds_however_many_are_told_of_at_once(seed: int) -> None:
    rng = random.Random(seed)
    each, three = model(alarm=100.0), model(alarm=100.0)
    for rate, count in ((0.85, 40), (0.4, 8)):
        for _ in range(count):
            rounds = [rounds_of(rng, rate, 8) for _ in range(3)]
            for one in rounds:
                each.observe(0, one)
            three.observe(0, [row for one in rounds for row in one])
    assert float(three.hazards(0)[0]) == pytest.approx(float(each.hazards(0)[0]), abs=0.03)


@pytest.mark.parametrize("batch", [1, 8])
def test_when_the_text_changes_the_estimate_follows_within_rounds(batch: int) -> None:
    rounds = {1: 60, 8: 20}[batch]
    late = 0
    for seed in range(20):
        rng = random.Random(seed)
        learned = model()
        for rate, count in ((0.85, 300), (0.3, rounds)):
            for _ in range(count):
                learned.observe(0, [(row, window(rng, [rate] * LENGTH, 5)) for row in range(batch)])
        late += abs(float(learned.hazards(0)[0]) - 0.3) > 0.2
    assert late <= 3


def test_steady_text_raises_hardly_any_alarm() -> None:
    rng = random.Random(1)
    learned = model()
    for _ in range(4000):
        learned.observe(0, [(0, window(rng, [0.75] * LENGTH, 5))])
    assert learned.num_alarms <= 4


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_that_is_harder_than_the_others_is_expected_to_be_refused_more_often(seed: int) -> None:
    rng = random.Random(seed)
    learned = model(alarm=100.0)
    for _ in range(60):
        learned.observe(0, [(row, window(rng, [0.3 if row == 3 else 0.85] * LENGTH, 5)) for row in range(4)])
    assert learned.odds(3) > 1.3 > learned.odds(0)
    assert learned.odds(99) == 1.0
    learned.keep([0])
    learned.leave()
    assert learned.odds(3) == 1.0


def test_hazards_are_probabilities_whatever_came() -> None:
    rng = random.Random(0)
    learned = model()
    for _ in range(500):
        length = rng.randint(1, LENGTH)
        learned.observe(
            rng.randrange(3), [(rng.randrange(5), Window(rng.randint(0, length), length, length)) for _ in range(3)]
        )
        hazards = np.stack([learned.hazards(rule) for rule in range(3)])
        assert ((hazards > 0) & (hazards <= 1)).all()
