"""The share of right guesses that the bench reports is what a drafter's guesses, each from scratch, come to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.streams import right_guesses
from model.batch import BatchRow, build_batch
from model.execution import Execution
from model.load import load_decoder
from model.streams import StreamHead, next_state
from protocol.request import SamplingParams
from tests.model.families import VOCAB, make_checkpoint

HIDDEN, WIDTH, DEPTH = 48, 16, 2


@pytest.mark.parametrize("temperature", [0.0, 20.0])
def test_guesses_are_right_where_they_are_the_exits_own_pick(tmp_path: Path, temperature: float) -> None:
    decoder = load_decoder(
        make_checkpoint("llama", tmp_path / "llama", seed=4), dtype=torch.float32, execution=Execution.EAGER
    )
    draw = torch.Generator().manual_seed(2)
    shapes = (WIDTH, 2 * HIDDEN), (HIDDEN, WIDTH)
    heads = [StreamHead(*(torch.randn(shape, generator=draw) / 8 for shape in shapes)) for _ in range(2)]
    text = np.random.default_rng(1).integers(3, VOCAB, 90).tolist()
    sampling = SamplingParams(temperature, seed=6)

    def state(length: int) -> torch.Tensor:
        batch = build_batch([BatchRow(np.arange(length), length)])
        return decoder.run(decoder.embed(text[:length]), batch, decoder.new_kv(length), 0, DEPTH)[-1:]

    def pick(hidden: torch.Tensor, position: int) -> int:
        return decoder.pick(decoder.logits(hidden, [0]), [sampling], [position])[0]

    found = right_guesses(decoder, heads, DEPTH, text, 40, sampling)
    for stream, right in enumerate(found, 1):
        expected = []
        for length in range(41 - stream, len(text) + 1 - stream):
            hidden = state(length)
            for further, head in enumerate(heads[:stream]):
                hidden = next_state(head, hidden, decoder.embed([text[length + further]]))
            expected.append(pick(hidden, length + stream) == pick(state(length + stream), length + stream))
        assert right == expected
    assert temperature == 0 or any(found[0])
