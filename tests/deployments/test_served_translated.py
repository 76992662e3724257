"""A pool of another tokenizer, on a real local Ray cluster: the plain loop's text, and drafts through a translation."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from drafters.manifest import Manifest, vocabulary_hash
from protocol.request import GREEDY, SamplingParams
from targets.engine import Engine
from tests.deployments.served import Served, expected
from tests.fixtures import CONFIG

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]

SAMPLED = SamplingParams(temperature=0.8, seed=1234)
FIXED = "policy: fixed, depth: 2, length: 3, deadline_ms"


@pytest.fixture(scope="module")
def config_text(family: Path) -> str:
    if not (family / "stranger").exists():
        renumber(family / "drafter", family / "stranger")
    text = CONFIG.replace("path: drafter", "path: stranger").replace(FIXED, "deadline_ms")
    assert "stranger" in text
    assert FIXED not in text
    return text


def renumber(drafter: Path, out: Path) -> None:
    """The same drafter, whose tokens have other ids. Special tokens keep theirs."""
    shutil.copytree(drafter, out)
    tokenizer = json.loads((out / "tokenizer.json").read_text("utf-8"))
    vocabulary, added = tokenizer["model"]["vocab"], {token["id"] for token in tokenizer["added_tokens"]}
    ordinary = sorted(set(vocabulary.values()) - added)
    other = dict(zip(ordinary, reversed(ordinary), strict=True))
    tokenizer["model"]["vocab"] = {token: other.get(index, index) for token, index in vocabulary.items()}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    weights = load_file(out / "model.safetensors")
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & weights.keys():
        moved = weights[name].clone()
        moved[list(other.values())] = weights[name][list(other)]
        weights[name] = moved
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    Manifest((2, 4), vocabulary_hash(out)).save(out)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_text_is_the_plain_loops_and_drafts_are_accepted(
    served: Served, oracles: dict[str, Engine], sampling: SamplingParams
) -> None:
    models = ("large", "small")
    oracle = {model: expected(oracles[model], 96, sampling) for model in models}
    with ThreadPoolExecutor(4) as threads:
        asked = [(model, threads.submit(served.tokens, model, sampling, 96)) for model in models * 2]
        assert all(answer.result(timeout=60) == oracle[model] for model, answer in asked)
    counts = served.target("large", "stats")
    assert counts["num_accepted"] > 0
    assert counts["translation"]["shared"] == 1.0


def test_the_larger_target_which_is_the_drafter_accepts_whole_drafts(served: Served) -> None:
    before = served.target("large", "stats")
    served.tokens("large", GREEDY, 64)
    after = served.target("large", "stats")
    proposed, accepted = (after[name] - before[name] for name in ("num_proposed", "num_accepted"))
    assert accepted == proposed > 0
