"""Text behind a drafter of another tokenizer against the plain loop, over a way to it that is not to be trusted."""

from __future__ import annotations

import random

import pytest

from bench.exactness.faulty import FaultyClient, LinkFaults
from drafters.translated import TranslatedDraftClient
from drafters.translation import Translation
from model.decoder import Decoder
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from tests.model.families import VOCAB
from tests.reference.engine import plain_texts, random_requests, run_all
from tests.targets.ahead import DEEP, Connect, Whimsical, has_given_back
from tests.targets.conftest import LoadTarget


def translation(rng: random.Random, share: float) -> Translation:
    """The drafter is the target itself. All tokens but a share are read and written as others, or not at all."""
    kept = {token for token in range(VOCAB) if rng.random() < share}
    other = {token: tuple(rng.choices(range(VOCAB), k=rng.randint(0, 3))) for token in range(VOCAB)}
    to_drafter = {token: (token,) if token in kept else other[token] for token in range(VOCAB)}
    return Translation(to_drafter, {token: token for token in kept})


@pytest.mark.parametrize("seed", range(12))
def test_the_text_is_the_plain_loops_whatever_the_tables_say(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    rng = random.Random(seed)
    requests = random_requests(seed, rng.randint(1, 8), VOCAB, max_tokens=28)
    faulty = FaultyClient(Connect(drafter), seed, LinkFaults(dies=rng.choice([0.0, 0.05])))
    client = TranslatedDraftClient(faulty, translation(rng, rng.choice([0.5, 0.9, 1.0])))
    config = EngineConfig(max_batch=rng.choice([1, 3, 8]), prefill_chunk=11)
    engine = Engine(load(), Whimsical(seed), client, config)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    assert has_given_back(engine)
    assert engine.stats().num_failures == 0


def test_a_drafter_that_shares_all_is_always_right_and_both_sides_end_empty(load: LoadTarget, drafter: Decoder) -> None:
    requests = random_requests(5, 6, VOCAB, max_tokens=30, temperature=0.0)
    connect = Connect(drafter)
    client = TranslatedDraftClient(connect(), translation(random.Random(0), share=1.0))
    engine = Engine(load(), Fixed(DEEP, 4), client, EngineConfig(max_batch=4))
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats()
    assert stats.num_accepted == stats.num_proposed > 0
    assert connect.is_empty()
    assert client.counts.num_shared == client.counts.num_tokens > 0
