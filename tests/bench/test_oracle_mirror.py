"""Mirror against its law: rounds are those of drafting in turn, and as many outcomes are foreseen as were to be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scipy.stats import binom

from bench import machine
from bench.cells import Subject
from bench.oracle_mirror import BEYOND, OracleEngine, Setting, best_length, compare, parse, report, table, with_lead
from bench.workload import EQUAL, Workload, read_texts
from router.law import Law
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family

ALMOST_ALL = 1 - 1e-6
NUM_TOKENS = 49  # one from the prompt, and 16 rounds of 3 at the most
ARGUMENTS = ["--verify-ms", "4", "--repeat", "2", "--max-tokens", str(NUM_TOKENS)]


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(2)))
    return Workload(read_texts(file, tiny_tokenizer()), "equal", 2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, workload: Workload) -> Iterator[OracleEngine]:
    family = make_family(tmp_path_factory.mktemp("family"))
    subject = Subject(family / "large", None, torch.float32, 1, 1, EQUAL + NUM_TOKENS + BEYOND)
    engine = OracleEngine(subject, verify_ms=4.0)
    engine.open()
    engine.know(workload, NUM_TOKENS)
    yield engine
    engine.close()


@pytest.mark.parametrize(("acceptance", "runner_up"), [(1.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.6, 0.5)])
def test_outcomes_are_foreseen_where_all_is_accepted_or_the_runner_up_is_right(
    engine: OracleEngine, workload: Workload, acceptance: float, runner_up: float
) -> None:
    args = parse([*ARGUMENTS, "--runner-up", str(runner_up)])
    made = compare(engine, Setting(acceptance, cost=0.05, length=2), workload, args)
    assert made["identical"] == 1.0
    if acceptance == 1.0:
        assert made["tokens_per_round"] == [3.0, 3.0]
    whole = acceptance**3  # the window and the lead behind it
    assert engine.scene is not None
    foreseen = engine.scene.foreseen
    low, high = binom.interval(ALMOST_ALL, foreseen.num_outcomes, whole + (1 - whole) * runner_up)
    assert foreseen.num_outcomes > 40
    assert low <= foreseen.num_foreseen <= high
    assert made["law"] > 0
    assert made["rounds"]["in turn"]["verify_ms"] >= 4.0
    assert made["rounds"]["in turn"]["wait_ms"] >= 2 * 0.05 * 4.0


def test_a_table_tells_of_every_setting_and_of_the_worst(engine: OracleEngine, workload: Workload) -> None:
    args = parse(ARGUMENTS)
    cells = [compare(engine, Setting(0.9, cost, 2), workload, args) for cost in (0.1, 0.4)]
    made = report(cells, engine, args) | {"machine": machine.describe()}
    assert json.loads(json.dumps(made)) == made
    assert made["off_the_law"]["worst"] == max(abs(cell["speedup"]["median"] / cell["law"] - 1) for cell in cells)
    shown = table(made)
    assert shown.count("\n| 0.9 |") == 2
    assert f"worst {made['off_the_law']['worst']:.1%}" in shown


def test_the_best_length_in_turn_is_longer_where_tokens_are_cheap_or_often_right() -> None:
    assert [best_length(a, 0.4, 6) for a in (0.5, 0.9)] == [1, 4]
    assert [best_length(0.6, cost, 6) for cost in (0.05, 0.1, 0.2, 0.4)] == [4, 3, 2, 1]
    for acceptance in (0.5, 0.6, 0.7, 0.8, 0.9):
        for cost in (0.05, 0.1, 0.2, 0.4):
            length = best_length(acceptance, cost, 6)
            tokens = sum(acceptance**n for n in range(length + 1))
            assert tokens > 1 + cost * length, "where drafting does not pay in turn, misses are not waited for"


def test_the_lead_costs_nothing_while_branches_hide_and_its_time_where_they_do_not() -> None:
    hidden = Law(verify_ms=20.0, wait_ms=8.0, rest_ms=1.0, hits=0.7)
    assert with_lead(hidden, lead_ms=4.0) == pytest.approx(hidden.speedup)
    late = Law(verify_ms=20.0, wait_ms=30.0, rest_ms=1.0, hits=1.0)
    assert with_lead(late, lead_ms=0.0) == pytest.approx(late.speedup)
    assert with_lead(late, lead_ms=9.0) == pytest.approx(51 / 40)


def test_a_result_says_where_it_is_written_by_default() -> None:
    args = parse([])
    assert args.out == machine.ROOT / Path("bench/results/oracle_mirror.json")
    assert (args.acceptance, args.cost) == ([0.5, 0.6, 0.7, 0.8, 0.9], [0.05, 0.1, 0.2, 0.4])
