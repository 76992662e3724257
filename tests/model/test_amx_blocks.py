"""Blocks in tiles of AMX, emulated where there are none, against the same blocks in vectors: bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.blocks import Blocks
from model.native import compiler
from model.native.compiler import InstructionSet
from model.native.decoder import NativeDecoder
from model.quantized import Int8Rows
from tests.model.emulated import VNNI, kernels_for, with_tiles
from tests.model.families import needs_compiler
from tests.model.kernels import Floats, Product
from tests.model.random_blocks import CONFIG, FORMATS, RandomWeights, random_blocks
from tests.model.test_quantized import MIXED, logits_of

HAS = {isa.name: isa for isa in compiler.available_isas()}
# Sets without tiles and the same with them: registers of eight lanes, of sixteen where they are real, and real tiles.
PAIRS = [(VNNI, with_tiles(VNNI))]
if wide := HAS.get("avx512_bf16"):
    PAIRS += [(wide, tiles) for tiles in (with_tiles(wide), HAS.get("amx")) if tiles]
LEAST = 8  # rows that go through tiles

pytestmark = [needs_compiler, pytest.mark.skipif("avx2" not in HAS, reason="no AVX2, which the emulation is built on")]


def random_cases(seed: int) -> list[tuple[Blocks | Int8Rows, Floats]]:
    """A matrix of every format, and 33 rows for it."""
    rng, cases = np.random.default_rng(seed), []
    for name in FORMATS:
        columns = int(rng.integers(1, 5)) * (256 if name.endswith("_K") else 32)
        x = rng.normal(size=(33, columns)) * np.exp(2 * rng.normal(size=(33, 1)))
        x[rng.integers(0, 33)] = 0
        cases.append((random_blocks(name, int(rng.integers(1, 70)), columns, rng), x.astype(np.float32)))
    return cases


@pytest.mark.parametrize(("vectors", "tiles"), PAIRS, ids=lambda isa: isa.name)
def test_among_any_number_of_rows_a_row_has_the_bits_in_tiles_that_it_has_alone_in_vectors(
    vectors: InstructionSet, tiles: InstructionSet
) -> None:
    cases = [case for seed in range(5) for case in random_cases(seed)]
    with kernels_for(vectors):
        alone = [np.concatenate([Product(matrix)(row[None]) for row in x]) for matrix, x in cases]
    with kernels_for(tiles):
        for (matrix, x), expected in zip(cases, alone, strict=True):
            product = Product(matrix)
            for count in range(1, len(x) + 1):
                np.testing.assert_array_equal(product(x[:count]).view(np.int32), expected[:count].view(np.int32))


def test_a_fault_in_a_tile_is_seen_where_tiles_are_used_and_only_there() -> None:
    """Negative control: each dot product of a tile is off by one."""
    rng = np.random.default_rng(0)
    matrices = [random_blocks(name, 32, 512, rng) for name in FORMATS]
    x = rng.normal(size=(LEAST, 512)).astype(np.float32)
    with kernels_for(VNNI):
        sound = [Product(matrix)(x) for matrix in matrices]
    with kernels_for(with_tiles(VNNI, "-DEMULATED_FAULT=1")):
        for matrix, expected in zip(matrices, sound, strict=True):
            assert (Product(matrix)(x) != expected).mean() > 0.9
            np.testing.assert_array_equal(Product(matrix)(x[1:]), expected[1:])


@pytest.mark.parametrize("formats", [("int8",) * 8, MIXED], ids=["int8", "mixed"])
@pytest.mark.parametrize(("vectors", "tiles"), PAIRS, ids=lambda isa: isa.name)
@torch.inference_mode()
def test_a_decoder_of_blocks_says_the_same_with_and_without_tiles(
    vectors: InstructionSet, tiles: InstructionSet, formats: tuple[str, ...]
) -> None:
    """In bfloat16 where vectors multiply it, too: what is left beside blocks, attention, has no tiles."""
    dtypes = [torch.float32] if vectors is VNNI else [torch.float32, torch.bfloat16]
    text = np.random.default_rng(1).integers(3, CONFIG.vocab_size, 90).tolist()
    for dtype in dtypes:
        weights = RandomWeights(formats, dtype=dtype)
        with kernels_for(vectors):
            alone = logits_of(NativeDecoder(CONFIG, weights), text, [1] * 90)
        with kernels_for(tiles):
            for chunks in ([90], [7, 8, 9, 16, 17, 33]):
                assert torch.equal(logits_of(NativeDecoder(CONFIG, weights), text, chunks), alone)
