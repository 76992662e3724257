"""The native kernels against plain torch, and against themselves at every width: bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.batch import BatchRow, build_batch
from model.decoder import Decoder
from model.execution import Execution
from model.load import load_decoder
from model.native import compiler
from model.pages import PageLedger
from model.rollout import step
from model.sampling import NO_PICK, pick, pick_with_confidence
from protocol.request import SamplingParams
from tests.model.emulated import VNNI, kernels_for, with_tiles
from tests.model.families import EXECUTIONS, NAMES, VOCAB, make_checkpoint, needs_compiler
from tests.model.kernels import load

DTYPES = [torch.float32, torch.bfloat16]
REFUSED = -float("inf")

SAMPLING = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.7, seed=(1 << 64) - 3),
    SamplingParams(temperature=1.3, seed=9, top_k=7),
    SamplingParams(temperature=0.8, seed=2, top_k=1),
    SamplingParams(temperature=0.9, seed=1, top_p=0.8, min_p=0.01),
]


def logits_of(decoder: Decoder, texts: list[list[int]], chunks: list[list[int]]) -> list[Tensor]:
    """Logits of every token of each text. chunks: how many tokens of each text every pass takes, in turn."""
    ledger = PageLedger(256, 4)
    kv = decoder.new_kv(256 * 4)
    done = [0] * len(texts)
    found: list[list[Tensor]] = [[] for _ in texts]
    for index, text in enumerate(texts):
        ledger.open(index)
        assert ledger.reserve(index, len(text))
    for sizes in chunks:
        members = [index for index, size in enumerate(sizes) if size]
        rows = [BatchRow(ledger.slots(index)[: done[index] + sizes[index]], sizes[index]) for index in members]
        ids = [token for index in members for token in texts[index][done[index] : done[index] + sizes[index]]]
        hidden = decoder.run(decoder.embed(ids), build_batch(rows), kv, 0, decoder.config.num_layers)
        logits = decoder.logits(hidden, range(len(ids))).clone()
        for index, part in zip(members, logits.split([sizes[index] for index in members]), strict=True):
            found[index].append(part)
            done[index] += sizes[index]
    return [torch.cat(parts) for parts in found]


def random_chunks(rng: np.random.Generator, lengths: list[int]) -> list[list[int]]:
    chunks, left = [], np.array(lengths)
    while left.any():
        sizes = np.minimum(left, rng.integers(0, 9, len(lengths)))
        if sizes.any():
            chunks.append(sizes.tolist())
            left -= sizes
    return chunks


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_token_has_the_same_bits_in_any_batch_and_any_chunk(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = load(name, tmp_path, dtype)
    rng = np.random.default_rng(1)
    lengths = [33, 5, 18, 40]
    texts = [rng.integers(3, VOCAB, length).tolist() for length in lengths]
    alone = [logits_of(decoder, [text], [[1]] * len(text))[0] for text in texts]
    for _ in range(4):
        together = logits_of(decoder, texts, random_chunks(rng, lengths))
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other)


@needs_compiler
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@torch.inference_mode()
def test_neither_threads_nor_chunks_change_a_bit_of_a_row_that_threads_share(name: str, tmp_path: Path) -> None:
    """Its attention is cut into segments where there are more threads than heads, and gemma2 has windows."""
    checkpoint = make_checkpoint(name, tmp_path, seed=3, max_positions=1024)
    texts = [np.random.default_rng(4).integers(3, VOCAB, 600).tolist()]
    chunks = {1: [[600]], 2: [[500], [16], [84]], 3: [*[[1]] * 20, [490], *[[3]] * 30], 8: [[599], [1]]}
    before, found = torch.get_num_threads(), []
    try:
        for threads, sizes in chunks.items():
            torch.set_num_threads(threads)
            decoder = load_decoder(checkpoint, dtype=torch.bfloat16, execution=Execution.NATIVE)
            found.append(logits_of(decoder, texts, sizes)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@needs_compiler
@torch.inference_mode()
def test_a_wide_row_and_a_narrow_one_that_threads_share_do_not_touch_each_other(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("qwen3", tmp_path, seed=3, max_positions=512)
    texts = [np.random.default_rng(6).integers(3, VOCAB, length).tolist() for length in (380, 270)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            decoder = load_decoder(checkpoint, dtype=torch.bfloat16, execution=Execution.NATIVE)
            found.append(logits_of(decoder, texts, [[260, 260], *[[12, 1]] * 10]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, own) for rows in found for one, own in zip(rows, found[0], strict=True))


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_segments_of_attention_add_up_to_what_torch_computes(name: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(name, tmp_path, seed=3, max_positions=1024)
    texts = [np.random.default_rng(4).integers(3, VOCAB, 600).tolist()]
    native, eager = (
        logits_of(load_decoder(checkpoint, dtype=torch.float32, execution=execution), texts, [[600]])[0]
        for execution in (Execution.NATIVE, Execution.EAGER)
    )
    torch.testing.assert_close(native, eager, rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_plain_torch_fails_that_test(tmp_path: Path) -> None:
    """Negative control: torch's own matrix products take another path at another width."""
    decoder = load("llama", tmp_path, torch.bfloat16, Execution.EAGER)
    texts = [np.random.default_rng(1).integers(3, VOCAB, 40).tolist()]
    assert not torch.equal(*(logits_of(decoder, texts, chunks)[0] for chunks in ([[1]] * 40, [[40]])))


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_bfloat16_logits_lie_near_those_of_float32(name: str, tmp_path: Path) -> None:
    texts = [np.random.default_rng(2).integers(3, VOCAB, 30).tolist()]
    exact = logits_of(load(name, tmp_path / "a", torch.float32), texts, [[30]])[0]
    errors = [
        (logits_of(load(name, tmp_path / str(execution), torch.bfloat16, execution), texts, [[30]])[0] - exact).abs()
        for execution in (Execution.NATIVE, Execution.EAGER)
    ]
    assert errors[0].mean() <= 1.05 * errors[1].mean()


@needs_compiler
@torch.inference_mode()
def test_a_pass_may_stop_at_a_layer_and_go_on_without_changing_a_bit(tmp_path: Path) -> None:
    decoder = load("qwen3", tmp_path, torch.bfloat16)
    batch = build_batch([BatchRow(np.arange(20), 20)])
    ids = list(range(3, 23))
    whole = decoder.run(decoder.embed(ids), batch, decoder.new_kv(20), 0, 4)
    kv = decoder.new_kv(20)
    assert torch.equal(decoder.run(decoder.run(decoder.embed(ids), batch, kv, 0, 1), batch, kv, 1, 4), whole)


@needs_compiler
@pytest.mark.parametrize("num_slots", [64, 1000, 4096])
def test_a_position_of_different_layers_lies_in_different_sets_of_a_cache(num_slots: int, tmp_path: Path) -> None:
    kv, ways = load("llama", tmp_path, torch.bfloat16).new_kv(num_slots), 128 << 10  # bytes of a way of an L2 cache
    starts = [layer.data_ptr() % ways // 64 for layer in (*kv.keys, *kv.values)]
    assert len(set(starts)) == len(starts) == 2 * len(kv.keys)


@needs_compiler
def test_a_position_beyond_the_checkpoint_is_refused_and_tables_grow_up_to_it(tmp_path: Path) -> None:
    decoder = load("llama", tmp_path, torch.float32)
    last = decoder.config.max_positions
    kv = decoder.new_kv(1)
    decoder.run(decoder.embed([5]), build_batch([BatchRow(np.zeros(last, np.int64), 1)]), kv, 0, 1)
    with pytest.raises(ValueError, match=f"position {last} lies beyond the {last}"):
        decoder.run(decoder.embed([5]), build_batch([BatchRow(np.zeros(last + 1, np.int64), 1)]), kv, 0, 1)


@needs_compiler
@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_step_in_one_call_is_the_plain_one(sampling: SamplingParams, tmp_path: Path) -> None:
    decoder = load("qwen3", tmp_path, torch.bfloat16)
    batch = build_batch([BatchRow(np.arange(20), 7), BatchRow(np.arange(20, 33), 1)])
    asked = list(range(5, 13)), batch, decoder.new_kv(64), [3, 6, 7], [sampling] * 3, [17, 20, 13]
    picks, logits = decoder.step(*asked)
    own = logits.clone()
    plain, others = step(decoder, *asked)
    assert picks == plain
    assert (own == others).all()


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(20))
def test_picks_are_those_of_coupled_sampling(seed: int, execution: Execution, tmp_path: Path) -> None:
    decoder = load("llama", tmp_path, torch.float32, execution)
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(scale=3, size=(11, 4099 if seed % 2 else 37)).astype(np.float32))
    assert_picks_are_plain(decoder, logits, rng)


@needs_compiler
@pytest.mark.parametrize("vocab_size", [2, 5, 16, 31, 32, 33, 64, 1000, 8192])
def test_picks_are_the_first_of_equals_whatever_the_logits_look_like(vocab_size: int, tmp_path: Path) -> None:
    decoder = load("llama", tmp_path, torch.float32)
    rng = np.random.default_rng(vocab_size)
    normal = torch.from_numpy(rng.normal(scale=3, size=(9, vocab_size)).astype(np.float32))
    for logits in (
        normal,
        normal.sort(-1).values,
        normal.sort(-1, descending=True).values,
        30 * (normal - normal.amax(-1, keepdim=True)),
        normal.round(),
        torch.full_like(normal, -7.5),
        torch.linspace(-40 * vocab_size, 0, vocab_size).expand(9, -1).contiguous(),
        normal.masked_fill(
            torch.from_numpy(rng.random(normal.shape) < 0.9).index_fill_(1, torch.tensor(1), False), REFUSED
        ),
        torch.full_like(normal, REFUSED).index_fill_(1, torch.tensor(0), 3.0),
        torch.full_like(normal, REFUSED).index_fill_(1, torch.tensor(vocab_size - 1), 3.0),
    ):
        assert_picks_are_plain(decoder, logits, rng)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("vocab_size", [5, 33, 1000])
def test_without_a_number_or_a_finite_best_there_is_no_pick_and_other_rows_have_theirs(
    vocab_size: int, execution: Execution, tmp_path: Path
) -> None:
    decoder = load("llama", tmp_path, torch.float32, execution)
    rng = np.random.default_rng(vocab_size)
    normal = torch.from_numpy(rng.normal(scale=3, size=(2 * 6, vocab_size)).astype(np.float32))
    logits, broken = normal.clone(), range(0, 12, 2)
    logits[0] = torch.nan
    logits[2, 0] = torch.nan
    logits[4, vocab_size - 1] = torch.nan
    logits[6, vocab_size // 2] = torch.nan
    logits[8] = REFUSED
    logits[10, 3] = torch.inf
    for sampling in SAMPLING:
        asked = [sampling] * 12, list(range(12))
        expected = decoder.pick(normal, *asked)
        assert decoder.pick(logits, *asked) == [NO_PICK if row in broken else own for row, own in enumerate(expected)]
        assert pick(logits, *asked).tolist() == decoder.pick(logits, *asked)
        found = list(zip(*decoder.pick_with_confidence(logits, *asked), strict=True))
        assert [found[row] for row in broken] == [(0, 0.0)] * 6
        sound = list(zip(*decoder.pick_with_confidence(normal, *asked), strict=True))
        assert [found[row] for row in range(1, 12, 2)] == [sound[row] for row in range(1, 12, 2)]


def assert_picks_are_plain(decoder: Decoder, logits: Tensor, rng: np.random.Generator) -> None:
    sampling = [SAMPLING[i] for i in rng.integers(0, len(SAMPLING), len(logits))]
    positions = rng.integers(0, 1 << 20, len(logits)).tolist()
    kept = logits.clone()
    assert decoder.pick(logits, sampling, positions) == pick(logits, sampling, positions).tolist()
    picks, confidences = decoder.pick_with_confidence(logits, sampling, positions)
    expected = pick_with_confidence(logits, sampling, positions)
    assert picks == expected[0].tolist()
    assert confidences == pytest.approx(expected[1].tolist(), rel=1e-5, abs=1e-12)
    assert torch.equal(logits, kept)


@needs_compiler
@pytest.mark.parametrize(
    ("isa", "dtype"),
    [*((isa, dtype) for isa in compiler.available_isas()[1:] for dtype in DTYPES), (with_tiles(VNNI), torch.bfloat16)],
    ids=lambda value: getattr(value, "name", str(value)),
)
@torch.inference_mode()
def test_every_narrower_instruction_set_computes_the_same_to_rounding_and_is_as_indifferent_to_widths(
    isa: compiler.InstructionSet, dtype: torch.dtype, tmp_path: Path
) -> None:
    text = np.random.default_rng(5).integers(3, VOCAB, 300).tolist()
    checkpoint = make_checkpoint("qwen3", tmp_path / "checkpoint", seed=3, max_positions=512)
    widest = logits_of(load_decoder(checkpoint, dtype=dtype, execution=Execution.NATIVE), [text], [[300]])[0]
    with kernels_for(isa):
        decoder = load_decoder(checkpoint, dtype=dtype, execution=Execution.NATIVE)
        whole = logits_of(decoder, [text], [[300]])[0]
        chunks = [[1]] * 7 + [[size] for size in (2, 3, 4, 5, 6, 7, 9, 11, 16, 17, 33)] + [[1]] * 5 + [[175]]
        assert torch.equal(logits_of(decoder, [text], chunks)[0], whole)
        near = 1e-4 if dtype == torch.float32 else 0.3  # some sets round activations to bf16, others do not
        torch.testing.assert_close(whole, widest, rtol=near, atol=near)
        assert (whole - widest).abs().mean() < 0.1 * near
        assert_picks_are_plain(decoder, 5 * torch.randn(20, 1003), np.random.default_rng(5))


@needs_compiler
@torch.inference_mode()
def test_where_all_scores_are_equal_the_noise_of_the_reference_picks(tmp_path: Path) -> None:
    decoder = load("qwen3", tmp_path, torch.float32)
    seeds, places = (0, 7, 0xDEADBEEF12345678, (1 << 64) - 1), (*range(8), *range(1 << 31, (1 << 31) + 8))
    sampling = [SamplingParams(1.0, seed=seed) for seed in seeds for _ in places]
    positions = [*places] * len(seeds)
    flat = torch.zeros(len(sampling), 10_001)
    assert decoder.pick(flat, sampling, positions) == pick(flat, sampling, positions).tolist()
