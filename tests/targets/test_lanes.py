"""The text of the lanes turn is the plain loop's, over good links and bad, whoever is cancelled or preempted."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

import targets.step
from bench.exactness.faulty import Faults, FaultyClient
from model.decoder import Decoder
from protocol.plan import Plan
from protocol.request import GenerateRequest, TokenRun
from router.goodput import Goodput, GoodputConfig
from router.policy import Fixed
from targets.engine import Engine
from targets.sequence import Sequence as Decoding
from targets.step import Stepper
from tests.model.families import VOCAB
from tests.reference.engine import Collector, plain_texts, random_requests, run_all
from tests.router.curves import curves
from tests.targets.conftest import LoadTarget
from tests.targets.lanes import LANES, agree, toss
from tests.targets.mirrored import DEEP, RULES, SHALLOW, Connect, Whimsical, engine_of, has_given_back


class Fickle(Collector):
    """When some requests have a number of tokens, cancels another, whose draft may be on its way."""

    def __init__(self, engine: Engine, rng: random.Random, requests: Sequence[GenerateRequest]) -> None:
        super().__init__()
        self.engine = engine
        names = [request.request_id for request in requests]
        self.limits = {name: (rng.randint(1, 20), rng.choice(names)) for name in names if rng.random() < 0.4}

    def __call__(self, run: TokenRun) -> None:
        super().__call__(run)
        limit, victim = self.limits.get(run.request_id, (1000, ""))
        if len(self.tokens[run.request_id]) >= limit:
            self.engine.cancel(victim)


def run_fickle(engine: Engine, requests: Sequence[GenerateRequest], seed: int) -> Fickle:
    collector = Fickle(engine, random.Random(seed), requests)
    for request in requests:
        engine.submit(request, collector)
    engine.start()
    collector.wait(len(requests))
    engine.stop()
    return collector


@pytest.mark.parametrize("seed", range(16))
def test_the_text_is_the_plain_loops_whatever_the_link_does_who_is_cancelled_and_how_modes_change(
    load: LoadTarget, drafter: Decoder, seed: int
) -> None:
    rng = random.Random(seed)
    requests = random_requests(seed, rng.randint(4, 10), VOCAB, max_tokens=28)
    client = FaultyClient(Connect(drafter), seed, Faults(dies=rng.choice([0.0, 0.05])))
    engine = engine_of(load, client, Whimsical(seed), LANES, max_batch=rng.randint(2, 8), prefill_chunk=11)
    tossed = seed % 2 > 0
    if tossed:
        toss(engine, seed)
    collector = run_fickle(engine, requests, seed)
    assert agree(collector, plain_texts(load(), requests))
    assert has_given_back(engine)
    stats = engine.stats()
    assert stats.mirror is not None
    assert tossed or stats.mirror.num_lanes > 0
    assert not engine._drafting._asks  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(4))
def test_a_policy_that_learns_from_halves_changes_no_token(load: LoadTarget, drafter: Decoder, seed: int) -> None:
    requests = random_requests(seed, 6, VOCAB, max_tokens=60)
    config = GoodputConfig((DEEP, SHALLOW), (3, 4), length=6, max_rows=8, evidence=12)
    policy = Goodput(curves(layer=0.01, row=0.001, overhead=0.05), config)
    client = FaultyClient(Connect(drafter), seed, Faults(missed=0.01, lost=0.01, stale=0.01))
    engine = engine_of(load, client, policy, LANES, max_batch=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats().mirror
    assert stats is not None
    assert stats.num_lanes > 0
    assert has_given_back(engine)


@pytest.mark.parametrize("seed", range(6))
def test_forced_preemption_changes_no_token_and_nothing_is_planned_for_who_is_out(
    load: LoadTarget, drafter: Decoder, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Stepper.planned

    def checked(self: Stepper, decoding: list[Decoding], overlap: str = "") -> Plan:
        assert set(decoding) <= set(self.scheduler.running)
        return planned(self, decoding, overlap)

    monkeypatch.setattr(Stepper, "planned", checked)
    requests = random_requests(5 + seed, 8, VOCAB, max_tokens=30)
    client = FaultyClient(Connect(drafter), seed, Faults(missed=0.01, late_row=0.01))
    engine = engine_of(load, client, Whimsical(seed), LANES, num_positions=128, page_size=4)
    assert run_all(engine, requests).tokens == plain_texts(load(), requests)
    stats = engine.stats()
    assert stats.mirror is not None
    assert min(stats.num_preempted, stats.mirror.num_lanes) > 0
    assert has_given_back(engine)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_rows", [2, 3, 8])
def test_the_text_is_the_plain_loops_over_a_good_link_and_the_pool_is_empty_in_the_end(
    load: LoadTarget, drafter: Decoder, num_rows: int, temperature: float
) -> None:
    requests = random_requests(num_rows, num_rows + 2, VOCAB, max_tokens=24, temperature=temperature)
    connect = Connect(drafter)
    engine = engine_of(load, connect(), Fixed(RULES[num_rows % 4], 4), LANES, max_batch=num_rows)
    collector = run_fickle(engine, requests, num_rows)
    assert agree(collector, plain_texts(load(), requests))
    assert has_given_back(engine)
    assert connect.is_empty()


def test_a_draft_that_was_taken_unverified_would_change_the_text(
    load: LoadTarget, drafter: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = random_requests(1, 4, VOCAB, max_tokens=24)
    texts = plain_texts(load(), requests)
    monkeypatch.setattr(targets.step, "num_accepted", lambda picks, draft: len(draft))
    engine = engine_of(load, FaultyClient(Connect(drafter), 0), Fixed(SHALLOW, 3), LANES)
    assert run_all(engine, requests).tokens != texts
