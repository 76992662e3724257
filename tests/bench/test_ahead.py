"""Modes with the pool in a process of its own: our plain loop's text, on cores that nobody else of ours uses."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from bench.ahead.__main__ import OF_BETTER, measured, report, table
from bench.ahead.pair import paired
from bench.cells import APART, CHOSEN, Cell, Subject
from bench.grid import Grid
from bench.run import Engines, measure
from bench.workload import Workload, read_texts
from protocol.plan import Mode
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family

MAX_TOKENS = 24
PLACE: dict[str, object] = dict.fromkeys(("cpu", "threads", "torch", "commit", "command"), "?")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_family(tmp_path_factory.mktemp("family"))
    prompts = [json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(3)]
    (directory / "prompts.jsonl").write_text("\n".join(prompts))
    return directory


@pytest.fixture
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes cost need not be known well."""
    monkeypatch.setattr("bench.ours.PROFILE_REPEAT", 1)


def subject_of(family: Path) -> Subject:
    return Subject(family / "large", family / "drafter", torch.float32, 1, max_batch=3, max_length=256)


@pytest.mark.slow
def test_every_mode_with_the_pool_apart_writes_the_plain_loops_text(family: Path, few_sweeps: None) -> None:
    workload = Workload(read_texts(family / "prompts.jsonl", tiny_tokenizer()), "equal", 3)
    modes = ("plain", *APART)
    cells = [Cell("plain", 1), *Grid(modes, (3,), (4,), (3,), (0.0, 0.8)).cells()]
    with paired(subject_of(family), (max(os.sched_getaffinity(0)),), measured=1) as engine:
        (pool,) = active_children()
        assert os.sched_getaffinity(pool.pid or 0) == {max(os.sched_getaffinity(0))}
        engines = Engines(engine, dict.fromkeys(modes, engine))
        results = measure(engines, cells, workload, repeat=2, max_tokens=MAX_TOKENS)
    assert active_children() == []
    assert [result.cell for result in results] == cells
    assert {result.identical for result in results} == {1.0}
    for result in results:
        if result.cell.mode not in ("plain", CHOSEN):  # a drafter that is the target is always right
            assert result.mean_acceptance_length is not None
            assert result.mean_acceptance_length > 2


@pytest.mark.slow
def test_a_pool_that_does_not_start_is_an_error(family: Path) -> None:
    subject = replace(subject_of(family), drafter=family / "nowhere")
    with pytest.raises(RuntimeError, match="did not start"), paired(subject, ()):
        pass


def test_the_modes_of_a_pool_apart_are_the_modes_of_a_plan() -> None:
    assert list(APART) == [*Mode, CHOSEN]


@pytest.mark.slow
def test_one_table_compares_modes_and_the_routers_choice_at_every_batch(family: Path, few_sweeps: None) -> None:
    scale = {"sweep": 1, "learn": 1, "pairs": 2, "max_tokens": 12, "num_prompts": 1}
    ahead = {"depths": [2, 4], "lengths": [3]}
    args = Namespace(batch=[1, 3], workload="equal", weights="stored", temperatures=[0.0], **scale, **ahead)
    args.target, args.prompts = family / "large", family / "prompts.jsonl"
    with paired(subject_of(family), (), measured=1) as engine:
        cells = list(measured(engine, args))
    assert [cell.batch for cell in cells] == [1, 3]
    for cell in cells:
        assert set(cell.rates) == {"plain", *Mode, CHOSEN}
        assert 0 <= cell.hits.share <= 1
        assert cell.identical == 1.0
        assert cell.bar.asked == OF_BETTER
        assert sum(cell.played.values()) == pytest.approx(1, abs=1e-2)
    assert json.loads(json.dumps(report(cells, PLACE, args)))["cells"][1]["batch"] == 3
    assert table(cells, PLACE).count("| ahead |") == 2
