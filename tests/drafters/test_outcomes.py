"""The probabilities of outcomes against counting, and what an early pick does to them."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from drafters.outcomes import AGREES, RUNNER_UP, Candidate, Guess, acceptance, candidates, corrections
from protocol.branch import BranchSource

SEED_COUNT = 200
FULL, RUNNER, EARLY = BranchSource.FULL, BranchSource.RUNNER_UP, BranchSource.EARLY_EXIT


def places(found: list[Candidate]) -> list[tuple[int, int, BranchSource]]:
    return [(one.accepted, one.token, one.source) for one in found]


def some_guesses(rng: random.Random) -> list[Guess]:
    """Tokens below 10, so that picks and guesses often meet."""
    guesses = []
    for _ in range(rng.randint(1, 9)):
        token, other = rng.sample(range(10), 2)
        guesses.append(Guess(token, rng.random(), rng.choice([None, other])))
    return guesses


def some_picks(rng: random.Random, count: int) -> list[tuple[int, ...]]:
    return [tuple(rng.sample(range(10), rng.randint(0, 5))) for _ in range(rng.randint(0, count))]


def test_without_a_hint_there_are_the_full_window_and_the_second_choices_best_first() -> None:
    found = candidates([Guess(5, 0.9, 6), Guess(7, 0.5, 8), Guess(9, 0.8, 1)])
    assert places(found) == [(2, 9, FULL), (1, 8, RUNNER), (0, 6, RUNNER), (2, 1, RUNNER)]
    assert [one.probability for one in found] == pytest.approx(
        [0.9 * 0.5 * 0.8, 0.9 * 0.5 * RUNNER_UP, 0.1 * RUNNER_UP, 0.9 * 0.5 * 0.2 * RUNNER_UP]
    )


def test_a_guess_whose_second_choice_is_not_known_has_none() -> None:
    assert places(candidates([Guess(5, 0.5), Guess(7, 0.5, 8)])) == [(1, 7, FULL), (1, 8, RUNNER)]


def test_an_early_pick_that_agrees_makes_a_rejection_there_less_likely() -> None:
    guess = Guess(5, 0.75, 6)
    assert acceptance(guess, (5, 6)) == pytest.approx(3 * AGREES / (3 * AGREES + 1))
    assert acceptance(guess, (5,)) > acceptance(guess, ()) > acceptance(guess, (4, 5))


def test_an_early_pick_that_disagrees_becomes_the_likeliest_outcome_where_the_drafter_is_unsure() -> None:
    found = candidates([Guess(5, 0.2), Guess(7, 0.9, 8)], [(3, 5), (7,)])
    assert places(found)[:2] == [(0, 3, EARLY), (1, 7, FULL)]


def test_a_token_that_both_name_is_the_drafters_and_worth_more_than_either_alone() -> None:
    guess = Guess(5, 0.4, 6)
    both, alone = corrections(guess, (6, 3)), corrections(guess, (3, 4))
    assert both[6] > max(alone.values())
    assert (0, 6, RUNNER) in places(candidates([guess], [(6, 3)]))


@pytest.mark.parametrize("seed", range(SEED_COUNT))
def test_outcomes_are_different_ones_whose_probabilities_add_up_to_no_more_than_one(seed: int) -> None:
    rng = random.Random(seed)
    guesses = some_guesses(rng)
    found = candidates(guesses, some_picks(rng, len(guesses) + 1))
    outcomes = [(one.accepted, one.token) for one in found]
    assert len(set(outcomes)) == len(outcomes)
    assert [source for _, _, source in places(found)].count(FULL) == 1
    assert 0 < sum(one.probability for one in found) <= 1
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    for one in found:
        assert one.source is FULL or one.token != guesses[one.accepted].token, "that would be no mistake"


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_are_how_often_an_outcome_comes_about(seed: int) -> None:
    """Guess by guess: right, or corrected by one of the tokens with its share, or by a token nobody named."""
    rng = random.Random(seed)
    guesses = some_guesses(rng)
    picks = some_picks(rng, len(guesses))
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(20_000):
        counts[drawn(rng, guesses, picks)] += 1
    for one in candidates(guesses, picks):
        assert counts[one.accepted, one.token] / 20_000 == pytest.approx(one.probability, abs=0.015)


def drawn(rng: random.Random, guesses: list[Guess], picks: list[tuple[int, ...]]) -> tuple[int, int]:
    for position, guess in enumerate(guesses):
        named = picks[position] if position < len(picks) else ()
        if rng.random() >= acceptance(guess, named):
            shares = corrections(guess, named)
            nobody = max(1 - sum(shares.values()), 0)
            return position, rng.choices([*shares, -1], [*shares.values(), nobody])[0]
    return len(guesses) - 1, guesses[-1].token
