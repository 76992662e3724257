"""What the simulator is told of overlap, and how its foretelling is compared: against models, the law and a result."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
import torch

from bench.cells import PAGE
from bench.contended import draft
from bench.corrections import Followed, choices_of, follow
from bench.oracle_mirror import best_length
from bench.simulated_mirror import main
from bench.simulated_oracle import speedups
from drafters.client import LocalDraftClient
from drafters.nested import NestedDrafter, load_nested
from drafters.picks import Pick
from drafters.worker import DraftWorker
from protocol.draft import DraftRequest, DraftRow
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from router.cost_files import loads_costs
from router.costs import DrafterCosts
from router.law import Law
from router.simulate_ahead import Choices
from targets.model import TargetModel, load_target
from tests.deployments.checkpoints import make_family

RUNNER_UP = 0.6
SETTINGS = {"verify_ms": 20.0, "runner_up": RUNNER_UP, "max_tokens": 64}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def target(family: Path) -> TargetModel:
    return load_target(family / "large", dtype=torch.float32, num_positions=4 * PAGE, page_size=PAGE)


def drafter_of(family: Path) -> NestedDrafter:
    return load_nested(family / "drafter", dtype=torch.float32, num_positions=4 * PAGE, page_size=PAGE)


def law(acceptance: float, cost: float, length: int) -> float:
    full = acceptance ** (length + 1)
    token = cost * SETTINGS["verify_ms"]
    wait = length * token
    return Law(SETTINGS["verify_ms"], wait, 0.0, full + RUNNER_UP * (1 - full), ahead_ms=token + wait).speedup


def oracle_result(acceptance: float, cost: float) -> dict[str, object]:
    length = best_length(acceptance, cost, 6)
    told = law(acceptance, cost, length)
    return {"acceptance": acceptance, "cost": cost, "length": length, "speedup": {"median": told}}


@pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.9])
def test_the_oracle_s_speed_ups_are_foretold_as_the_law_has_them(acceptance: float) -> None:
    cells = [oracle_result(acceptance, cost) for cost in (0.05, 0.1, 0.2, 0.4)]
    for one in speedups({"cells": cells, "settings": SETTINGS}, seeds=8):
        assert one.simulated == pytest.approx(one.measured, rel=0.08), one


def test_a_result_of_the_oracle_is_compared_cell_by_cell_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = tmp_path / "oracle.json", tmp_path / "out.json"
    made.write_text(json.dumps({"cells": [oracle_result(0.7, 0.1)], "settings": SETTINGS}))
    asked = ["--only-oracle", "--oracle", str(made), "--out", str(out), "--seeds", "4"]
    assert main(asked) == 0
    saved = json.loads(out.read_text())
    assert [cell["ratio"] for cell in saved["cells"]] == pytest.approx([1], rel=0.08)
    assert saved["tables"]["speed-up"]["median_error"] == abs(saved["cells"][0]["ratio"] - 1)
    assert out.with_suffix(".md").read_text() in capsys.readouterr().out
    cells = json.loads(made.read_text())["cells"]
    cells[0]["speedup"]["median"] *= 2
    made.write_text(json.dumps({"cells": cells, "settings": SETTINGS}))
    assert main(asked) == 1, "beyond what is asked"
    assert main(["--only-oracle", "--oracle", str(tmp_path / "none.json")]) == 2
    assert "is no result that can be read" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_followed_as_the_models_would_go_on(family: Path, target: TargetModel, temperature: float) -> None:
    """At its last layer a target picks early what it picks; the drafter what it drafts for anybody who asks."""
    drafter, prompts = drafter_of(family), [(3, 7, 5, 9, 11), (8, 2, 4)]
    layers = target.decoder.config.num_layers
    for seed, text in enumerate(follow(target, drafter, prompts, temperature, 12, layers, kappa=2)):
        assert [early[0] for early in text.early] == list(text.token_ids[text.start :])
        assert len(text.told()) == 12
        for exit_, picks in zip(drafter.exits, text.picks, strict=True):
            asked = [asked_of(family, text.token_ids[: text.start + at], exit_, temperature, seed) for at in (0, 5, 11)]
            assert asked == [picks[at].token for at in (0, 5, 11)]
    drafter.check()


def asked_of(family: Path, tokens: tuple[int, ...], exit_: int, temperature: float, seed: int) -> int:
    client = LocalDraftClient(DraftWorker(drafter_of(family)), "one")
    row = DraftRow(0, 0, tokens, 1, SamplingParams(temperature, seed=seed))
    reply = client.draft(DraftRequest("one", 0, DepthRule((exit_,)), (row,)))
    assert reply is not None
    return reply.blocks[0].tokens[0]


def test_shares_are_counted_of_the_mistakes_that_are_left() -> None:
    def pick(token: int, second: int) -> Pick:
        return Pick(token, 2, 0.5, second)

    picks = [pick(1, 9), pick(1, 9), pick(8, 1), pick(8, 9), pick(8, 9), pick(8, 9)]  # the truth is 1 throughout
    early = [(1, 2), (2, 1), (1, 2), (1, 2), (2, 1), (2, 3)]
    text = Followed((5, *[1] * 6), 1, [picks], early)
    assert choices_of([text], 0, 2) == Choices(runner_up=1 / 4, early=(1 / 3, 1 / 3), agrees=1 / 2)
    assert [at[0][0] for at in text.told()] == [True, True, False, False, False, False]


def test_a_neighbour_drafts_says_what_drafts_cost_it_and_ends_with_its_input(
    family: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    draft(argparse.Namespace(drafter=family / "drafter", cores=[0], max_rows=2, repeat=1, dtype="fp32"))
    ready, told = map(json.loads, capsys.readouterr().out.splitlines())
    found = loads_costs(DrafterCosts, told, "the test")
    assert (ready, found.draft.points[0]) == ("ready", (1.0, 2.0))
    assert min(found.draft.ms) > 0
