"""Simulator and profile against the machine: where the machine keeps to its profile they tell the truth."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cells import Cell, Subject
from bench.deeper import SlowedEngine
from bench.parts import WatchedEngine, parts_of
from bench.pressure import Devices
from bench.simulated import Compared, compare, parse, run
from bench.workload import read_texts
from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import DepthRule, Plan
from router.costs import CostCurves
from router.goodput import GoodputConfig
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family
from tests.router.curves import curves, draft_cost, verify_cost

DEVICES = Devices(verify=12.0, token=0.25, step=2.0, layer=0.5, row_layer=0.0)
IS_BUSY = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
on_time = pytest.mark.skipif(IS_BUSY, reason="others keep this machine so busy that it does not wake on time")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a + {n}"}) for n in range(12)))
    return file


def asked(*more: str) -> argparse.Namespace:
    return parse(["--threads", "1", "--workload", "equal", *more])


class SlowedWatched(WatchedEngine, SlowedEngine):
    """profile: what it claims to cost, its devices' true times if not told otherwise."""

    def __init__(self, subject: Subject, profile: Devices) -> None:
        SlowedEngine.__init__(self, subject, DEVICES)
        self.rounds: dict[Cell, list[RoundOutcome]] = {}
        self.profile = profile

    def curves(self) -> CostCurves:
        return self.profile.curves((2, 4))


def against_slowed(family: Path, prompts: Path, profile: Devices) -> tuple[list[Compared], list[float]]:
    """What is foretold, and the errors of rounds, of a machine that sleeps as DEVICES say."""
    words = "--batch 2 --fixed 4/3 --max-tokens 24 --num-prompts 2 --survey 6 --seeds 3"
    args = asked(*words.split())
    subject = Subject(family / "large", family / "drafter", torch.float32, 1, 2, 500)
    engine = SlowedWatched(subject, profile)
    engine.open()
    try:
        compared, parts = compare(engine, read_texts(prompts, tiny_tokenizer()), "large", args)
    finally:
        engine.close()
    return compared, [own.error for own in parts]


@on_time
@pytest.mark.slow
def test_a_machine_that_sleeps_as_its_profile_says_is_foretold(family: Path, prompts: Path) -> None:
    compared, errors = against_slowed(family, prompts, DEVICES)
    assert [one.cell for one in compared] == ["plain", "4/3", "goodput"]
    assert all(0.9 < one.ratio < 1.6 for one in compared[:2])  # it cannot be faster; other work may make it slower
    assert errors[0] < 0.5


@on_time
@pytest.mark.parametrize(("verify", "seen"), [(3.0, lambda ratio: ratio > 2.2), (36.0, lambda ratio: ratio < 0.75)])
@pytest.mark.slow
def test_a_profile_that_is_wrong_is_seen(
    family: Path, prompts: Path, verify: float, seen: Callable[[float], bool]
) -> None:
    compared, errors = against_slowed(family, prompts, replace(DEVICES, verify=verify))
    assert seen(compared[0].ratio)
    assert errors[0] > 0.5


def test_the_report_names_every_cell(
    family: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "simulated.json"
    args = asked("--targets", str(family / "large"), "--drafter", str(family / "drafter"), "--prompts", str(prompts))
    small = {
        "fixed": [(2, 2), (4, 3)],
        "batch": [1, 2],
        "max_tokens": 16,
        "num_prompts": 2,
        "survey": 4,
        "seeds": 1,
        "out": out,
    }
    assert run(argparse.Namespace(**vars(args) | small)) in (0, 1)
    made = json.loads(out.read_text())
    assert len(made["cells"]) == 2 * 4
    assert all(0 < cell["ratio"] < math.inf for cell in made["cells"])
    assert {own["cell"] for own in made["rounds"]} == {"plain", "2/2", "4/3", "goodput"}
    assert made["worst_cell"] in made["cells"]
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out


RULES = tuple(DepthRule((exit_,)) for exit_ in (2, 4, 6))
CONFIG = GoodputConfig(RULES, (2, 4, 6), length=8, max_rows=8)


def rounds(number: int, draft: float, verify: float, rest: float) -> list[RoundOutcome]:
    """Of four rows that draft three tokens at exit 4; factors on what curves made by hand say."""
    plan = Plan(RULES[1], (3,) * 4)
    row = RowOutcome(1, 2, 3, (4, 4, 4), (0.5,) * 3, num_fed=1)
    times = (draft * draft_cost(4, 4, 3), 0.0, verify * verify_cost(4, 16), rest * 0.5)
    return [RoundOutcome(plan, (row,) * 4, 100.0, *times) for _ in range(number)]


def test_parts_of_a_round_are_told_apart_and_corrections_learn_from_the_first_half_only() -> None:
    cell, known = Cell("fixed", 4, 4, 3), curves(overhead=0.5)
    (own,) = parts_of("hand", known, CONFIG, {cell: rounds(200, draft=2.0, verify=0.8, rest=4.0)})
    assert (own.draft, own.verify, own.rest) == pytest.approx((0.5, 1.25, 0.25), rel=0.01)
    assert own.num_rounds == 100
    assert own.corrected < 0.02 < own.error
    turned = rounds(100, 1.0, 1.0, 1.0) + rounds(100, 2.0, 2.0, 2.0)
    (own,) = parts_of("hand", known, CONFIG, {cell: turned})
    assert own.corrected == pytest.approx(own.error, abs=0.01)  # nothing of the second half was learned
    assert own.error == pytest.approx(0.5, abs=0.01)


def test_rounds_beside_prompts_and_of_part_of_a_batch_are_left_out() -> None:
    cell, known = Cell("fixed", 4, 4, 3), curves(overhead=0.5)
    good = rounds(20, 1.0, 1.0, 1.0)
    prompts = [replace(one, num_prefill_tokens=9, verify_ms=99.0) for one in good]
    fewer = [replace(one, rows=one.rows[:2], verify_ms=99.0) for one in good]
    (own,) = parts_of("hand", known, CONFIG, {cell: [*prompts, *good, *fewer]})
    assert own.num_rounds == 10
    assert own.error == pytest.approx(0, abs=0.01)
