"""The picture of choices: longer where batches are small, deeper where layers are cheap, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.choices import choices, parse, run
from protocol.plan import DepthRule
from router.predict import Predictor
from router.tables import tables
from tests.deployments.checkpoints import make_family
from tests.router.curves import curves

RULES = tuple(DepthRule((exit_,)) for exit_ in (2, 4, 6))
HAZARDS = [np.full(12, rate) for rate in (0.7, 0.8, 0.85)]
BATCHES = (1, 2, 4, 8, 16, 32)


def predictor(**costs: float) -> Predictor:
    return Predictor(tables(curves(overhead=0.1, **costs), RULES, 12, 32))


def test_larger_batches_draft_less_until_they_are_off() -> None:
    made = choices(predictor(token=0.3), HAZARDS, BATCHES, 256.0)
    lengths = [choice.length for choice in made]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 2 * lengths[-1]
    assert all(choice.over_off >= 1 for choice in made)
    dear = choices(predictor(token=3.0, layer=1.0), HAZARDS, (32,), 256.0)[0]
    assert (dear.depth, dear.length, dear.over_off) == (0, 0, 1)


def test_cheap_layers_make_for_depth() -> None:
    cheap, dear = (choices(predictor(layer=layer, row=0.0), HAZARDS, BATCHES, 256.0) for layer in (0.001, 0.3))
    assert {choice.depth for choice in cheap} == {6}
    assert max(choice.depth for choice in dear) < 6


def test_choices_of_both_targets_are_written_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures come with the bench extra")
    family = make_family(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"def add{n}(a, b): return a"}) for n in range(4)))
    out, picture = tmp_path / "results" / "choices.json", tmp_path / "docs" / "choices.png"
    words = ["--targets", f"{family / 'large'},{family / 'small'}", "--drafter", str(family / "drafter")]
    words += ["--prompts", str(prompts), "--out", str(out), "--picture", str(picture), "--workload", "equal"]
    words += ["--batch", "1,2", "--survey", "4", "--max-tokens", "16", "--threads", "1"]
    assert run(parse(words)) == 0
    made = json.loads(out.read_text())["targets"]
    assert [[choice["batch"] for choice in made[name]["choices"]] for name in ("large", "small")] == [[1, 2]] * 2
    assert made["large"]["hazards"]["4"][0] > made["small"]["hazards"]["4"][0]  # the drafter is the large one again
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out
