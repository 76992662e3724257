"""Acceptance tables say what drafts of their length would have brought on the surveyed text."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from bench.acceptance import acceptance_of, fates, hazards_of
from bench.survey import Told
from protocol.errors import ConfigError

EXITS = (2, 4)


def moody(seed: int, num_tokens: int) -> list[Told]:
    """Text that is easy for a while, then hard. The second exit is right wherever the first one is, and more often."""
    rng, easy, made = Random(seed), True, []
    for _ in range(num_tokens):
        easy = easy if rng.random() < 0.95 else not easy
        luck, sure = rng.random(), 0.9 if easy else 0.4
        made.append(((luck < sure, sure**0.5), (luck < sure + 0.05, sure**0.5)))
    return made


def drafted(stretch: list[Told], exit_number: int, length: int) -> list[int]:
    """What drafts of this length get right, one behind the other: the obvious loop."""
    accepted, start = [], 0
    while start + length <= len(stretch):
        run = 0
        while run < length and stretch[start + run][exit_number][0]:
            run += 1
        accepted.append(run)
        start += run + 1
    return accepted


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_a_table_promises_what_drafts_of_its_length_brought(length: int) -> None:
    stretches = [moody(seed, 400) for seed in range(60)]
    table = acceptance_of(stretches, EXITS, length)
    for number, exit_ in enumerate(EXITS):
        brought = fmean(run for stretch in stretches for run in drafted(stretch, number, length))
        assert sum(table.survivals(exit_, length)) == pytest.approx(brought, rel=0.02)


def test_short_drafts_meet_easy_text_more_often_so_a_table_of_long_ones_undersells_them() -> None:
    stretches = [moody(seed, 400) for seed in range(60)]
    short, long = (acceptance_of(stretches, EXITS, length) for length in (1, 12))
    assert short.hazard(2, 0) > 1.05 * long.hazard(2, 0)


def test_confidences_keep_their_order_and_their_mean_is_the_hazard() -> None:
    stretches = [moody(seed, 400) for seed in range(20)]
    table = acceptance_of(stretches, EXITS, 4)
    for number, row in enumerate(table.cells):
        for position, values in enumerate(row):
            told = fates(stretches, number, 4)[position]
            assert fmean(values) == pytest.approx(fmean(right for right, _ in told), abs=1e-3)
            assert list(values) == sorted(values)
            assert values[-1] > values[0]  # the drafter's moods are still told apart


def test_positions_that_hardly_a_draft_reached_are_not_told_of() -> None:
    wrong_at_the_third = [((True, 0.9),), ((True, 0.9),), ((False, 0.9),)] * 30
    table = acceptance_of([wrong_at_the_third], (2,), 8)
    assert [len(row) for row in table.cells] == [3]
    assert hazards_of(table, 2, 5).tolist() == pytest.approx([1, 1, 0, 0, 0])


def test_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="hazards of exit 2"):
        acceptance_of([], EXITS, 4)
