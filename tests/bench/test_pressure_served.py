"""Served pressure, its pure parts: which tokens count, what a router is said to play, and what stands beside what."""

from __future__ import annotations

from typing import Any

import pytest

from bench.pressure_served import NAMES, POLICIES, Cell, Served, config_of, parse, play, ratios, table, tokens_within

COUNTS = {"num_steps": 90, "num_missed_drafts": 7, "num_drafted": 200, "num_accepted": 50}
NONE = dict.fromkeys(COUNTS, 0)
PLACE: dict[str, object] = {"cpu": "2 x CPU", "threads": 1, "torch": "2", "commit": "abc", "command": "bench --out x"}
OFF = Cell("off", 2, (10.0, 20.0, 10.0, 10.0), NONE, {"off": 8})
FIXED = Cell("fixed", 2, (12.0, 8.0, 10.0, 10.0), COUNTS, {"depth 2/4": 8})
GOODPUT = Cell("goodput", 2, (10.0, 19.0, 10.0, 11.0), COUNTS, {"off": 6, "depth 2/3": 2})


@pytest.mark.parametrize(
    ("sent_s", "end_s", "counted"), [(0, 4, 0), (10, 14, 8), (8, 12, 4), (18, 22, 4), (5, 25, 4), (20, 24, 0)]
)
def test_an_answer_counts_for_the_part_of_it_that_lies_within(sent_s: float, end_s: float, counted: float) -> None:
    assert tokens_within([Served("small-0", sent_s, end_s, 8)], 10.0, 20.0) == pytest.approx(counted)


@pytest.mark.parametrize(
    ("told", "played"),
    [
        ({"policy": "off"}, "off"),
        ({"policy": "fixed", "rule": "depth 2", "length": 4}, "depth 2/4"),
        ({"policy": "goodput", "arm": None}, "off"),
        ({"policy": "goodput", "arm": {"rule": "off", "lengths": [0, 0]}}, "off"),
        ({"policy": "goodput", "arm": {"rule": "depth 6", "lengths": [2, 5]}}, "depth 6/5"),
    ],
)
def test_what_is_played_is_the_rule_and_the_longest_draft(told: dict[str, Any], played: str) -> None:
    assert play(told) == played


def test_the_worst_target_is_held_against_its_own_off_and_the_total_against_the_fixed_one() -> None:
    cells = [OFF, FIXED, GOODPUT]
    assert ratios(FIXED, cells) == {"worst_target_over_its_off": 0.4, "total_over_fixed": 1.0}
    assert ratios(GOODPUT, cells) == {"worst_target_over_its_off": 0.95, "total_over_fixed": 1.25}
    another_load = Cell("goodput", 4, (1.0, 1.0, 1.0, 1.0), COUNTS, {})
    assert set(ratios(another_load, [*cells, another_load]).values()) == {None}


def test_the_table_stands_after_every_step() -> None:
    rows = table([OFF], PLACE).splitlines()[2:3] + table([OFF, FIXED, GOODPUT], PLACE).splitlines()[2:5]
    assert rows == [
        "| 2 | off | 10, 20, 10, 10 | 50 | 1.000 | - | - | 0, 0 | off 100% |",
        "| 2 | off | 10, 20, 10, 10 | 50 | 1.000 | 1.250 | - | 0, 0 | off 100% |",
        "| 2 | fixed | 12, 8, 10, 10 | 40 | 0.400 | 1.000 | 200, 25% | 90, 7 | depth 2/4 100% |",
        "| 2 | goodput | 10, 19, 10, 11 | 50 | 0.950 | 1.250 | 200, 25% | 90, 7 | off 75%, depth 2/3 25% |",
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_differ_in_nothing_but_speculation(policy: str) -> None:
    config = config_of(policy, parse(["--load", "1", "32"]))
    assert tuple(target.name for target in config.targets) == NAMES
    assert {(target.threads, target.max_batch, target.num_replicas) for target in config.targets} == {(1, 32, 1)}
    assert all(target.speculation == POLICIES[policy] for target in config.targets)
    assert config.pool is not None
    assert config.pool.num_replicas == 1
