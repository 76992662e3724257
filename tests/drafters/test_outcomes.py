"""The probabilities of outcomes against counting."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from drafters.outcomes import RUNNER_UP, SURE, UNSURE, Candidate, Guess, candidates
from protocol.branch import BranchSource

SEED_COUNT = 200
FULL, RUNNER = BranchSource.FULL, BranchSource.RUNNER_UP


def places(found: list[Candidate]) -> list[tuple[int, int, BranchSource]]:
    return [(one.accepted, one.token, one.source) for one in found]


def some_guesses(rng: random.Random) -> list[Guess]:
    """Tokens below 10, so that they often meet."""
    guesses = []
    for _ in range(rng.randint(1, 9)):
        token, other = rng.sample(range(10), 2)
        guesses.append(Guess(token, rng.random(), rng.choice([None, other])))
    return guesses


def test_there_are_the_full_window_and_the_second_choices_best_first() -> None:
    found = candidates([Guess(5, 0.9, 6), Guess(7, 0.5, 8), Guess(9, 0.8, 1)])
    assert places(found) == [(2, 9, FULL), (1, 8, RUNNER), (0, 6, RUNNER), (2, 1, RUNNER)]
    assert [one.probability for one in found] == pytest.approx(
        [0.9 * 0.5 * 0.8, 0.9 * 0.5 * RUNNER_UP, 0.1 * RUNNER_UP, 0.9 * 0.5 * 0.2 * RUNNER_UP]
    )


def test_a_guess_whose_second_choice_is_not_known_has_none() -> None:
    assert places(candidates([Guess(5, 0.5), Guess(7, 0.5, 8)])) == [(1, 7, FULL), (1, 8, RUNNER)]


@pytest.mark.parametrize("seed", range(SEED_COUNT))
def test_outcomes_are_different_ones_whose_probabilities_add_up_to_no_more_than_one(seed: int) -> None:
    rng = random.Random(seed)
    guesses = some_guesses(rng)
    found = candidates(guesses)
    outcomes = [(one.accepted, one.token) for one in found]
    assert len(set(outcomes)) == len(outcomes)
    assert [source for _, _, source in places(found)].count(FULL) == 1
    assert 0 < sum(one.probability for one in found) <= 1
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    for one in found:
        assert one.source is FULL or one.token != guesses[one.accepted].token, "that would be no mistake"


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_are_how_often_an_outcome_comes_about(seed: int) -> None:
    """Guess by guess: right, or corrected by its second choice as often as that does, or by a token nobody named."""
    rng = random.Random(seed)
    guesses = some_guesses(rng)
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(20_000):
        counts[drawn(rng, guesses)] += 1
    for one in candidates(guesses):
        assert counts[one.accepted, one.token] / 20_000 == pytest.approx(one.probability, abs=0.015)


def drawn(rng: random.Random, guesses: list[Guess]) -> tuple[int, int]:
    for position, guess in enumerate(guesses):
        if rng.random() >= min(max(guess.confidence, UNSURE), SURE):
            corrects = guess.runner_up is not None and rng.random() < RUNNER_UP
            return position, guess.runner_up if corrects else -1
    return len(guesses) - 1, guesses[-1].token
