"""With streams in the drafter, in turn and drafting ahead, every text is the plain loop's and every draft the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drafters.client import LocalDraftClient
from drafters.streams import StreamUse
from model.decoder import Decoder
from model.load import load_decoder
from model.streams import StreamHead
from protocol.plan import DepthRule
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from targets.mirror import MirrorConfig
from tests.model.families import VOCAB
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.targets.conftest import LoadTarget
from tests.targets.mirrored import DEEP, EXITS, SHALLOW, Connect, Whimsical, engine_of

HIDDEN, WIDTH = 48, 32


@pytest.fixture(scope="module")
def streaming(llama: Path) -> Decoder:
    decoder = load_decoder(llama, dtype=torch.float32)
    draw = torch.Generator().manual_seed(5)
    shapes = (WIDTH, 2 * HIDDEN), (HIDDEN, WIDTH)
    for exit_ in EXITS:
        decoder.add_streams(
            exit_, [StreamHead(*(torch.randn(shape, generator=draw) / 9 for shape in shapes)) for _ in range(2)]
        )
    return decoder


class Streaming(Connect):
    def __init__(self, decoder: Decoder, num_streams: int) -> None:
        super().__init__(decoder)
        self.num_streams = num_streams

    def __call__(self) -> LocalDraftClient:
        client = super().__call__()
        self.worker._drafter.streams = StreamUse(self.num_streams)
        return client


@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("rule", [DEEP, SHALLOW])
def test_texts_and_drafts_in_turn_are_those_without_streams(
    load: LoadTarget, streaming: Decoder, rule: DepthRule, temperature: float
) -> None:
    requests = random_requests(3, 5, VOCAB, max_tokens=30, temperature=temperature)
    texts = plain_texts(load(), requests)
    told, passes = [], []
    for num_streams in (0, 1, 2):
        before = streaming.num_passes
        engine = Engine(load(), Fixed(rule, 6), Streaming(streaming, num_streams)(), EngineConfig(max_batch=1))
        result = run_all(engine, requests)
        assert result.tokens == texts
        told.append({name: (stats.drafted, stats.accepted, stats.rounds) for name, stats in result.stats.items()})
        passes.append(streaming.num_passes - before)
    assert told[0] == told[1] == told[2]
    assert passes[0] >= passes[1] >= passes[2]
    assert temperature < 20 or passes[0] > 1.2 * passes[2]


@pytest.mark.parametrize("seed", range(3))
def test_texts_of_the_mirror_turn_are_the_plain_loops(load: LoadTarget, streaming: Decoder, seed: int) -> None:
    requests = random_requests(seed, 6, VOCAB, max_tokens=30)
    connect = Streaming(streaming, 2)
    mirror = MirrorConfig(kappa=2, exit_layer=3)
    engine = engine_of(load, connect(), Whimsical(seed), mirror, max_batch=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert connect.is_empty()
