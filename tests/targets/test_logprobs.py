"""Logprobs under speculation: the model's own distribution at every committed place, whatever was drafted there."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import targets.model
from model.decoder import Decoder
from model.execution import Execution
from protocol.logit_rules import TokenLogprobs
from protocol.request import GenerateRequest
from router.policy import Fixed
from targets.engine import Engine, EngineConfig
from targets.model import ForwardRow, TargetModel
from targets.scoring import Picks
from tests.model.families import EXECUTIONS, VOCAB
from tests.reference.engine import Collector, ScriptedDrafter, plain_texts, random_requests, run_all
from tests.reference.logit_rules import with_rules
from tests.targets.ahead import Connect, Whimsical, engine_of
from tests.targets.conftest import LoadTarget

DEPTH = 1


def some_requests(seed: int, count: int = 9) -> list[GenerateRequest]:
    """Greedy and sampled, with rules and without; every fourth one asks for no logprobs."""
    requests = with_rules(random_requests(seed, count, VOCAB, max_tokens=24), seed, VOCAB)
    rng = random.Random(seed)
    return [replace(r, logprobs=rng.choice([0, 1, 5, 20]) if i % 4 else None) for i, r in enumerate(requests)]


def one_by_one(model: TargetModel, request: GenerateRequest, text: Sequence[int]) -> list[TokenLogprobs]:
    """The obvious way: a pass over everything before each token, and nothing else in it."""
    told = []
    for index, token in enumerate(text):
        model.ledger.open(0)
        before = [*request.prompt_ids, *text[:index]]
        assert model.ledger.reserve(0, len(before))
        logprobs = model.forward([ForwardRow(0, 0, before, 1)])[0].log_softmax(-1)
        values, tokens = logprobs.topk(request.logprobs or 0)
        told.append(TokenLogprobs(logprobs[token].item(), tuple(zip(tokens.tolist(), values.tolist(), strict=True))))
        model.ledger.free(0)
    return told


def assert_told(
    result: Collector, requests: Sequence[GenerateRequest], texts: Mapping[str, list[int]], model: TargetModel
) -> None:
    assert result.tokens == texts
    for request in requests:
        told, text = result.logprobs[request.request_id], texts[request.request_id]
        expected = [] if request.logprobs is None else one_by_one(model, request, text)
        if model.decoder.is_deterministic:
            assert told == expected
        assert [own.chosen for own in told] == pytest.approx([own.chosen for own in expected], abs=1e-4)
        assert [dict(own.top) for own in told] == [pytest.approx(dict(own.top), abs=1e-4) for own in expected]


def speculate(
    load: LoadTarget, requests: Sequence[GenerateRequest], texts: dict[str, list[int]], seed: int, **sizes: Any
) -> tuple[Collector, Engine]:
    rng = random.Random(seed)
    drafter = ScriptedDrafter(requests, texts, seed, accuracy=rng.choice([0.4, 0.8, 1.0]), trouble=0.05)
    config = EngineConfig(max_batch=rng.choice([2, 8]), prefill_chunk=rng.choice([7, 512]))
    engine = Engine(load(**sizes), Fixed(DEPTH, rng.choice([1, 4])), drafter, config)
    return run_all(engine, requests), engine


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_they_are_those_of_the_places_one_by_one(load: LoadTarget, execution: Execution, seed: int) -> None:
    requests = some_requests(seed)
    texts = plain_texts(load(execution=execution), requests)
    result, _ = speculate(load, requests, texts, seed, execution=execution)
    assert_told(result, requests, texts, load(execution=execution))
    assert sum(stats.accepted for stats in result.stats.values()) > 0


def test_they_are_where_sequences_are_preempted(load: LoadTarget) -> None:
    requests = some_requests(5, count=12)
    texts = plain_texts(load(), requests)
    result, engine = speculate(load, requests, texts, 1, num_positions=96, page_size=4)
    assert_told(result, requests, texts, load())
    assert engine.stats().num_preempted > 0


def test_they_are_where_passes_stop_on_their_way(load: LoadTarget, drafter: Decoder) -> None:
    requests = some_requests(3)
    engine = engine_of(load, Connect(drafter)(), Whimsical(3), max_batch=4)
    assert_told(run_all(engine, requests), requests, plain_texts(load(), requests), load())
    assert engine.stats().num_accepted > 0


def test_asking_for_them_changes_no_token(load: LoadTarget) -> None:
    requests = some_requests(4)
    silent = [replace(request, logprobs=None) for request in requests]
    assert plain_texts(load(), requests) == plain_texts(load(), silent)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_they_are_those_of_transformers(load: LoadTarget, llama: Path, execution: Execution) -> None:
    requests = [replace(request, logprobs=20) for request in some_requests(6)]
    texts = plain_texts(load(execution=execution), requests)
    result, _ = speculate(load, requests, texts, 6, execution=execution)
    theirs: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for request in requests:
        tokens = [*request.prompt_ids, *result.tokens[request.request_id]]
        with torch.inference_mode():
            logprobs = theirs(torch.tensor([tokens])).logits[0].log_softmax(-1)
        for own, row, token in zip(
            result.logprobs[request.request_id],
            logprobs[len(request.prompt_ids) - 1 : -1],
            result.tokens[request.request_id],
            strict=True,
        ):
            assert own.chosen == pytest.approx(row[token].item(), abs=1e-3)
            assert [value for _, value in own.top] == pytest.approx(row.topk(20).values.tolist(), abs=1e-3)
            assert [row[other].item() for other, _ in own.top] == pytest.approx(row.topk(20).values.tolist(), abs=1e-3)


def of_what_is_left(logits: torch.Tensor, rows: Sequence[ForwardRow], *rest: Any) -> dict[int, Any]:
    """Logprobs of logits that rules have changed."""
    raw = targets.scoring.raw_logprobs(logits, rows, *rest)
    positions = [row.start + 1 + i for row in rows for i in range(row.num_logits)]
    changed = logits.clone()
    targets.scoring.apply_rules(changed, rows, positions, *rest)
    return {place: (changed[place].log_softmax(-1), count) for place, (_, count) in raw.items()}


def one_place_late(raw: Mapping[int, Any], picks: Sequence[int]) -> dict[int, TokenLogprobs]:
    told = targets.scoring.logprobs(raw, picks)
    return {place: told.get(place - 1, own) for place, own in told.items()}


@pytest.mark.parametrize(("name", "fault"), [("raw_logprobs", of_what_is_left), ("logprobs", one_place_late)])
def test_logprobs_of_another_place_or_of_changed_logits_are_found_out(
    load: LoadTarget, monkeypatch: pytest.MonkeyPatch, name: str, fault: Any
) -> None:
    requests = some_requests(1)
    texts = plain_texts(load(), requests)
    with monkeypatch.context() as planted:
        planted.setattr(targets.model, name, fault)
        result, _ = speculate(load, requests, texts, 1)
    with pytest.raises(AssertionError):
        assert_told(result, requests, texts, load())


def test_rows_that_ask_for_nothing_keep_the_one_call(load: LoadTarget) -> None:
    model = load()
    model.ledger.open(0)
    model.ledger.reserve(0, 2)
    request = some_requests(0)[0]
    picks = model.scored_picks([ForwardRow(0, 0, [5, 6], 2)], [request.sampling] * 2, [1, 2])
    assert picks == Picks(model.pick([ForwardRow(0, 0, [5, 6], 2)], [request.sampling] * 2, [1, 2]))
