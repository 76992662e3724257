"""Logprobs of a prompt's own tokens: the model's at every place behind the first, however the prompt was read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

import targets.model
from model.execution import Execution
from protocol.request import GenerateRequest
from router.policy import Off
from targets import scheduler
from targets.engine import Engine, EngineConfig
from targets.model import ForwardRow, TargetModel
from targets.scoring import standing
from tests.model.families import EXECUTIONS
from tests.reference.engine import Collector, plain_texts, run_all
from tests.targets.ahead import Connect, Whimsical, engine_of
from tests.targets.conftest import LoadTarget
from tests.targets.test_logprobs import one_by_one, some_requests, speculate


def telling(seed: int, count: int = 9) -> list[GenerateRequest]:
    """Of those that ask for logprobs two of three ask for the prompt's, too; several prompts begin alike."""
    requests = some_requests(seed, count)
    beginning = requests[0].prompt_ids * 2
    return [
        replace(request, prompt_ids=beginning + request.prompt_ids if index % 2 else request.prompt_ids,
                tells_prompt=request.logprobs is not None and index % 3 != 0)
        for index, request in enumerate(requests)
    ]  # fmt: skip


def assert_prompts_told(result: Collector, requests: Sequence[GenerateRequest], model: TargetModel) -> None:
    for request in requests:
        told, first = result.of_prompt[request.request_id], replace(request, prompt_ids=request.prompt_ids[:1])
        expected = one_by_one(model, first, request.prompt_ids[1:]) if request.tells_prompt else []
        if model.decoder.is_deterministic:
            assert told == expected
        assert [own.chosen for own in told] == pytest.approx([own.chosen for own in expected], abs=1e-4)
        assert [dict(own.top) for own in told] == [pytest.approx(dict(own.top), abs=1e-4) for own in expected]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_they_are_those_of_the_places_one_by_one_and_the_texts_stay(
    load: LoadTarget, execution: Execution, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "TOLD_CHUNK", random.Random(seed).choice([1, 5, 64]))
    requests = telling(seed)
    texts = plain_texts(load(execution=execution), requests)
    result, _ = speculate(load, requests, texts, seed, execution=execution)
    assert result.tokens == texts
    assert_prompts_told(result, requests, load(execution=execution))
    assert sum(request.tells_prompt for request in requests) > 2


def test_they_are_where_sequences_are_preempted(load: LoadTarget) -> None:
    requests = telling(5, count=12)
    texts = plain_texts(load(), requests)
    result, engine = speculate(load, requests, texts, 1, num_positions=160, page_size=4)
    assert result.tokens == texts
    assert_prompts_told(result, requests, load())
    assert engine.stats().num_preempted > 0


def test_they_are_where_passes_stop_on_their_way(load: LoadTarget, drafter: Any) -> None:
    requests = telling(3)
    engine = engine_of(load, Connect(drafter)(), Whimsical(3), max_batch=4)
    result = run_all(engine, requests)
    assert result.tokens == plain_texts(load(), requests)
    assert_prompts_told(result, requests, load())


def test_they_are_told_of_a_prompt_whose_pages_were_kept_and_others_may_have_its_pages(load: LoadTarget) -> None:
    request = replace(some_requests(0)[1], prompt_ids=tuple(range(5, 45)), logprobs=2)
    model = load(page_size=4)
    engine = Engine(model, Off(), config=EngineConfig(max_batch=1))
    told = [replace(request, request_id=name, tells_prompt=name == "b") for name in "abc"]
    result = run_all(engine, told)
    assert_prompts_told(result, told, load())
    assert engine.stats().num_hit_tokens == 36
    assert len({tuple(tokens) for tokens in result.tokens.values()}) == 1


def one_late(rows: Sequence[ForwardRow], picks: Sequence[int]) -> list[int]:
    tokens = standing(rows, picks)
    return tokens[-1:] + tokens[:-1]


def test_logprobs_of_the_token_before_are_found_out(load: LoadTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = telling(1)
    texts = plain_texts(load(), requests)
    with monkeypatch.context() as planted:
        planted.setattr(targets.model, "standing", one_late)
        result, _ = speculate(load, requests, texts, 1)
    with pytest.raises(AssertionError):
        assert_prompts_told(result, requests, load())
