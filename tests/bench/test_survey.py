"""Surveyed texts: lookups against drafting one window after another."""

from __future__ import annotations

import random

import pytest

from bench.survey import Stop, Survey, Told

LENGTH = 5


def text(seed: int) -> list[Told]:
    rng = random.Random(seed)
    return [tuple((rng.random() < 0.7, rng.uniform(0.2, 1.0)) for _ in range(2)) for _ in range(60)]


def drafted(told: list[Told], start: int, number: int, length: int, stop: Stop) -> tuple[int, int, int]:
    """Tokens of one draft that are made, verified and accepted."""
    made = verified = accepted = 0
    product, sure, right = 1.0, 1.0, True
    for one in told[start : start + length]:
        sure = one[number][1] if right else sure
        right = right and one[number][0]
        product *= sure
        made += 1
        verified += product >= stop.least
        accepted += right and product >= stop.least
        if product <= stop.floor:
            break
    return made, verified, accepted


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stop", [Stop(), Stop(0.3), Stop(0.2, 0.4)])
def test_a_yield_is_the_mean_over_all_drafts(seed: int, stop: Stop) -> None:
    told = text(seed)
    survey = Survey([told], 2, LENGTH)
    for number in range(2):
        for length in (1, 3, LENGTH):
            all_ = [drafted(told, start, number, length, stop) for start in range(len(told) - LENGTH + 1)]
            found = survey.of(number, length, stop)
            means = [sum(column) / len(all_) for column in zip(*all_, strict=True)]
            assert [float(found.reach.sum()), found.verified, found.accepted] == pytest.approx(means)


def test_stretches_shorter_than_a_draft_tell_nothing() -> None:
    assert len(Survey([text(0)[: LENGTH - 1]], 2, LENGTH)) == 0
