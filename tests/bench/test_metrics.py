"""Figures from tokens and times, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cells import Cell, CellOutcome, Timed
from bench.metrics import CellResult, full_rate, rate, summary, with_speedups

PLAIN = Cell("plain", 2)
PROMPT_TOKENS = 60  # of all prompts of a repetition


def timed(*arrived: float, verified: tuple[int, ...] = (), drafted: int | None = None) -> Timed:
    """Handed over at 0."""
    return Timed(tuple(range(len(arrived))), arrived, 0.0, verified, drafted)


def result(cell: Cell, *outputs: Timed) -> CellResult:
    return summary("draftpool", cell, [[CellOutcome(outputs)]] * 3, PROMPT_TOKENS, [True] * 3 * len(outputs))


def test_a_batch_rate_leaves_prefill_out() -> None:
    slow_start = [CellOutcome((timed(1.0, 5.0, 6.0, 7.0), timed(5.0, 6.0, 7.0)))]
    assert rate(slow_start, PLAIN) == 4 / 2  # what came after 5.0, when the last prompt was done


def test_groups_of_one_mode_add_up_before_the_division() -> None:
    groups = [CellOutcome((timed(1.0, 2.0),)), CellOutcome((timed(1.0, 1.5, 2.0, 2.5),))]
    assert rate(groups, Cell("plain", 1)) == (1 + 3) / (1.0 + 1.5)


def test_a_full_batch_is_measured_only_while_it_is_full() -> None:
    first, second = timed(1.0, 2.0, 3.0), timed(2.0, 3.0, 4.0, 5.0, 6.0)
    refill = timed(4.0, 5.0, 6.0, 7.0, 8.0)
    # Full from 2.0, when the second has its first token, to 6.0, when the second ends and nothing takes its place.
    assert full_rate([first, second, refill], 2) == (1 + 4 + 3) / 4.0
    assert rate([CellOutcome((first, second, refill))], replace(PLAIN, queue=1)) == 2.0


def test_tokens_that_came_all_at_once_have_no_rate() -> None:
    assert rate([CellOutcome((timed(1.0, 1.0),))], Cell("url", 1)) == 0.0


def test_a_prompt_rate_ends_with_the_last_first_token_of_each_group_and_a_full_batch_has_none() -> None:
    assert result(PLAIN, timed(1.0, 9.0), timed(5.0, 6.0)).prompt_tokens_per_second == [60 / 5.0] * 3
    groups = [CellOutcome((timed(1.0, 2.0),)), CellOutcome((timed(3.0, 4.0),))]
    alone = summary("draftpool", Cell("plain", 1), [groups], PROMPT_TOKENS, None)
    assert alone.prompt_tokens_per_second == [60 / 4.0]
    full = result(replace(PLAIN, queue=1), timed(1.0, 2.0, 3.0), timed(2.0, 3.0, 4.0), timed(4.0, 5.0))
    assert full.prompt_tokens_per_second == []


def test_latencies_are_those_of_the_caller() -> None:
    figures = result(PLAIN, timed(0.1, 0.2, 0.3), timed(0.3, 0.7, 1.1))
    assert figures.ttft_ms == 200.0
    assert figures.tpot_ms == 250.0


def test_acceptance_counts_the_bonus_in_the_length_and_not_in_the_rate() -> None:
    figures = result(Cell("fixed", 1, 2, 3), timed(0.1, 0.2, 0.2, 0.2, 0.3, verified=(4, 1), drafted=6))
    assert figures.mean_acceptance_length == 2.5
    assert figures.acceptance_rate == 0.5


def test_figures_that_an_engine_does_not_report_are_none() -> None:
    figures = result(Cell("lookup", 1, None, 3), timed(0.1, 0.2, verified=(2,)))
    assert figures.acceptance_rate is None
    assert figures.draft_ms_per_token == []
    assert result(PLAIN, timed(0.1, 0.2)).mean_acceptance_length is None


def test_speedups_compare_with_the_plain_loop_of_the_same_batch_only() -> None:
    plain = result(PLAIN, timed(1.0, 2.0), timed(1.0, 4.0))
    fast = result(Cell("fixed", 2, 2, 3), timed(1.0, 1.5), timed(1.0, 2.0))
    other = result(Cell("fixed", 4, 2, 3), timed(1.0, 1.5))
    one, two, three = with_speedups([plain, fast, other])
    assert one.speedup is not None
    assert one.speedup.median == 1.0
    assert two.speedup is not None
    assert two.speedup.median == pytest.approx(3.0, rel=0.02)  # 2 tokens in 1 s for 2 in 3 s
    assert three.speedup is None


def test_a_speedup_in_the_midst_of_a_run_counts_the_repetitions_that_both_have() -> None:
    plain, fast = result(PLAIN, timed(1.0, 2.0)), result(Cell("fixed", 2, 2, 3), timed(1.0, 1.5))
    ahead = replace(plain, tokens_per_second=[*plain.tokens_per_second, 100.0])
    _, speedup = (row.speedup for row in with_speedups([ahead, fast]))
    assert speedup is not None
    assert (speedup.median, speedup.num_pairs) == (2.0, 3)
