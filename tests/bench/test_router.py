"""The router beside every fixed setting, at a tiny scale: who competes, what is told, and that a bar can be missed."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from bench.policies import GOODPUT, POLICIES
from bench.router.__main__ import OF_BEST, Measured, against_each, bars, run, table
from bench.stats import Ratio, paired_ratio
from protocol.errors import ConfigError
from tests.deployments.checkpoints import make_family

PLACE: dict[str, object] = dict.fromkeys(("cpu", "threads", "torch", "commit", "command"), "?")

CHOOSE = {"ema", "goodput"}


def of(share: float) -> Ratio:
    return paired_ratio([share] * 3, [1.0] * 3)


CELL = Measured(
    target="large",
    batch=1,
    best="4/3",
    rates={"plain": [100.0] * 3, "fixed": [200.0] * 3, GOODPUT: [195.0] * 3},
    over_fixed={GOODPUT: of(0.975)},
    over_off={GOODPUT: of(1.95)},
    played={GOODPUT: {"4/3": 1.0}},
    swept={"2/3": 1.5, "4/3": 2.0},
    identical=1.0,
)


def arguments(tmp_path: Path, **changes: object) -> Namespace:
    scale = {"batch": [1], "depths": [2, 4], "lengths": [2], "pairs": 2, "sweep": 1, "num_prompts": 1, "max_tokens": 8}
    paths = {"targets": [tmp_path / "large"], "drafter": tmp_path / "drafter", "prompts": tmp_path / "prompts.jsonl"}
    paths |= {"out": tmp_path / "results" / "router.json"}
    rest = {"weights": "stored", "workload": "mixed", "threads": 1, "kept_full": 0, "policies": list(POLICIES)}
    return Namespace(**{**scale, **paths, **rest, **changes})


def test_one_run_measures_plain_every_fixed_setting_and_every_policy_that_chooses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.ours.PROFILE_REPEAT", 1)
    make_family(tmp_path)
    prompts = [json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(4)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    args = arguments(tmp_path)
    assert run(args) in (0, 1)
    made = json.loads(args.out.read_text())
    (cell,) = made["cells"]
    assert set(cell["swept"]) == {"2/2", "4/2"}
    assert set(cell["rates"]) == {"plain", "fixed", *CHOOSE}
    assert set(cell["over_fixed"]) == set(cell["over_off"]) == set(made["against_each_fixed"]) == CHOOSE
    assert cell["identical"] == 1.0
    assert all(sum(played.values()) == pytest.approx(1, abs=1e-2) for played in cell["played"].values())
    assert made["settings"]["pairs"] == 2
    assert args.out.with_suffix(".md").read_text() == capsys.readouterr().out


def test_without_a_policy_that_chooses_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chooses by itself"):
        run(arguments(tmp_path, policies=["off", "fixed"]))


def test_a_router_below_the_best_fixed_setting_misses_its_bar() -> None:
    assert [bar.met for bar in bars([CELL])] == [True, True]
    slow = replace(CELL, over_fixed={GOODPUT: of(0.9 * OF_BEST)})
    assert [bar.met for bar in bars([slow])] == [False, True]
    assert "large, batch 1: goodput over the best fixed" in table([slow], PLACE)


def test_goodput_has_to_reach_every_other_policy_that_chooses() -> None:
    other = replace(CELL, rates=CELL.rates | {"other": [210.0] * 3}, played=CELL.played | {"other": {}})
    assert [bar.met for bar in bars([other])] == [True, True, False]


def test_every_fixed_setting_stands_over_all_cells() -> None:
    other = replace(CELL, batch=8, swept={"2/3": 1.95, "4/3": 1.0})
    beaten = against_each([CELL, other], GOODPUT)
    assert beaten["4/3"] == pytest.approx((1.95 / 2.0 * 1.95 / 1.0) ** 0.5)
    assert beaten["2/3"] == pytest.approx((1.95 / 1.5 * 1.95 / 1.95) ** 0.5)
    assert "2 of 2 are beaten" in table([CELL, other], PLACE)
