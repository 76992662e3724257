"""The ragged pass against every sequence alone, from scratch, at its depth."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from itertools import accumulate
from operator import mul
from pathlib import Path

import pytest
import torch

from drafters.manifest import Manifest
from drafters.nested import NestedDrafter, bytes_per_position, load_nested
from drafters.picks import PassRow, Pick
from model.decoder import Decoder
from model.execution import Execution
from protocol.errors import ConfigError
from protocol.request import GREEDY, SamplingParams
from tests.model.families import EXECUTIONS
from tests.reference.drafting import next_from_scratch

EXITS = (1, 2, 4)


class Pool:
    """Drives a NestedDrafter by hand: random rows of random sequences, depths changing at will."""

    def __init__(self, decoder: Decoder, page_size: int, sampling: list[SamplingParams], seed: int) -> None:
        self.rng = random.Random(seed)
        self.decoder = decoder
        self.drafter = NestedDrafter(decoder, EXITS, num_pages=640 // page_size, page_size=page_size)
        self.tokens = [self.text(self.rng.randint(1, 40)) for _ in sampling]
        self.sampling = sampling
        for sequence in range(len(sampling)):
            self.drafter.open(sequence)

    def text(self, length: int) -> list[int]:
        return [self.rng.randrange(160) for _ in range(length)]

    def row(self, sequence: int, depth: int) -> PassRow:
        """A decode row, a chunk of context, or the end of a context with a draft from it."""
        tokens = self.tokens[sequence]
        done, length, ahead = self.drafter.settled(sequence, depth), len(tokens), self.rng.randint(1, 4)
        if done < len(tokens) - 1 and self.rng.random() < 0.4:
            settled = self.rng.randint(done + 1, len(tokens) - 1)
            if settled < len(tokens) - 1 or self.rng.random() < 0.3:
                length, ahead = settled, 0
        floor = self.rng.choice([0.0, self.rng.random()])
        assert self.drafter.ledger.reserve(sequence, length + max(ahead, 1) - 1)
        new = tokens[self.drafter.written(sequence) : length]
        return PassRow(sequence, new, length, depth, self.sampling[sequence], ahead, floor)

    def step(self) -> list[tuple[PassRow, Pick]]:
        """One pass over some of the sequences; each pick is compared with the reference and appended."""
        chosen = [sequence for sequence in range(len(self.tokens)) if self.rng.random() < 0.8]
        shared = self.rng.choice(EXITS) if self.rng.random() < 0.5 else None
        rows = [self.row(sequence, shared or self.rng.choice(EXITS)) for sequence in chosen]
        drafted = []
        for row, picks in zip(rows, self.drafter.run(rows), strict=True):
            assert may_be_all(row, picks)
            for pick in picks:
                tokens = self.tokens[row.sequence]
                token, confidence = next_from_scratch(self.decoder, tokens, row.depth, row.sampling)
                assert pick.token == token
                assert pick.confidence == pytest.approx(confidence, abs=1e-4)
                tokens.append(pick.token)
                drafted.append((row, pick))
        self.drafter.check()
        return drafted

    def verify(self) -> None:
        """A target rejects the tail of some sequences and commits tokens of its own."""
        for sequence, tokens in enumerate(self.tokens):
            if self.rng.random() < 0.3:
                del tokens[max(1, len(tokens) - self.rng.randint(0, 6)) :]
                self.drafter.truncate(sequence, len(tokens))
                tokens += self.text(self.rng.randint(1, 3))
            elif self.drafter.written(sequence) == len(tokens):
                self.drafter.truncate(sequence, len(tokens) - 1)


def may_be_all(row: PassRow, picks: list[Pick]) -> bool:
    """Whether so many picks are an answer: a single one, or those up to the stop or the length."""
    if not row.drafts or len(picks) <= 1:
        return len(picks) == row.drafts
    survival = list(accumulate((pick.confidence for pick in picks), mul))
    return survival[-2] > row.stop_probability and (len(picks) == row.ahead or survival[-1] <= row.stop_probability)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("seed", range(4))
def test_a_ragged_pass_of_mixed_depths_drafts_what_each_sequence_would_alone(
    llama: Decoder, page_size: int, seed: int
) -> None:
    sampling = [
        GREEDY,
        GREEDY,
        SamplingParams(temperature=1.0, seed=7),
        SamplingParams(temperature=0.6, seed=8, top_k=40),
        SamplingParams(temperature=1.3, seed=2**64 - 1, top_p=0.9, min_p=0.01),
    ]
    pool = Pool(llama, page_size, sampling, seed)
    depths: Counter[int] = Counter()
    for _ in range(30):
        depths.update(row.depth for row, _ in pool.step())
        pool.verify()
    assert min(depths[depth] for depth in EXITS) > 3, "an exit was not tried"


def test_windows_and_soft_capping_do_not_mind_tokens_that_ride_along(gemma: Decoder) -> None:
    pool = Pool(gemma, 4, [GREEDY, SamplingParams(temperature=0.8, seed=3), GREEDY], seed=11)
    drafted = 0
    for _ in range(30):
        drafted += len(pool.step())
        pool.verify()
    assert drafted > 40


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_going_deeper_late_is_the_same_as_having_gone_deep_at_once(llama: Decoder, temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=5)
    drafter = NestedDrafter(llama, EXITS, num_pages=8, page_size=16)
    drafter.open(0)
    drafter.ledger.reserve(0, 64)
    tokens = [3, 14, 15, 92]
    for depth in (1, 1, 1, 2, 1, 1, 4, 2, 4):
        new = tokens[drafter.written(0) :]
        ((pick,),) = drafter.run([PassRow(0, new, len(tokens), depth, sampling)])
        assert pick.token == next_from_scratch(llama, tokens, depth, sampling)[0]
        tokens.append(pick.token)


def test_rows_at_one_depth_draft_ahead_in_one_pass(llama: Decoder) -> None:
    drafter = NestedDrafter(llama, EXITS, num_pages=8, page_size=16)
    rows = []
    for sequence, ahead in enumerate((3, 1, 5)):
        drafter.open(sequence)
        drafter.ledger.reserve(sequence, 20)
        rows.append(PassRow(sequence, [7, 8 + sequence], 2, 2, GREEDY, ahead))
    assert [len(picks) for picks in drafter.run(rows)] == [3, 1, 5]
    assert [drafter.settled(sequence, 2) for sequence in range(3)] == [4, 2, 6]
    drafter.check()


def test_a_row_that_reaches_its_floor_drafts_no_further_and_has_run_only_what_it_drafted(llama: Decoder) -> None:
    drafter = NestedDrafter(llama, EXITS, num_pages=8, page_size=16)
    rows = []
    for sequence, floor in enumerate((0.0, 1.0, 1e-9)):
        drafter.open(sequence)
        drafter.ledger.reserve(sequence, 8)
        rows.append(PassRow(sequence, [7, 8], 2, 2, GREEDY, 5, floor))
    assert [len(picks) for picks in drafter.run(rows)] == [5, 1, 5]
    assert [drafter.settled(sequence, 2) for sequence in range(3)] == [6, 2, 6]
    drafter.check()


def test_a_context_catches_up_in_the_deeper_segments_alone(llama: Decoder) -> None:
    drafter = NestedDrafter(llama, EXITS, num_pages=8, page_size=16)
    drafter.open(0)
    drafter.ledger.reserve(0, 30)
    drafter.run([PassRow(0, list(range(30)), 30, 1, GREEDY, ahead=0)])
    assert drafter.run([PassRow(0, [], 12, 4, GREEDY, ahead=0)]) == [[]]
    assert drafter.settled(0, 4) == 12
    assert drafter.written(0) == 30


@pytest.mark.parametrize("exits", [(), (2, 1), (0, 2), (2, 5), (2, 2)])
def test_exits_that_do_not_ascend_within_the_layers_are_refused(llama: Decoder, exits: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must ascend within the 4 layers"):
        NestedDrafter(llama, exits, num_pages=2, page_size=4)


def test_a_checkpoint_is_loaded_up_to_the_deepest_exit_of_its_manifest(llama_directory: Path, tmp_path: Path) -> None:
    full = load_nested(llama_directory, dtype=torch.float32, num_positions=100, page_size=16)
    assert (full.exits, full.ledger.num_pages) == ((4,), 6)
    folder = shutil.copytree(llama_directory, tmp_path / "drafter")
    Manifest((1, 3), "hash").save(folder)
    assert load_nested(folder, dtype=torch.float32, num_positions=100, page_size=16).exits == (1, 3)


def test_a_drafter_that_cannot_be_loaded_is_refused_with_the_reason(llama_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no page of 16; raise it"):
        load_nested(llama_directory, dtype=torch.float32, num_positions=15, page_size=16)
    folder = shutil.copytree(llama_directory, tmp_path / "drafter")
    Manifest((2, 6), "hash").save(folder)
    with pytest.raises(ConfigError, match="exit 6 is deeper than the model's 4 layers"):
        load_nested(folder, dtype=torch.float32, num_positions=16, page_size=16)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_position_takes_no_more_memory_than_is_counted(
    llama_directory: Path, tmp_path: Path, dtype: torch.dtype, execution: Execution
) -> None:
    """Native kernels keep boundary states in float32, whatever the weights are in."""
    folder = shutil.copytree(llama_directory, tmp_path / "drafter")
    Manifest((1, 2, 3), "hash").save(folder)
    drafter = load_nested(folder, dtype=dtype, num_positions=64, page_size=16, execution=execution)
    held = [*drafter._kv.keys, *drafter._kv.values, *drafter._boundaries]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert taken <= 64 * bytes_per_position(folder, dtype)
    if execution is Execution.NATIVE:
        assert taken == 64 * bytes_per_position(folder, dtype)
