"""Modes with the pool in a process of its own: our plain loop's text, on cores that nobody else of ours uses."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from bench import batches
from bench.apart import ApartEngine, Cores, divided
from bench.cells import ADAPTIVE, APART, Cell, Subject, Unavailable
from bench.grid import Grid
from bench.pair import paired
from bench.run import measure, opened
from bench.stats import Bar, paired_ratio
from bench.workload import Workload, read_texts
from cli.main import main
from router.modes import Mode
from targets.mirror import MirrorConfig
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family

MAX_TOKENS = 24


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(3)))
    return Workload(read_texts(file, tiny_tokenizer()), "equal", 3)


@pytest.fixture
def few_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes cost need not be known well."""
    monkeypatch.setattr("bench.ours.PROFILE_REPEAT", 1)
    monkeypatch.setattr("bench.apart.PROFILE_REPEAT", 1)


def subject_of(family: Path) -> Subject:
    return Subject(family / "large", family / "drafter", torch.float32, 1, max_batch=3, max_length=256)


@pytest.mark.slow
def test_every_mode_with_the_pool_apart_writes_the_plain_loops_text(
    family: Path, workload: Workload, few_sweeps: None
) -> None:
    modes = ("plain", *APART)
    cells = [Cell("plain", 1), *Grid(modes, (3,), (4,), (3,), (0.0, 0.8)).cells()]
    with opened(subject_of(family), modes) as engines:
        the_pool_has_a_core_that_the_target_leaves_alone(engines.by_mode["mirror"])
        results = measure(engines, cells, workload, repeat=2, max_tokens=MAX_TOKENS)
        assert engines.left_out == {}
    assert psutil.Process().children() == []
    assert [result.cell for result in results] == cells
    assert {result.identical for result in results} == {1.0}
    for result in results:
        drafts = result.mode != "plain"
        assert (result.engine == "draftpool, pool apart") is drafts
        if drafts and result.mode not in ADAPTIVE:  # a drafter that is the target is always right
            assert result.mean_acceptance_length is not None
            assert result.mean_acceptance_length > 2


def the_pool_has_a_core_that_the_target_leaves_alone(engine: object) -> None:
    assert isinstance(engine, ApartEngine)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        (pool,) = psutil.Process().children()
        assert pool.cpu_affinity() == cores[-1:]
        with engine._at_home():
            assert sorted(os.sched_getaffinity(0)) == cores[:1]
        assert sorted(os.sched_getaffinity(0)) == cores
        assert f"pool on core {cores[-1]}" in engine.version


def test_cores_are_divided_between_target_and_pool_and_one_core_is_not() -> None:
    assert divided([0, 1, 2, 3], 2) == Cores((0, 1), (3,))
    assert divided([0, 1, 2, 3], 8) == Cores((0, 1, 2), (3,))
    assert divided([4, 7], 1) == Cores((4,), (7,))
    assert (divided([3], 4), divided([3], 4).num_threads) == (Cores(), 1)
    assert "there is one only" in str(divided([3], 4))


def test_a_pool_that_does_not_start_leaves_its_modes_out(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.pool_process.sys.executable", "/bin/false")
    with pytest.raises(Unavailable, match="did not start"):
        ApartEngine(subject_of(family), ["mirror"]).open()


def test_modes_are_those_that_the_router_knows_and_others_are_refused(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set().union(*APART.values()) == set(Mode)
    with pytest.raises(SystemExit):
        main(["bench", "--target", str(family / "large"), "--modes", "plain,roads"])
    told = capsys.readouterr().err
    assert "'roads' is no mode; choose from plain, fixed, goodput, serial, ahead, mirror" in told
    assert main(["bench", "--target", str(family / "large"), "--modes", "plain,mirror"]) == 2
    assert "mirror" in capsys.readouterr().err


@pytest.mark.slow
def test_one_table_tells_what_is_chosen_at_every_batch(
    family: Path, tmp_path: Path, workload: Workload, capsys: pytest.CaptureFixture[str], few_sweeps: None
) -> None:
    scale = {"sweep": 1, "learn": 1, "pairs": 2, "max_tokens": 12}
    args = Namespace(batches=[1, 3], temperatures=[0.0], depths=[2, 4], lengths=[3], **scale)
    out = tmp_path / "batches.json"
    with paired(subject_of(family), MirrorConfig(), (), measured=1) as engine:
        assert batches.run(engine, replace(workload, num_prompts=1), args, out) in (0, 1)
    made = json.loads(out.read_text())
    assert [cell["batch"] for cell in made["cells"]] == [1, 3]
    for cell, bar in zip(made["cells"], made["bars"], strict=True):
        assert cell["identical"] == 1.0
        assert sum(cell["played"].values()) == pytest.approx(1, abs=1e-3)
        assert set(cell["played"]) <= {"off", *Mode}
        assert bar["asked"] == batches.OF_BETTER
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out


def test_a_batch_below_the_better_of_in_turn_and_off_misses_its_bar() -> None:
    def bar(ratio: float) -> Bar:
        measured = batches.Measured(8, 0.0, "4/3", 100.0, 90.0, 100.0, paired_ratio([ratio] * 3, [1.0] * 3), {}, 1.0)
        return measured.bar

    assert [bar(ratio).met for ratio in (1.2, 0.98, 0.97)] == [True, True, False]


@pytest.mark.slow
def test_the_command_measures_modes_with_and_without_a_pool_apart_in_one_run(
    family: Path, tmp_path: Path, workload: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = ["plain", "fixed", "mirror", *(["lanes"] if "lanes" in APART else [])]
    out = tmp_path / "result.json"
    argv = ["bench", "--target", str(family / "large"), "--drafter", str(family / "drafter"), "--batch", "2"]
    argv += ["--modes", ",".join(modes), "--depths", "4", "--lengths", "3", "--workload", "equal", "--num-prompts", "2"]
    argv += ["--max-tokens", "8", "--dtype", "fp32", "--threads", "1", "--repeat", "2", "--out", str(out)]
    assert main(argv) == 0
    made = json.loads(out.read_text())
    assert [cell["mode"] for cell in made["cells"]] == modes
    assert {cell["identical"] for cell in made["cells"]} == {1.0}
    assert all(len(cell["tokens_per_second"]) == 2 and cell["speedup"]["num_pairs"] == 2 for cell in made["cells"])
    assert "pool" in made["machine"]["engines"]["draftpool, pool apart"]
