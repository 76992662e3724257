"""A seeded sample of `make exactness`: every pair of settings meets in some cell; `small` in fp32, `large` in bf16."""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from bench.arguments import MODELS
from bench.exactness.__main__ import run_matrix
from bench.exactness.cells import (
    ANY,
    BATCHES,
    CHOOSING,
    DEPTHS,
    IN_TURN,
    LENGTHS,
    MATRICES,
    TEMPERATURES,
    WAYS,
    ExactnessCell,
)
from bench.exactness.differences import TIE
from bench.exactness.runs import (
    ExactnessResult,
    ExactnessSubject,
    Precision,
    differs_from_generate,
    prepare,
    run_cell,
)
from bench.workload import SPEC_BENCH, code_and_questions, spec_bench
from drafters.nested import NestedDrafter
from model.execution import Execution
from tests.model.families import needs_compiler

NUM_PROMPTS, PROMPT_TOKENS, MAX_TOKENS = 16, 24, 12
AXES: tuple[Sequence[object], ...] = (BATCHES, DEPTHS, LENGTHS, TEMPERATURES, (16, 64))


def covering_cells(seed: int) -> list[ExactnessCell]:
    """Few cells that hold every pair of settings: greedily, the best of some random candidates."""
    rng = random.Random(seed)
    settings = [[(axis, value) for value in values] for axis, values in enumerate(AXES)]
    missing = {frozenset(pair) for a, b in itertools.combinations(settings, 2) for pair in itertools.product(a, b)}
    cells = []
    while missing:
        candidates = [tuple(rng.choice(axis) for axis in settings) for _ in range(200)]
        best = max(candidates, key=lambda c: len(missing & {frozenset(p) for p in itertools.combinations(c, 2)}))
        missing -= {frozenset(pair) for pair in itertools.combinations(best, 2)}
        batch, depth, length, temperature, page_size = (value for _, value in best)
        cells.append(ExactnessCell(batch, depth, length, temperature, page_size, kv_positions=16 * 64))
    return cells


PRECISIONS = [
    Precision(torch.float32),
    pytest.param(Precision(torch.bfloat16, Execution.NATIVE), marks=needs_compiler),
]


@pytest.fixture(scope="module", params=PRECISIONS, ids=lambda precision: precision.name)
def subject(request: pytest.FixtureRequest) -> ExactnessSubject:
    target = MODELS / ("small" if request.param.dtype == torch.float32 else "large")
    prompts = code_and_questions(AutoTokenizer.from_pretrained(target), NUM_PROMPTS, PROMPT_TOKENS)
    return prepare(target, MODELS / "drafter", prompts, MAX_TOKENS, request.param)


@pytest.fixture(scope="module")
def results(subject: ExactnessSubject) -> list[ExactnessResult]:
    return [run_cell(subject, cell) for cell in covering_cells(seed=0)]


def test_the_sample_covers_every_pair_of_settings():
    cells = covering_cells(seed=0)
    values = [(c.batch, c.depth, c.length, c.temperature, c.page_size) for c in cells]
    for a, b in itertools.combinations(range(len(AXES)), 2):
        assert {(v[a], v[b]) for v in values} == set(itertools.product(AXES[a], AXES[b]))


def test_every_token_is_the_plain_loops(results, subject):
    num_cases = sum(r.num_cases for r in results)
    ties = [tie for r in results for tie in r.ties]
    assert [r for r in results if r.faults] == []
    assert len(ties) * 2000 <= num_cases, ties
    assert ties == [] or not subject.oracle.decoder.is_deterministic
    assert sum(r.num_tokens for r in results) >= 5000


def test_every_cell_that_drafts_sees_tokens_accepted_and_refused(results):
    drafting = [r for r in results if r.cell.length]
    assert [r.cell for r in drafting if not 0 < r.accepted < r.drafted] == []
    assert all(r.drafted == 0 for r in results if not r.cell.length)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_forced_preemption_changes_no_token(subject, temperature):
    tight = ExactnessCell(16, 4, 5, temperature, page_size=4, kv_positions=384)
    result = run_cell(subject, tight)
    assert result.preempted > 0
    assert result.faults == []


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("policy", CHOOSING)
def test_no_policy_and_no_switch_in_mid_sequence_changes_a_token(subject, policy, temperature):
    for batch, page_size, kv_positions in ((1, 64, 16 * 64), (4, 64, 16 * 64), (16, 4, 512)):
        result = run_cell(subject, ExactnessCell(batch, policy, 8, temperature, page_size, kv_positions))
        assert result.faults == []
        assert 0 < result.accepted < result.drafted


OVERLAPPING = [way for way in WAYS if way not in (IN_TURN, ANY)]


@pytest.mark.parametrize("way", OVERLAPPING)
def test_drafting_while_verifying_changes_no_token(subject, way):
    temperature = TEMPERATURES[OVERLAPPING.index(way) % 2]
    result = run_cell(subject, ExactnessCell(4, 6, 2, temperature, page_size=16, kv_positions=16 * 64, way=way))
    assert result.faults == []
    assert 0 < result.accepted < result.drafted
    assert result.at_hand > 0


def test_no_bad_link_and_no_pool_that_dies_in_mid_branch_changes_a_token(subject):
    cells = [
        ExactnessCell(4, 4, 3, 0.8, page_size=64, kv_positions=16 * 64, way=ANY, faulty=True),
        ExactnessCell(4, "random", 4, 0.0, page_size=4, kv_positions=112, way=ANY, faulty=True),
    ]
    results = [run_cell(subject, cell) for cell in cells]
    assert [result for result in results if result.faults] == []
    assert all(0 < result.accepted < result.drafted for result in results)
    assert sum(result.at_hand for result in results) > 0
    assert sum(result.deaths for result in results) > 0
    assert sum(result.preempted for result in results) > 0


def test_every_cell_that_drafts_is_in_the_ahead_matrix_over_a_bad_link_and_every_way_over_a_good_one():
    in_turn, ahead = MATRICES["in_turn"](), MATRICES["ahead"]()
    bad = {replace(cell, way=IN_TURN, faulty=False) for cell in ahead if cell.faulty}
    assert bad == {cell for cell in in_turn if cell.length}
    assert {cell.way for cell in ahead if cell.faulty} == {ANY}
    assert {cell.way for cell in ahead if not cell.faulty} == set(WAYS) - {IN_TURN}
    assert len(set(ahead)) == len(ahead)


def test_a_run_that_was_interrupted_goes_on_with_cells_of_older_files_too(subject, tmp_path):
    path, cells = (
        tmp_path / "cells.jsonl",
        [ExactnessCell(16, 2, 2, 0.0), ExactnessCell(16, 2, 2, 0.0, way=ANY, faulty=True)],
    )
    (first,) = run_matrix(subject, cells[:1], path)
    old = {"batch": 16, "depth": 2, "length": 2, "temperature": 0.0, "page_size": 256, "kv_positions": 16 * 512}
    path.write_text(json.dumps(first | {"cell": old, "seconds": -1.0}) + "\n")
    both = run_matrix(subject, cells, path)
    assert [both[0]["seconds"], both[1]["cell"]["way"]] == [-1.0, ANY]
    assert len(path.read_text().splitlines()) == 2


def test_the_plain_loop_at_temperature_zero_is_transformers_generate(subject):
    if subject.precision.dtype != torch.float32:
        pytest.skip("bf16 rounds where the matrix products of each do")
    assert [d for d in differs_from_generate(subject) if d.gap > TIE] == []


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_drafter_that_is_the_target_is_always_accepted(subject, temperature):
    num_layers = subject.oracle.decoder.config.num_layers
    drafter = NestedDrafter(subject.oracle.decoder, (num_layers,), num_pages=1, page_size=16)
    itself = replace(subject, drafter=drafter, prompts=subject.prompts[:8])
    texts = {t: rows[:8] for t, rows in subject.texts.items()}
    result = run_cell(replace(itself, texts=texts), ExactnessCell(4, num_layers, 4, temperature))
    assert result.accepted == result.drafted > 0
    assert result.faults == []


def test_spec_bench_questions_are_part_of_the_prompts(subject):
    if not SPEC_BENCH.exists():
        pytest.skip("Spec-Bench's question file is not beside this checkout; held-out code stands in for it")
    questions = spec_bench(AutoTokenizer.from_pretrained(subject.target), NUM_PROMPTS // 2, PROMPT_TOKENS)
    assert set(questions) < set(subject.prompts)
