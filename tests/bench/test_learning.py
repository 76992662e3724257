"""Judging plans: by what surveyed texts and costs made by hand say they are worth."""

from __future__ import annotations

import random

import pytest

from bench.learning import LASTING, Played, rounds_until_good
from bench.survey import Judge, Stop, Survey, Told
from protocol.plan import DepthRule
from router.predict import Predictor
from router.tables import tables
from tests.router.curves import curves

EXITS, LENGTH, BATCH = (2, 4), 6, 4
RULES = tuple(DepthRule((exit_,)) for exit_ in EXITS)


def judge(right: float) -> Judge:
    """Of a text of which the deeper exit has a little more right."""
    rng = random.Random(1)
    text: list[Told] = [
        tuple((luck < right + 0.05 * number, 0.5) for number in range(2)) for luck in (rng.random() for _ in range(400))
    ]
    return Judge(Predictor(tables(curves(), RULES, LENGTH, BATCH)), Survey([text], 2, LENGTH))


@pytest.mark.parametrize("right", [0.05, 0.5, 0.9])
def test_no_plan_is_worth_more_than_the_best(right: float) -> None:
    own = judge(right)
    best = own.best(BATCH)
    assert own.worth(None, [0] * BATCH, Stop()) <= best
    for rule in range(2):
        for length in range(1, LENGTH + 1):
            assert own.worth(rule, [length] * BATCH, Stop()) <= best * (1 + 1e-9)


def test_off_is_best_where_drafts_are_wrong_and_long_drafts_where_they_are_right() -> None:
    assert judge(0.0).best(BATCH) == judge(0.0).worth(None, [0] * BATCH, Stop())
    sure = judge(0.94)
    assert sure.worth(0, [LENGTH] * BATCH, Stop()) > sure.worth(0, [1] * BATCH, Stop())


def test_a_plan_has_to_last_to_count_as_found() -> None:
    own = judge(0.9)
    good, bad = Played(0, (LENGTH,) * BATCH, Stop()), Played(None, (0,) * BATCH, Stop())
    other_batch = Played(0, (LENGTH,) * (BATCH - 1), Stop())
    assert rounds_until_good(own, [bad, good, bad, *[good] * LASTING], BATCH) == 3
    assert rounds_until_good(own, [other_batch, *[good] * LASTING], BATCH) == 0
    assert rounds_until_good(own, [bad] * 9, BATCH) == 9
