"""Drafting ahead: in one call of the kernels as in the plain loop, and no further than the floor allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import model.native.decoder
from model.decoder import Decoder
from model.execution import Execution
from model.load import load_decoder
from model.pages import PageLedger
from model.rollout import Rollout, roll_out
from protocol.request import SamplingParams
from tests.model.families import EXECUTIONS, VOCAB, make_checkpoint, needs_compiler

SLOTS, PAGE, DEPTH = 512, 4, 3


@pytest.fixture(scope="module", params=EXECUTIONS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(tmp_path_factory.mktemp("gemma2"), request.param)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(tmp_path_factory.mktemp("gemma2"), Execution.NATIVE)


def load(directory: Path, execution: Execution) -> Decoder:
    return load_decoder(make_checkpoint("gemma2", directory, seed=3), dtype=torch.bfloat16, execution=execution)


def random_rollouts(rng: np.random.Generator, num_rows: int, with_floors: bool) -> list[Rollout]:
    ledger = PageLedger(SLOTS // PAGE, PAGE)
    rows = []
    for index in range(num_rows):
        num_new, length = int(rng.integers(1, 20)), int(rng.integers(1, 9))
        ledger.open(index)
        assert ledger.reserve(index, num_new + length)
        sampling = SamplingParams(temperature=float(rng.choice([0, 0.8])), seed=int(rng.integers(1 << 63)))
        floor = float(rng.choice([0.0, 10.0 ** rng.uniform(-9, 0), 1.0])) if with_floors else 0.0
        tokens = rng.integers(3, VOCAB, num_new).tolist()
        rows.append(Rollout(ledger.slots(index), 0, tokens, length, sampling, floor))
    return rows


@needs_compiler
@pytest.mark.parametrize("with_floors", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_drafting_ahead_in_one_call_is_the_plain_loop(seed: int, with_floors: bool, native: Decoder) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rollouts(rng, int(rng.integers(1, 9)), with_floors)
    kvs = native.new_kv(SLOTS), native.new_kv(SLOTS)
    boundaries = torch.zeros(2, SLOTS, native.config.hidden_size)
    kept = boundaries if rng.random() < 0.7 else [None, None]
    plain = roll_out(native, rows, kvs[1], DEPTH, kept[1])
    assert native.roll_out(rows, kvs[0], DEPTH, kept[0]) == plain
    assert torch.equal(*boundaries)
    for one, other in zip((*kvs[0].keys, *kvs[0].values), (*kvs[1].keys, *kvs[1].values), strict=True):
        assert torch.equal(one, other)


def rules(draft: Sequence[int], logits: Tensor) -> None:
    """Other ones behind each draft."""
    logits += 3 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(sum(draft) + len(draft)))


def bans(draft: Sequence[int], pick: int) -> Tensor | None:
    """Half of the tokens behind half of the drafts."""
    return torch.arange(VOCAB) % 2 == pick % 2 if (sum(draft) + pick) % 4 < 2 else None


@needs_compiler
@pytest.mark.parametrize("seed", range(40))
def test_rows_that_have_a_say_in_their_picks_keep_the_one_call(
    seed: int, native: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        replace(row, ruled=rules if rng.random() < 0.5 else None, banned=bans if rng.random() < 0.5 else None)
        for row in random_rollouts(rng, int(rng.integers(1, 9)), True)
    ]
    silent = [replace(row, ruled=None, banned=None) for row in rows]
    plain, unsaid = (roll_out(native, own, native.new_kv(SLOTS), DEPTH, None) for own in (rows, silent))
    monkeypatch.setattr(model.native.decoder, "roll_out", None)
    assert native.roll_out(rows, native.new_kv(SLOTS), DEPTH, None) == plain
    assert native.roll_out(silent, native.new_kv(SLOTS), DEPTH, None) == unsaid
    for row, own, other in zip(rows, plain, unsaid, strict=True):
        assert row.ruled or row.banned or own == other, "a row has a say in another's picks"


@needs_compiler
def test_what_a_row_raises_comes_back_from_the_one_call(native: Decoder) -> None:
    def broken(draft: Sequence[int], logits: Tensor) -> None:
        raise ValueError(f"no rules behind {len(draft)} tokens")

    (row,) = random_rollouts(np.random.default_rng(1), 1, False)
    with pytest.raises(ValueError, match="no rules behind"):
        native.roll_out([replace(row, ruled=broken)], native.new_kv(SLOTS), DEPTH, None)
    assert native.roll_out([row], native.new_kv(SLOTS), DEPTH, None)


@pytest.mark.parametrize("seed", range(20))
def test_a_draft_ends_behind_the_token_that_brings_its_confidence_to_the_floor(seed: int, decoder: Decoder) -> None:
    (row,) = random_rollouts(np.random.default_rng(seed), 1, False)
    (whole,) = decoder.roll_out([row], decoder.new_kv(SLOTS), DEPTH, None)
    assert len(whole) == row.length
    certainties = [math.prod(confidence for _, confidence in whole[: count + 1]) for count in range(len(whole))]
    for floor in (*certainties, *(1.01 * certainty for certainty in certainties), 1.0, 1e-300):
        limited = Rollout(row.slots, 0, row.tokens, row.length, row.sampling, floor)
        unsure = [count for count, certainty in enumerate(certainties, 1) if certainty <= floor]
        expected = whole[: unsure[0]] if unsure else whole
        assert decoder.roll_out([limited], decoder.new_kv(SLOTS), DEPTH, None) == [expected]


def test_a_floor_of_zero_stops_not_even_a_token_without_any_confidence() -> None:
    row = Rollout(np.arange(8), 0, [5], 3, SamplingParams())
    assert row.goes_on([(7, 0.0)])
    assert row.goes_on([(7, 0.0), (7, 0.0)])
    assert not row.goes_on([(7, 0.9), (7, 0.9), (7, 0.9)])


@needs_compiler
def test_the_random_floors_stop_drafts_at_their_first_token_and_later_and_not_at_all(native: Decoder) -> None:
    rows = [row for row in random_rollouts(np.random.default_rng(0), 20, True) if row.length > 2]
    drafted = roll_out(native, rows, native.new_kv(SLOTS), DEPTH, None)
    ends = {0 if len(own) == row.length else min(len(own), 2) for own, row in zip(drafted, rows, strict=True)}
    assert ends == {0, 1, 2}
