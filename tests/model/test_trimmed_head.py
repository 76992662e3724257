"""A trimmed head drafts what the whole head would if it could not draft other tokens."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import read_config
from model.decoder import Decoder
from model.ends import HEAD_TOKEN_IDS
from model.execution import Execution
from model.load import load_decoder
from model.rollout import Drafted, Rollout, roll_out
from model.sampling import pick, pick_with_confidence
from protocol.errors import ConfigError
from protocol.request import SamplingParams
from tests.model.families import EXECUTIONS, VOCAB, make_checkpoint

SEEDS = range(12)


def random_ids(rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(VOCAB, int(rng.integers(2, VOCAB)), replace=False).tolist())


def trim(folder: Path, ids: list[int]) -> Path:
    """The checkpoint in `folder` with a head of these tokens."""
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    weights["lm_head.weight"] = weights["lm_head.weight"][ids].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {HEAD_TOKEN_IDS: ids}))
    return folder


def both(folder: Path, ids: list[int], execution: Execution) -> tuple[Decoder, Decoder]:
    """A model and the same with a trimmed head."""
    whole = load_decoder(make_checkpoint("llama", folder, seed=3), dtype=torch.float32, execution=execution)
    return whole, load_decoder(trim(folder, ids), dtype=torch.float32, execution=execution)


def draw_sampling(rng: np.random.Generator, count: int) -> list[SamplingParams]:
    """Rows that are greedy, noisy, and filtered."""
    seeds = rng.integers(1 << 63, size=count).tolist()
    kinds = [{"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 1.3, "top_k": 7}]
    return [SamplingParams(**kinds[row % 3], seed=seed) for row, seed in enumerate(seeds)]


@dataclass(frozen=True)
class Case:
    """A model, the same with a trimmed head of these tokens, and where the rest is drawn from."""

    rng: np.random.Generator
    ids: list[int]
    whole: Decoder
    trimmed: Decoder


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=EXECUTIONS)
def case(request: pytest.FixtureRequest, seed: int, tmp_path: Path) -> Case:
    rng = np.random.default_rng(seed)
    ids = random_ids(rng)
    return Case(rng, ids, *both(tmp_path, ids, request.param))


def test_picks_are_those_of_logits_whose_other_tokens_are_impossible(case: Case) -> None:
    logits = torch.from_numpy(case.rng.normal(size=(9, VOCAB)).astype(np.float32)) * 3
    possible = torch.full_like(logits, -torch.inf)
    possible[:, case.ids] = logits[:, case.ids]
    sampling, positions = draw_sampling(case.rng, 9), case.rng.integers(1 << 20, size=9).tolist()
    expected = pick_with_confidence(possible, sampling, positions)
    kept = logits[:, case.ids].contiguous()
    tokens, confidences = case.trimmed.pick_with_confidence(kept, sampling, positions)
    assert tokens == expected[0].tolist() == case.trimmed.pick(kept, sampling, positions)
    assert confidences == pytest.approx(expected[1].tolist(), abs=1e-6)
    assert pick(possible, sampling, positions).tolist() == case.whole.pick(possible, sampling, positions)


def test_a_rollout_drafts_what_the_plain_loop_over_masked_logits_drafts(case: Case) -> None:
    mask = torch.full((VOCAB,), -torch.inf)
    mask[case.ids] = 0
    whole, logits = case.whole, case.whole.logits
    whole.logits = lambda hidden, rows: logits(hidden, rows) + mask  # type: ignore[method-assign]
    rows = [
        Rollout(np.arange(64 * row, 64 * row + 40), 0, case.rng.integers(VOCAB, size=5 + row).tolist(), 12, sampling)
        for row, sampling in enumerate(draw_sampling(case.rng, 3))
    ]
    depth = whole.config.num_layers
    expected = roll_out(whole, rows, whole.new_kv(192), depth, None)
    drafted = case.trimmed.roll_out(rows, case.trimmed.new_kv(192), depth, None)
    assert tokens_of(drafted) == tokens_of(expected)


def tokens_of(drafts: list[Drafted]) -> list[list[int]]:
    return [[token for token, _ in draft] for draft in drafts]


@pytest.mark.parametrize("ids", [[5], [5, 4], [5, 5], [-1, 5], [5, VOCAB], ["5", 6], 7])
def test_ids_that_cannot_be_a_head_are_refused(ids: object, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path, seed=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {HEAD_TOKEN_IDS: ids}))
    with pytest.raises(ConfigError, match=HEAD_TOKEN_IDS):
        read_config(folder)


def test_a_head_of_other_rows_than_its_ids_is_refused(tmp_path: Path) -> None:
    folder = trim(make_checkpoint("llama", tmp_path, seed=3), [1, 2, 3])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {HEAD_TOKEN_IDS: [1, 2, 3, 4]}))
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        load_decoder(folder, dtype=torch.float32)
