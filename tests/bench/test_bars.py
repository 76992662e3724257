"""Bars from results, and what is drawn of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.bars import Bars, law, of_mode, ratio, table, winners
from bench.cells import Cell, CellOutcome, Timed
from bench.metrics import CellResult, summary
from bench.run import Engines
from bench.stats import Bar, Ratio
from bench.workload import Workload

REPORT = {
    "machine": {"cpu": "2 x test", "threads": 2, "torch": "2", "commit": "abc", "command": "python -m bench.bars"},
    "left_out": {"openvino": "run 'make bench-peers'"},
}


def result(mode: str, length: int, rates: list[float]) -> CellResult:
    cell = Cell(mode, 1, 2 if mode == "fixed" else None, length)
    output = Timed((1, 2), (0.1, 0.2), 0.0)
    return replace(summary("any", cell, [[CellOutcome((output,))]] * len(rates), 1, [True]), tokens_per_second=rates)


RESULTS = [
    result("plain", 0, [100.0, 50.0]),
    result("fixed", 2, [140.0, 80.0]),
    result("fixed", 4, [200.0, 100.0]),
    result("assisted", 4, [20.0, 10.0]),
    result("assisted", 2, [30.0, 20.0]),
]


def test_every_mode_is_represented_by_its_fastest_setting() -> None:
    assert [(cell.mode, cell.length) for cell in winners(RESULTS)] == [("plain", 0), ("fixed", 4), ("assisted", 2)]


def test_an_engine_that_is_left_out_sets_no_bar(no_engines: Engines) -> None:
    bars = Bars(no_engines, Workload((), "mixed", 1), 2, 8)
    bars.add("plain, over OpenVINO", "at least", 0.95, ratio(RESULTS[0], of_mode(RESULTS, "openvino")))
    bars.add("best fixed, over plain", "at least", 1.5, ratio(RESULTS[2], of_mode(RESULTS, "plain")))
    assert [(bar.name, bar.ratio.median, bar.met) for bar in bars.bars] == [("best fixed, over plain", 2.0, True)]


@pytest.fixture
def no_engines() -> Engines:
    return Engines(None, {})  # type: ignore[arg-type]


def test_the_table_says_what_was_missed_and_what_was_left_out() -> None:
    met, missed = Ratio(3.0, 2.9, 3.1, 15), Ratio(1.0, 0.9, 1.1, 15)
    bars = [
        Bar("plain, batch 8, over generate", "at least", 2.5, met),
        Bar("plain, batch 8, over OpenVINO", "at least", 2.5, missed),
        Bar("drafted token", "at most", 0.12, missed, "a note"),
    ]
    text = table(bars, REPORT)
    assert [line.rsplit("|", 2)[1].strip() for line in text.splitlines()[2:5]] == ["yes", "**no**", "**no**"]
    assert "| drafted token (a note) | at most 0.12 | 1 | 0.9-1.1 | 15 |" in text
    assert "Left out: openvino (run 'make bench-peers')." in text


def test_the_law_is_tokens_of_a_round_over_its_price() -> None:
    assert law(3.0, 4, plain_ms=2.0, verify_ms=2.5, draft_ms=0.125) == 2.0
    assert law(1.0, 0, plain_ms=2.0, verify_ms=2.0, draft_ms=0.0) == 1.0
