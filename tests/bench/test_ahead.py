"""Modes with the pool in a process of its own: our plain loop's text, on cores that nobody else of ours uses."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
import torch

from bench.ahead.__main__ import OF_BETTER, measured, report, table
from bench.ahead.apart import ApartEngine, divided
from bench.ahead.pair import paired
from bench.cells import APART, CHOSEN, Cell, Subject, Unavailable
from bench.grid import Grid
from bench.run import measure, opened
from bench.workload import Workload, read_texts
from cli.main import main
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
    monkeypatch.setattr("bench.ahead.apart.PROFILE_REPEAT", 1)


def subject_of(family: Path) -> Subject:
    return Subject(family / "large", family / "drafter", torch.float32, 1, max_batch=3, max_length=256)


@pytest.mark.slow
def test_every_mode_with_the_pool_apart_writes_the_plain_loops_text(family: Path, few_sweeps: None) -> None:
    workload = Workload(read_texts(family / "prompts.jsonl", tiny_tokenizer()), "equal", 3)
    modes = ("plain", *APART)
    cells = [Cell("plain", 1), *Grid(modes, (3,), (4,), (3,), (0.0, 0.8)).cells()]
    others = set(psutil.Process().children())
    with opened(subject_of(family), modes) as engines:
        the_pool_has_a_core_that_the_target_leaves_alone(engines.by_mode["ahead"], others)
        results = measure(engines, cells, workload, repeat=2, max_tokens=MAX_TOKENS)
        assert engines.left_out == {}
    assert set(psutil.Process().children()) == others
    assert [result.cell for result in results] == cells
    assert {result.identical for result in results} == {1.0}
    for result in results:
        drafts = result.mode != "plain"
        assert (result.engine == "draftpool, pool apart") is drafts
        if drafts and result.mode != CHOSEN:  # a drafter that is the target is always right
            assert result.mean_acceptance_length is not None
            assert result.mean_acceptance_length > 2


def the_pool_has_a_core_that_the_target_leaves_alone(engine: object, others: set[psutil.Process]) -> None:
    assert isinstance(engine, ApartEngine)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        (pool,) = set(psutil.Process().children()) - others
        assert pool.cpu_affinity() == cores[-1:]
        with engine._at_home():
            assert sorted(os.sched_getaffinity(0)) == cores[:1]
        assert sorted(os.sched_getaffinity(0)) == cores
        assert f"pool on ({cores[-1]},)" in engine.version


def test_cores_are_divided_between_target_and_pool_and_one_core_is_not() -> None:
    assert divided([0, 1, 2, 3], 2) == ((0, 1), (3,))
    assert divided([0, 1, 2, 3], 8) == ((0, 1, 2), (3,))
    assert divided([4, 7], 1) == ((4,), (7,))
    assert divided([3], 4) == ((), ())


def test_a_pool_that_does_not_start_leaves_its_modes_out(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.pool_process.sys.executable", "/bin/false")
    with pytest.raises(Unavailable, match="did not start"):
        ApartEngine(subject_of(family), ["ahead"]).open()


def test_modes_are_those_of_a_plan_and_others_are_refused(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(APART) == [*Mode, CHOSEN]
    with pytest.raises(SystemExit):
        main(["bench", "--target", str(family / "large"), "--modes", "plain,roads"])
    told = capsys.readouterr().err
    assert "'roads' is unknown; choose from plain, fixed, ema, goodput, serial, ahead, ahead_early_exit" in told
    assert main(["bench", "--target", str(family / "large"), "--modes", "plain,ahead"]) == 2
    assert "need --drafter" in capsys.readouterr().err


@pytest.mark.slow
def test_one_table_compares_modes_and_the_routers_choice_at_every_batch(family: Path, few_sweeps: None) -> None:
    scale = {"sweep": 1, "learn": 1, "pairs": 2, "max_tokens": 12, "num_prompts": 1}
    ahead = {
        "fan_out": 8,
        "exit_layer": None,
        "modes": [mode.value for mode in Mode],
        "depths": [2, 4],
        "lengths": [3],
    }
    args = Namespace(batch=[1, 3], temperatures=[0.0], **scale, **ahead)
    args.target, args.prompts = family / "large", family / "prompts.jsonl"
    with paired(subject_of(family), (), measured=1) as engine:
        cells = list(measured(engine, args, "equal"))
    assert [cell.batch for cell in cells] == [1, 3]
    for cell in cells:
        assert set(cell.rates) == {"plain", *Mode, CHOSEN}
        assert set(cell.gain) == set(cell.hits) == {Mode.AHEAD, Mode.AHEAD_EARLY_EXIT}
        assert cell.identical == 1.0
        assert cell.bar.asked == OF_BETTER
        assert sum(cell.played.values()) == pytest.approx(1, abs=1e-2)
    assert json.loads(json.dumps(report(cells, PLACE, args)))["cells"][1]["batch"] == 3
    assert table(cells, PLACE).count("| ahead |") == 2
