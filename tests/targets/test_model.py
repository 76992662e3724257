"""Picks in one call of the decoder are those of its logits, and so are those of rows that ask for their logprobs."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protocol.request import SamplingParams
from targets.model import ForwardRow, TargetModel, load_target
from targets.scoring import Scoring
from tests.model.families import EXECUTIONS, VOCAB


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


@pytest.mark.parametrize("seed", range(8))
def test_picks_in_one_call_are_those_of_the_logits_whether_or_not_these_are_told(model: TargetModel, seed: int) -> None:
    rows, sampling, positions = rows_of(model, random.Random(seed))
    picks = model.decoder.pick(model.forward(rows), sampling, positions)
    assert model.pick(rows, sampling, positions) == picks
    told = model.scored_picks([replace(row, scoring=Scoring(num_top=2)) for row in rows], sampling, positions)
    assert told.token_ids == picks
    assert len(told.logprobs) == len(picks)
    for row in rows:
        model.ledger.free(row.sequence_id)
