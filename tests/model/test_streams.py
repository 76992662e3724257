"""Streams save passes and change nothing else: in one call of the kernels as in torch as one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.execution import Execution
from model.load import load_decoder
from model.pages import PageLedger
from model.rollout import Rollout, roll_out
from model.streams import StreamHead
from protocol.request import SamplingParams
from tests.model.families import EXECUTIONS, VOCAB, make_checkpoint, needs_compiler

SLOTS, PAGE, DEPTH, WIDTH, HIDDEN = 1024, 4, 3, 40, 48
HOT = (0.0, 2.0, 4.0, 8.0, 30.0)  # the hotter, the more does the noise decide that pick and guess have in common


def random_heads(count: int) -> list[StreamHead]:
    draw = torch.Generator().manual_seed(count)
    shapes = (WIDTH, 2 * HIDDEN), (HIDDEN, WIDTH)
    return [
        StreamHead(*(torch.randn(shape, generator=draw) / shape[1] ** 0.5 for shape in shapes)) for _ in range(count)
    ]


HEADS = random_heads(3)


def load(directory: object, execution: Execution, dtype: torch.dtype, family: str = "gemma2") -> Decoder:
    decoder = load_decoder(make_checkpoint(family, directory, seed=3), dtype=dtype, execution=execution)  # type: ignore[arg-type]
    decoder.add_streams(DEPTH, HEADS)
    return decoder


@pytest.fixture(scope="module", params=EXECUTIONS)
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(tmp_path_factory.mktemp("llama"), request.param, torch.float32, "llama")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load(tmp_path_factory.mktemp("gemma2"), Execution.NATIVE, torch.bfloat16)


def random_rows(rng: np.random.Generator, num_rows: int, with_floors: bool = False, top_k: int = 0) -> list[Rollout]:
    ledger = PageLedger(SLOTS // PAGE, PAGE)
    rows = []
    for index in range(num_rows):
        num_new, length = int(rng.integers(1, 20)), int(rng.integers(1, 9))
        ledger.open(index)
        assert ledger.reserve(index, num_new + length - 1)
        sampling = SamplingParams(temperature=float(rng.choice(HOT)), seed=int(rng.integers(1 << 63)), top_k=top_k)
        floor = float(rng.choice([0.0, 10.0 ** rng.uniform(-9, 0), 1.0])) if with_floors else 0.0
        slots = ledger.slots(index)[: num_new + length - 1]
        rows.append(Rollout(slots, 0, rng.integers(3, VOCAB, num_new).tolist(), length, sampling, floor))
    return rows


@needs_compiler
@pytest.mark.parametrize("with_floors", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_drafted_and_kept_is_the_same_bit_for_bit(seed: int, with_floors: bool, native: Decoder) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, int(rng.integers(1, 9)), with_floors)
    kvs = native.new_kv(SLOTS), native.new_kv(SLOTS)
    kept = torch.zeros(2, SLOTS, HIDDEN)
    plain = roll_out(native, rows, kvs[0], DEPTH, kept[0])
    assert native.roll_out(rows, kvs[1], DEPTH, kept[1], int(rng.integers(1, 4))) == plain
    certain = np.concatenate(
        [row.slots[: row.total + len(own) - 1] for row, own in zip(rows, plain, strict=True)]
    ).tolist()
    assert torch.equal(kept[0, certain], kept[1, certain])
    for one, other in zip((*kvs[0].keys, *kvs[0].values), (*kvs[1].keys, *kvs[1].values), strict=True):
        assert torch.equal(one[:, certain], other[:, certain])


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_passes_are_those_of_a_row_alone_that_guesses_from_scratch(exact: Decoder, num_streams: int) -> None:
    rng = np.random.default_rng(num_streams)
    rights = set()
    for row in random_rows(rng, 16):
        before = exact.num_passes
        (drafted,) = exact.roll_out([row], exact.new_kv(SLOTS), DEPTH, None, num_streams)
        tokens, passes = guessed_from_scratch(exact, row, num_streams)
        assert [token for token, _, _ in drafted] == tokens
        assert exact.num_passes - before == passes
        rights.add(row.length - passes)
    assert min(rights) == 0 < 2 < max(rights), "guesses that are all wrong, or all right, show nothing"


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_takes_as_many_passes_as_its_slowest_row(exact: Decoder, seed: int) -> None:
    rows = random_rows(np.random.default_rng(100 + seed), 5)
    before = exact.num_passes
    exact.roll_out(rows, exact.new_kv(SLOTS), DEPTH, None, 2)
    assert exact.num_passes - before == max(guessed_from_scratch(exact, row, 2)[1] for row in rows)


def test_filters_do_not_mind_streams(exact: Decoder) -> None:
    rows = random_rows(np.random.default_rng(5), 6, top_k=3)
    plain, guessed = (exact.roll_out(rows, exact.new_kv(SLOTS), DEPTH, None, count) for count in (0, 2))
    assert [[token for token, _, _ in row] for row in plain] == [[token for token, _, _ in row] for row in guessed]


def guessed_from_scratch(decoder: Decoder, row: Rollout, num_streams: int) -> tuple[list[int], int]:
    """The tokens that are drafted, each from the whole text, and the passes that right guesses leave."""
    text, guesses, passes = list(row.tokens), [], 0
    while len(text) < row.total + row.length:
        certain, followed = len(text), 0
        while True:
            text.append(_pick(decoder, _state(decoder, text), row.sampling, len(text)))
            if len(text) == row.total + row.length or followed == len(guesses) or guesses[followed] != text[-1]:
                break
            followed += 1
        passes += 1
        assert len(text) - certain == followed + 1
        state = _state(decoder, text[:-1])
        guesses = []
        for head in HEADS[:num_streams]:
            embedded = decoder.embed([[text[-1], *guesses][-1]]).clone()
            joined = torch.cat([_unit(state), _unit(embedded)], 1)
            state = _unit(state) + F.silu(joined @ head.inner.T) @ head.outer.T
            guesses.append(_pick(decoder, state, row.sampling, len(text) + len(guesses)))
    return text[row.total :], passes


def _state(decoder: Decoder, text: list[int]) -> torch.Tensor:
    batch = build_batch([BatchRow(np.arange(len(text)), len(text))])
    return decoder.run(decoder.embed(text), batch, decoder.new_kv(len(text)), 0, DEPTH)[-1:].clone()


def _pick(decoder: Decoder, state: torch.Tensor, sampling: SamplingParams, position: int) -> int:
    return decoder.pick(decoder.logits(state, [0]), [sampling], [position])[0]


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
