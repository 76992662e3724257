"""The case of the deepest exit: found where it is the best, and not where its layers are dear."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine
from bench.cells import Subject
from bench.deeper import SlowedEngine, parse, run_case, table
from bench.pressure import Devices
from bench.workload import EQUAL, Workload, read_texts
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family

CHEAP = Devices(verify=15.0, token=0.02, step=1.0, layer=0.02, row_layer=0.0)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(2)))
    return Workload(read_texts(file, tiny_tokenizer()), "equal", 2)


def case(family: Path, workload: Workload, devices: Devices, max_tokens: int) -> dict[str, Any]:
    """The drafter's last exit is the target itself, the other one is hardly ever right."""
    args: argparse.Namespace = parse(["--batch", "2", "--depths", "2,4", "--lengths", "8", "--pairs", "3"])
    args.max_tokens = max_tokens
    subject = Subject(family / "large", family / "drafter", torch.float32, 1, 2, 2 * (EQUAL + args.max_tokens))
    engine = SlowedEngine(subject, devices)
    engine.open()
    try:
        return run_case(engine, workload, args)
    finally:
        engine.close()


@pytest.mark.slow
def test_the_deepest_exit_is_found_where_it_wins(family: Path, workload: Workload) -> None:
    made = case(family, workload, CHEAP, 96)
    assert made["deepest_wins"]
    assert made["identical"] == 1.0
    assert made["share_at_deepest"] > 0.65  # others are tried now and then
    assert made["over_best_fixed"]["median"] > 0.4  # it has hardly begun to know what confidence is worth
    (chosen,) = [row for row in made["plan"] if row["chosen"]]
    assert chosen["arm"] == "depth 4"
    shown = table({"machine": machine.describe(), "devices": CHEAP.label, "target": "large", "case": made})
    assert shown.count("\n| ") >= len(made["plan"])
    assert f"| → | depth 4 | {chosen['length']} |" in shown


@pytest.mark.slow
def test_where_layers_are_dear_it_is_not(family: Path, workload: Workload) -> None:
    made = case(family, workload, replace(CHEAP, verify=3.0, layer=3.0), 24)
    assert made["share_at_deepest"] < 0.5
    (chosen,) = [row for row in made["plan"] if row["chosen"]]
    assert chosen["arm"] == "off"
