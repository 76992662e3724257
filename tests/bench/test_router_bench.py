"""The router beside every fixed setting, at a tiny scale: who competes, what is told, and that a bar can be missed."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from bench import router
from bench.router import OF_BEST, Measured, against_each, bars, run
from bench.stats import paired_ratio
from tests.deployments.checkpoints import make_family

CELL = Measured(
    target="large",
    batch=1,
    best=(4, 3),
    plain=100.0,
    best_fixed=200.0,
    goodput=195.0,
    share_of_best=paired_ratio([195.0] * 3, [200.0] * 3),
    share_of_off=paired_ratio([195.0] * 3, [100.0] * 3),
    fixed={"2/3": 1.5, "4/3": 2.0},
    identical=1.0,
    played={"4/3": 1.0},
)


def test_one_run_measures_plain_every_fixed_setting_and_the_router(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, out = make_family(tmp_path), tmp_path / "results" / "router.json"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(4)))
    scale = {"batch": [1], "depths": [2, 4], "lengths": [2], "pairs": 2, "sweep": 1, "num_prompts": 1, "max_tokens": 8}
    paths = {"targets": [family / "large"], "drafter": family / "drafter", "prompts": prompts, "out": out}
    assert run(Namespace(threads=1, kept_full=0, **scale, **paths)) in (0, 1)
    made = json.loads(out.read_text())
    (cell,) = made["cells"]
    assert set(cell["fixed"]) == {"2/2", "4/2"} == set(made["against_each_fixed"])
    assert cell["identical"] == 1.0
    assert sum(cell["played"].values()) == pytest.approx(1)
    assert made["settings"]["pairs"] == 2
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out


def test_a_router_below_the_best_fixed_setting_misses_its_bar() -> None:
    assert [bar.met for bar in bars([CELL])] == [True, True]
    slow = replace(CELL, share_of_best=paired_ratio([0.9 * OF_BEST] * 3, [1.0] * 3))
    assert [bar.met for bar in bars([slow])] == [False, True]


def test_every_fixed_setting_stands_over_all_cells() -> None:
    other = replace(CELL, batch=8, fixed={"2/3": 1.95, "4/3": 1.0})
    beaten = against_each([CELL, other])
    assert beaten["4/3"] == pytest.approx((1.95 / 2.0 * 1.95 / 1.0) ** 0.5)
    assert beaten["2/3"] == pytest.approx((1.95 / 1.5 * 1.95 / 1.95) ** 0.5)
    assert "geometric mean" in router.table([CELL], {"against_each_fixed": beaten, "machine": _place()})


def _place() -> dict[str, object]:
    return dict.fromkeys(("cpu", "threads", "torch", "commit", "command"), "?")
