"""A pass that stops half way, says what it would pick, and goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from model.sampling import noisy_scores
from protocol.request import SamplingParams
from targets.model import ForwardRow, TargetModel, load_target
from tests.model.families import EXECUTIONS, VOCAB

NUM_LAYERS = 4


@pytest.fixture(scope="module", params=EXECUTIONS)
def model(llama: Path, request: pytest.FixtureRequest) -> TargetModel:
    return load_target(llama, dtype=torch.float32, num_positions=512, page_size=16, execution=request.param)


def random_sampling(rng: random.Random) -> SamplingParams:
    return SamplingParams(temperature=rng.choice([0.0, 0.7, 1.3]), seed=rng.getrandbits(64))


def rows_of(model: TargetModel, rng: random.Random) -> tuple[list[ForwardRow], list[SamplingParams], list[int]]:
    """A few rows over fresh sequences, and how each wanted logit is picked."""
    rows: list[ForwardRow] = []
    sampling: list[SamplingParams] = []
    positions: list[int] = []
    for name in range(rng.randint(1, 4)):
        tokens = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))]
        num_logits = rng.randint(1, len(tokens))
        model.ledger.open(name)
        model.ledger.reserve(name, len(tokens))
        rows.append(ForwardRow(name, 0, tokens, num_logits))
        sampling += [random_sampling(rng)] * num_logits
        positions += range(len(tokens) - num_logits + 1, len(tokens) + 1)
    return rows, sampling, positions


def close(model: TargetModel, rows: list[ForwardRow]) -> None:
    for row in rows:
        model.ledger.free(row.sequence_id)


@pytest.mark.parametrize("seed", range(8))
def test_stopping_on_the_way_changes_no_pick(model: TargetModel, seed: int) -> None:
    rows, sampling, positions = rows_of(model, random.Random(seed))
    whole = model.pick(rows, sampling, positions)
    for layer in range(NUM_LAYERS + 1):
        half = model.run_to(rows, layer)
        model.early_picks(half, range(len(positions)), sampling, positions)
        assert model.finish(half, sampling, positions).token_ids == whole
    close(model, rows)


@pytest.mark.parametrize("seed", range(8))
def test_early_picks_are_those_of_a_model_that_ends_there(model: TargetModel, seed: int) -> None:
    rng = random.Random(seed)
    rows, sampling, positions = rows_of(model, rng)
    whole = model.pick(rows, sampling, positions)
    places = sorted(rng.sample(range(len(positions)), rng.randint(1, len(positions))))
    for layer in range(NUM_LAYERS + 1):
        half = model.run_to(rows, layer)
        early = model.early_picks(half, places, sampling, positions)
        logits = model.decoder.logits(half.hidden, [half.wanted[place] for place in places])
        scores = noisy_scores(logits, [sampling[p] for p in places], [positions[p] for p in places])
        assert [list(own) for own in early] == scores.topk(2).indices.tolist()
        model.finish(half, sampling, positions)
    assert [own[0] for own in early] == [whole[place] for place in places]
    close(model, rows)
