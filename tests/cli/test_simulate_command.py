"""`draftpool simulate` on a tiny family with costs made by hand: what it prints, and what it refuses."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import pytest

from cli.acceptance_file import read_acceptance
from cli.arguments import by_name, real
from cli.main import main
from deployments.config import load_config
from deployments.profile_store import keep, model_key
from protocol.errors import ConfigError
from simulation.text import Place
from tests.cli.commands import printed, refused
from tests.deployments.checkpoints import config_beside, with_another_tokenizer
from tests.router.curves import curves

CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 4, max_batch: 4, speculation: {policy: goodput}}
  - {name: small, path: small, dtype: fp32, page_size: 16, kv_mb: 4, num_replicas: 2,
     speculation: {policy: fixed, depth: 2, length: 3}}
  - {name: plain, path: small, dtype: fp32, page_size: 16, kv_mb: 4}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 4, max_rows: 2}
"""
ACCEPTANCE = "2:0.6,4:0.8"
LOAD = ("--rate", "20", "--seconds", "1", "--max-tokens", "5,15")


@pytest.fixture
def config(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "200")
    return config_beside(family, tmp_path, CONFIG)


@pytest.fixture
def profiled(config: Path) -> Path:
    keep_costs(config)
    return config


def keep_costs(config: Path) -> None:
    """Every pass takes as long as the hand-made curves say."""
    loaded, made = load_config(config), curves(overhead=0.05, link=0.3)
    assert loaded.pool is not None
    assert made.drafter is not None
    for target in loaded.targets:
        keep(replace(made.target, key=model_key(target, target)))
    keep(replace(made.drafter, key=model_key(loaded.pool, loaded.pool)))


def simulated(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> str:
    return printed(capsys, "simulate", str(config), *arguments)


def test_a_config_is_simulated_for_every_number_of_replicas(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = simulated(capsys, profiled, "--acceptance", ACCEPTANCE, "--replicas", "0,1,3", *LOAD)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert [row[0] for row in rows if row[0]] == ["0", "1", "3"]
    for name in ("large", "small 1", "small 2", "plain"):
        own = [row for row in rows if row[2] == name]
        assert len(own) == 3
        assert all(float(row[3]) > 0 and float(row[6]) > 0 for row in own)
        assert own[0][8] == "1.00", "without a pool every round brings a token"
        assert all((float(row[8]) > 1.2) == (name != "plain") for row in own[1:])
    assert float(rows[-5][1].rstrip("%")) < float(next(row for row in rows if row[0] == "1")[1].rstrip("%"))
    assert "small 1, 1 replica: " in output
    assert "3 tokens at depth 2" in output


def test_the_same_seed_prints_the_same(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--acceptance", ACCEPTANCE, *LOAD, "--noise", "0.1", "--seed")
    first, again, other = (simulated(capsys, profiled, *asked, seed) for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_plot_is_drawn_if_matplotlib_is_installed(
    profiled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--acceptance", ACCEPTANCE, "--replicas", "1,2", "--plot", str(profiled.parent / "plot.png"), *LOAD)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["simulate", str(profiled), *asked]) == 0
    captured = capsys.readouterr()
    assert "needs matplotlib" in captured.err
    assert "simulated" in captured.out
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("deployments.profile_store.cache_directory", lambda: profiled.parent / "cache")
    simulated(capsys, profiled, *asked)
    assert (profiled.parent / "plot.png").read_bytes().startswith(b"\x89PNG")


def acceptance_file(folder: Path, **values: object) -> Path:
    path = folder / "acceptance.json"
    path.write_text(json.dumps({"schema_version": 2, **values}))
    return path


def test_an_acceptance_file_has_rates_for_each_target(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    easy = {"rates": {"2": 0.9, "4": 0.95}, "concentration": 8}
    hard = [{"rates": {"2": 0.1, "4": 0.1}}, {"rates": {"2": 0.2, "4": 0.2}, "from_position": 9, "from_ms": 5}]
    path = acceptance_file(profiled.parent, targets={"small": [easy], "*": hard})
    profiles = read_acceptance(path)
    assert profiles["*"].stages[1].from_position == 9
    for position, moment, rate in ((8, 9.0, 0.1), (9, 4.0, 0.1), (9, 9.0, 0.2)):
        assert profiles["*"].at(Place(1, 0, position, moment), 0)[1] == pytest.approx(rate)
    lines = simulated(capsys, profiled, "--acceptance", str(path), *LOAD).splitlines()
    length = {
        name: float(next(line for line in lines if f" {name} " in line).split("│")[9]) for name in ("large", "small 1")
    }
    assert length["small 1"] > 2 > 1.5 > length["large"]


def test_costs_that_were_never_measured_are_asked_for(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "simulate", str(config), "--acceptance", ACCEPTANCE)
    assert f"run draftpool profile {config}" in error


def test_an_impossible_simulation_is_refused_in_one_line(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = profiled.parent
    wrong = {
        "the drafter has 2, 4": ("--acceptance", "2:0.6"),
        "is not a number from 0 to 1": ("--acceptance", "2:1.6,4:0.5"),
        "is not DEPTH:RATE": ("--acceptance", "some"),
        "cannot read": ("--acceptance", str(folder / "none.json")),
        "--rate names 'other'": ("--acceptance", ACCEPTANCE, "--rate", "other:3"),
        "nothing arrives within": ("--acceptance", ACCEPTANCE, "--rate", "0"),
        "there is no folder": ("--acceptance", ACCEPTANCE, "--plot", str(folder / "nowhere" / "a.png")),
    }
    for told, arguments in wrong.items():
        assert told in refused(capsys, "simulate", str(profiled), *arguments)
    profiled.write_text(CONFIG.split("pool:")[0].replace("policy: goodput", "policy: fixed, depth: 4"))
    assert "pool" in refused(capsys, "simulate", str(profiled), "--acceptance", ACCEPTANCE)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "targets: Field required"),
        ({"targets": {"a": []}}, "targets.a"),
        ({"targets": {"a": [{"rates": {"2": 1.5}}]}}, "1.5"),
        ({"targets": {"a": [{"rates": {"2": 0.5}, "spread": 1}]}}, "spread"),
        ({"targets": {"a": [{"rates": {"2": 0.5}, "from_position": 3}]}}, "begin at position 0"),
        ({"targets": {}, "schema_version": 1}, "schema_version"),
    ],
)
def test_an_invalid_acceptance_file_is_refused(tmp_path: Path, values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_acceptance(acceptance_file(tmp_path, **values))
    (tmp_path / "acceptance.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_acceptance(tmp_path / "acceptance.json")


def test_a_rate_is_one_for_all_or_one_for_each_name() -> None:
    arrival_rates = by_name(real(0))
    assert arrival_rates("3") == {"*": 3.0}
    assert arrival_rates("large:3,small:0.5") == {"large": 3.0, "small": 0.5}
    for text in ("", "large:", "3,4", "3,large:4", "large:1,large:2", "-1", "nan", "inf"):
        with pytest.raises(ArgumentTypeError):
            arrival_rates(text)


def test_ahead_applies_to_all_targets_or_to_those_named(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--acceptance", ACCEPTANCE, *LOAD)
    values = ("off", "on", "large:on,small:off")
    outputs = {ahead: simulated(capsys, profiled, *asked, "--ahead", ahead) for ahead in values}
    assert len(set(outputs.values())) == len(outputs)
    assert simulated(capsys, profiled, *asked) == outputs["large:on,small:off"], "as configured"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ahead", "turbo"), "'turbo' is unknown; choose from on, off"),
        (("--ahead", "small:on,off"), "neither one value"),
        (("--ahead", "huge:on"), "--ahead names 'huge'"),
        (("--ahead", "plain:on"), "plain does not speculate"),
    ],
)
def test_ahead_for_a_target_that_cannot_have_it_is_refused(
    profiled: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "simulate", str(profiled), "--acceptance", ACCEPTANCE, *LOAD, *arguments)


def test_ahead_is_refused_where_a_config_may_not_say_so(profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("simulate", str(profiled), "--acceptance", ACCEPTANCE, *LOAD, "--ahead")
    profiled.write_text(CONFIG.replace("policy: goodput", "policy: ema"))
    told = refused(capsys, *asked, "large:on")
    assert "--ahead on for target large: speculation.ahead: policy: ema drafts in turn only; leave ahead out" in told
    with_another_tokenizer(profiled.parent / "drafter", profiled.parent / "other")
    profiled.write_text(CONFIG.replace("path: drafter", "path: ./other"))
    keep_costs(profiled)
    assert "target large is to be drafted for while it verifies, but" in refused(capsys, *asked, "large:on")
    assert "large" in printed(capsys, *asked, "off")
