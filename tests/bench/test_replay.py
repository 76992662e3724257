"""Replayed texts: what was recorded comes back, whoever drafts it."""

from __future__ import annotations

import pytest

from bench.replay import Recorded
from protocol.plan import DepthRule
from router.simulate_acceptance import acceptance_table, always

TABLE = acceptance_table({2: [0.5], 4: [0.5]})
TOLD = [((True, 0.9), (True, 0.95)), ((False, 0.4), (True, 0.8)), None, ((True, 0.7), (False, 0.3))]
TEXT = Recorded((2, 4), TOLD)


def test_a_draft_is_right_as_far_as_its_exit_was() -> None:
    shallow = TEXT.draft(TABLE, DepthRule((2,)), 0, 3, 0.0)
    assert (shallow.run, shallow.confidences) == (1, [0.9, 0.4, 0.4])
    assert TEXT.draft(TABLE, DepthRule((4,)), 0, 2, 0.0).run == 2


def test_a_floor_ends_a_draft_behind_the_token_that_sinks_below_it() -> None:
    assert len(TEXT.draft(TABLE, DepthRule((2,)), 0, 3, 0.5).exits) == 2


@pytest.mark.parametrize(("threshold", "number"), [(0.85, 0), (0.95, 1)])
def test_a_cascade_leaves_at_the_first_exit_that_is_sure(threshold: float, number: int) -> None:
    assert TEXT.draft(TABLE, DepthRule((2, 4), (threshold,)), 0, 1, 0.0).exits == [number]


def test_a_probe_tells_of_every_exit_and_what_is_unknown_is_wrong() -> None:
    matches, sure = TEXT.probe(always(TABLE), 1, 4, 0.0)
    assert matches == [[False, False, True], [True, False, False]]
    assert sure == [[0.4, 0.5, 0.7], [0.8, 0.5, 0.3]]
