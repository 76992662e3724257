"""The kernels over weights in blocks: against the same weights in float64, and against themselves at every width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.batch import BatchRow, build_batch
from model.blocks import Blocks
from model.decoder import Decoder, DecoderWeights, LayerWeights, Linear
from model.eager import EagerDecoder
from model.load import WeightFormat, load_decoder
from model.native import compiler
from model.native.decoder import NativeDecoder
from model.native.weights import pack
from model.quantized import Int8Rows, Matrix, QuantizedMatrix
from protocol.errors import UnsupportedModel
from protocol.request import SamplingParams
from tests.model.emulated import VNNI, kernels_for
from tests.model.families import make_checkpoint, needs_compiler
from tests.model.kernels import Floats, Product
from tests.model.random_blocks import BLOCK_SIZES, CONFIG, FORMATS, HALVES, RandomWeights, random_blocks

pytestmark = needs_compiler

MIXED = ("Q4_K", "Q4_K", "Q6_K", "Q5_0", "Q4_K", "Q4_K", "Q6_K", "Q8_0")


def most_error(weights: Floats, x: Floats) -> npt.NDArray[np.float64]:
    """What rounding to 127 steps of the largest input of a block can do to each product, and a little for sums."""
    blocks = np.abs(x).reshape(len(x), -1, 32).max(-1)
    sizes = np.abs(weights).reshape(len(weights), -1, 32).sum(-1)
    return (0.51 / 127 + 2e-5) * blocks @ sizes.T.astype(np.float64)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(37, 256), (16, 1536), (48, 8960)])
def test_products_differ_from_float64_by_the_rounding_of_the_inputs(name: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    matrix = random_blocks(name, rows, columns, rng)
    x = (rng.normal(size=(5, columns)) * np.exp(rng.normal(size=(1, columns)))).astype(np.float32)
    weights = matrix.dense()
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    error = Product(matrix)(x) - exact
    assert (np.abs(error) <= most_error(weights, x)).all()
    assert error.std() < 0.02 * exact.std()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(40, 576), (16, 896), (23, 1536), (64, 4864), (17, 8960)])
def test_a_row_has_the_same_bits_among_any_number_of_rows_and_threads(name: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    if name.endswith("_K"):
        columns += -columns % 256
    product = Product(random_blocks(name, rows, columns, rng))
    x = rng.normal(size=(33, columns)).astype(np.float32)
    alone = np.concatenate([product(x[r : r + 1], 1) for r in range(33)])
    for count in range(1, 34):
        for threads in (1, 2):
            np.testing.assert_array_equal(product(x[33 - count :], threads), alone[33 - count :])


@pytest.mark.parametrize("columns", [31, 48, 80])
def test_int8_takes_columns_that_fill_no_block(columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = rng.normal(size=(21, columns)).astype(np.float32)
    x = rng.normal(size=(3, columns)).astype(np.float32)
    matrix = Int8Rows.of(torch.from_numpy(weight))
    assert np.abs(matrix.dense() - weight).max() <= np.abs(weight).max() / 127 / 2 * 1.001
    np.testing.assert_allclose(Product(matrix)(x), x @ matrix.dense().T, atol=0.02 * columns**0.5)


@pytest.mark.parametrize("isa", [compiler.INSTRUCTION_SETS[-1], VNNI], ids=lambda isa: isa.name)
def test_other_instruction_sets_compute_the_same_to_rounding(isa: compiler.InstructionSet) -> None:
    rng = np.random.default_rng(3)
    matrices = [random_blocks(name, 37, 512, rng) for name in FORMATS]
    x = rng.normal(size=(19, 512)).astype(np.float32)
    widest = [Product(matrix)(x) for matrix in matrices]
    with kernels_for(isa):
        for matrix, expected in zip(matrices, widest, strict=True):
            product = Product(matrix)
            found = product(x)
            np.testing.assert_allclose(found, expected, atol=1e-4)
            np.testing.assert_array_equal(np.concatenate([product(x[r : r + 1]) for r in range(19)]), found)


@pytest.mark.parametrize("name", HALVES)
def test_the_largest_quants_and_inputs_do_not_overflow(name: str) -> None:
    blocks = random_blocks(name, 16, 512, np.random.default_rng(0))
    each = blocks.data.reshape(16, 512 // BLOCK_SIZES[name], -1)
    halves = [place + byte for place in HALVES[name] for byte in (0, 1)]
    each[:, :, [byte for byte in range(each.shape[2]) if byte not in halves]] = 255
    x = np.array([[1.0] * 512, [-1.0] * 512], np.float32)
    exact = x @ blocks.dense().T.astype(np.float64)
    np.testing.assert_allclose(Product(blocks)(x), exact, atol=1e-5 * np.abs(blocks.dense()).sum(1).max())


def test_extreme_bytes_do_not_overflow() -> None:
    rows = np.array([[-128] * 64, [127] * 64, [-127, 127] * 32], np.int8).view(np.uint8)
    scales = np.full((3, 4), np.frombuffer(np.float32(1).tobytes(), np.uint8))
    x = np.array([[1.0] * 64, [-1.0] * 64, [1.0, -1.0] * 32], np.float32)
    matrix = Int8Rows((3, 64), np.concatenate([scales, rows], 1))
    np.testing.assert_allclose(Product(matrix)(x), x @ matrix.dense().T, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_stays_none_and_spoils_no_other_row(value: float) -> None:
    rng = np.random.default_rng(0)
    product = Product(random_blocks("Q4_1", 16, 64, rng))
    x = rng.normal(size=(3, 64)).astype(np.float32)
    spoilt = x.copy()
    spoilt[1, 40] = value
    assert np.isnan(product(spoilt)[1]).all()
    np.testing.assert_array_equal(product(spoilt)[::2], product(x)[::2])


def test_parts_of_several_formats_keep_their_rows() -> None:
    rng = np.random.default_rng(0)
    parts = [random_blocks(name, rows, 256, rng) for name, rows in (("Q4_K", 32), ("Q6_K", 16), ("Q5_0", 7))]
    x = rng.normal(size=(3, 256)).astype(np.float32)
    np.testing.assert_array_equal(Product(*parts)(x), np.concatenate([Product(part)(x) for part in parts], 1))


def test_parts_that_share_a_strip_are_joined_or_refused() -> None:
    rng = np.random.default_rng(0)
    small, same, other = (random_blocks(name, 24, 256, rng) for name in ("Q4_0", "Q4_0", "Q6_K"))
    x = rng.normal(size=(3, 256)).astype(np.float32)
    both = np.concatenate([Product(small)(x), Product(same)(x)], 1)
    np.testing.assert_array_equal(Product(small, same)(x), both)
    with pytest.raises(UnsupportedModel, match="Q4_0 and Q6_K side by side need rows in multiples of 16"):
        Product(small, other)


@pytest.mark.parametrize("formats", [*((name,) * 8 for name in FORMATS), MIXED], ids=[*FORMATS, "mixed"])
@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_a_decoder_of_blocks_lies_near_torch_over_the_same_weights(formats: tuple[str, ...], tied: bool) -> None:
    weights = RandomWeights(formats, tied)
    text = np.random.default_rng(1).integers(3, CONFIG.vocab_size, 40).tolist()
    native = logits_of(NativeDecoder(CONFIG, weights), text, [40])
    eager = logits_of(EagerDecoder(CONFIG, DecoderWeights.read(weights)), text, [40])
    assert (native - eager).std() < 0.03 * eager.std()


@pytest.mark.parametrize("formats", [("int8",) * 8, MIXED], ids=["int8", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_token_has_the_same_bits_in_any_chunk_of_a_pass(formats: tuple[str, ...], dtype: torch.dtype) -> None:
    decoder = NativeDecoder(CONFIG, RandomWeights(formats, dtype=dtype))
    text = np.random.default_rng(1).integers(3, CONFIG.vocab_size, 90).tolist()
    alone = logits_of(decoder, text, [1] * 90)
    for chunks in ([90], [5] * 18, [1, 2, 3, 4, 6, 7, 8, 17, 33, 9]):
        assert torch.equal(logits_of(decoder, text, chunks), alone)


@pytest.mark.parametrize("formats", [("int8",) * 8, ("Q4_1",) * 8, MIXED], ids=["int8", "Q4_1", "mixed"])
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SamplingParams(temperature=0.8, seed=7)])
def test_verifying_drafts_picks_what_the_plain_loop_picks(formats: tuple[str, ...], sampling: SamplingParams) -> None:
    decoder = NativeDecoder(CONFIG, RandomWeights(formats, dtype=torch.bfloat16))
    plain, kv = [5, 6, 7], decoder.new_kv(256)
    for position in range(60):
        batch = build_batch([BatchRow(np.arange(position + 1), 1)])
        (token,), _ = decoder.step([plain[position]], batch, kv, [0], [sampling], [position + 1])
        plain += [token] * (position >= 2)
    kv, start = decoder.new_kv(256), 0
    for size in [3, *range(1, 11)]:
        batch, after = build_batch([BatchRow(np.arange(start + size), size)]), range(start + 1, start + size + 1)
        asked = plain[start : start + size], batch, kv, range(size), [sampling] * size, after
        picks, _ = decoder.step(*asked)
        first = max(0, 2 - start)  # the prompt's own tokens are no picks
        assert picks[first:] == plain[start + 1 + first : start + 1 + size]
        start += size


def test_packed_weights_are_all_that_is_kept() -> None:
    weights = RandomWeights(("Q4_K", "Q4_K", "Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"))
    matrices = [weights.embedding(), *(own.weight for layer in weights.layers() for own in linears(layer))]
    stored = sum(part.data.nbytes for matrix in matrices for part in parts_of(matrix))
    kept = sum(tensor.nbytes for tensor in pack(CONFIG, weights).tensors)
    assert kept < 1.06 * stored


def linears(layer: LayerWeights) -> tuple[Linear, ...]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


def parts_of(matrix: Matrix) -> tuple[Blocks | Int8Rows, ...]:
    assert isinstance(matrix, QuantizedMatrix)
    return matrix.parts


@torch.inference_mode()
def test_embeddings_are_those_of_the_blocks() -> None:
    for tied in (True, False):
        weights = RandomWeights(MIXED, tied)
        table = DecoderWeights.read(weights).embedding
        found = NativeDecoder(CONFIG, weights).embed(range(CONFIG.vocab_size))
        torch.testing.assert_close(found, table, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@torch.inference_mode()
def test_any_checkpoint_runs_in_int8_near_its_own_weights(family: str, tmp_path: Path) -> None:
    directory = make_checkpoint(family, tmp_path, seed=3)
    text = np.random.default_rng(1).integers(3, 160, 30).tolist()
    exact = logits_of(load_decoder(directory, dtype=torch.float32), text, [30])
    found = logits_of(load_decoder(directory, dtype=torch.float32, weights=WeightFormat.INT8), text, [30])
    assert (found - exact).std() < 0.1 * exact.std()
    assert not torch.equal(found, exact)


def logits_of(decoder: Decoder, text: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits of every token, read in chunks."""
    kv, done, found = decoder.new_kv(256), 0, []
    for size in chunks:
        batch = build_batch([BatchRow(np.arange(done + size), size)])
        hidden = decoder.run(decoder.embed(text[done : done + size]), batch, kv, 0, decoder.config.num_layers)
        found.append(decoder.logits(hidden, range(size)).clone())
        done += size
    return torch.cat(found)
