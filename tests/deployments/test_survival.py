"""Replicas with real engines that die at any point: every request ends with the text of the plain loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from api.generation import Delta, stream
from api.http import create_app
from api.jobs import GenerationJob
from api.survival import Recovery
from deployments.backend import ServeBackend
from protocol.errors import NotReady
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules
from targets.model import TargetModel
from tests.api.api_client import error_of, events
from tests.deployments.mortal_twins import MODEL, Death, Target, served
from tests.deployments.slow_engines import Held, slow
from tests.deployments.survival_cases import (
    CARD,
    VOCAB,
    Case,
    answer,
    assert_is_the_plain_loops,
    assert_nothing_is_left,
    cases,
    engines,
    load,
)
from tests.reference.engine import plain_texts, random_requests


@pytest.fixture(scope="module")
def oracle(family: Path) -> TargetModel:
    return load(family)


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("no_task_is_left")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("death", Death)
async def test_every_answer_is_the_plain_loops_whenever_replicas_die(
    family: Path, oracle: TargetModel, death: Death, seed: int
) -> None:
    made, rng = cases(oracle, seed), random.Random(seed)
    dooms = [rng.randrange(10, 30), *(() if death is Death.FROZEN else (rng.randrange(60), 0))]
    target = Target(slow(engines(family, oracle, made, seed), 0.01), dooms, death, seed)
    async with served(target, str(family / "large"), num_replicas=1 + seed % 2) as backend:
        answers = await asyncio.gather(*(answer(backend, case) for case in made))
        for case, deltas in zip(made, answers, strict=True):
            assert_is_the_plain_loops(case, deltas)
        assert len(target.asked) > len(made), "a replica died while it had requests"
        await assert_nothing_is_left(backend, target)


@pytest.mark.usefixtures("no_task_is_left")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("death", Death)
async def test_streams_go_on_behind_what_their_readers_have(
    family: Path, oracle: TargetModel, death: Death, seed: int
) -> None:
    made = [replace(case, streamed=True) for case in cases(oracle, 20 + seed)]
    target, num_read = Target(slow(engines(family, oracle, made, seed), 0.02), [1 << 30], death, seed), 0

    async def read(backend: ServeBackend, case: Case) -> None:
        nonlocal num_read
        deltas = []
        async with aclosing(stream(backend, case.job)) as running:
            async for delta in running:
                deltas.append(delta)
                num_read += len(delta.token_ids)
                if num_read > 20 and len(target.asked) == len(made) and target.replicas:
                    target.replicas[0].die()
        assert_is_the_plain_loops(case, deltas)

    async with served(target, str(family / "large"), num_replicas=1) as backend:
        await asyncio.gather(*(read(backend, case) for case in made))
        assert sum(len(request.resume_ids) for request in target.asked) > 5
        await assert_nothing_is_left(backend, target)


async def test_a_replica_that_still_has_the_request_takes_it_again(family: Path, oracle: TargetModel) -> None:
    """Its connection breaks, and the round in which it would learn of that takes until it is asked again."""
    request = replace(random_requests(3, 1, VOCAB, max_tokens=30)[0], request_id="r")
    expected = plain_texts(oracle, [request])["r"]
    case = Case(GenerationJob(CARD, request, (), CARD.tokenizer), True, (), "", FinishReason.LENGTH)
    held, deltas = Held(engines(family, oracle, [case], 3), num_steps=3), list[Delta]()
    target = Target(held.engine, [1 << 30], Death.CUT, 3)
    async with (
        served(target, str(family / "large"), num_replicas=1) as backend,
        aclosing(stream(backend, case.job)) as running,
    ):
        async for delta in running:
            if not deltas:
                await held.begun()
                target.replicas[0].die()
                letting_go = asyncio.create_task(held.let_go(when=lambda: len(target.asked) == 2))
            deltas.append(delta)
        await letting_go
    assert [token for delta in deltas for token in delta.token_ids] == expected
    assert len(target.asked) == 2


async def test_no_token_is_decoded_twice(family: Path, oracle: TargetModel) -> None:
    """Nor is a long answer waited for again: what was streamed goes with it."""
    request = replace(random_requests(3, 1, VOCAB, max_tokens=60)[0], request_id="r")
    case = Case(GenerationJob(CARD, request, (), CARD.tokenizer), True, (), "", FinishReason.LENGTH)
    target = Target(slow(engines(family, oracle, [case], 3), 0.02), [8], Death.KILLED, 3)
    async with served(target, str(family / "large"), num_replicas=1) as backend:
        deltas = await answer(backend, case)
    last = target.asked[-1]
    assert 0 < len(last.resume_ids) < 60
    (living,) = target.replicas
    assert living.engine.stats().num_committed == 60 - len(last.resume_ids)
    assert deltas[-1].num_tokens == 60


async def test_a_request_that_kills_each_replica_ends_with_an_error(family: Path, oracle: TargetModel) -> None:
    made = cases(oracle, 5, 1)
    target = Target(engines(family, oracle, made, 5), [0] * 9, Death.KILLED, 5)
    async with served(target, str(family / "large"), 2, Recovery(reissues=2)) as backend:
        with pytest.raises(NotReady, match="lost"):
            await answer(backend, made[0])
        assert len(target.asked) == 3
        assert backend._sink._inboxes == {}


async def test_without_any_replica_the_search_ends(family: Path, oracle: TargetModel) -> None:
    made = cases(oracle, 6, 1)
    target = Target(engines(family, oracle, made, 6), [1], Death.KILLED, 6)
    target.replaces = False
    began = time.monotonic()
    async with served(target, str(family / "large"), 1, Recovery(within_s=1.0)) as backend:
        with pytest.raises(NotReady):
            await answer(backend, made[0])
    assert 1.0 <= time.monotonic() - began < 10.0


@pytest.mark.usefixtures("no_task_is_left")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_goes_after_a_reissue_stops_the_work_within_two_rounds(
    family: Path, oracle: TargetModel, streamed: bool
) -> None:
    request = GenerateRequest("r", (5, 6, 7), SamplingParams(temperature=0.8, seed=9), StopRules(200))
    case = Case(GenerationJob(CARD, request, (), CARD.tokenizer), streamed, (), "", FinishReason.LENGTH)
    target = Target(slow(engines(family, oracle, [case], 7), 0.1), [2], Death.KILLED, 7)
    async with served(target, str(family / "large"), num_replicas=1) as backend:
        reader = asyncio.create_task(answer(backend, case))
        async with asyncio.timeout(30):
            while not (target.dead and target.replicas and target.replicas[0].engine.open_requests):
                await asyncio.sleep(0.01)
        (living,) = target.replicas
        async with asyncio.timeout(30):
            while not living.engine.stats().num_steps:
                await asyncio.sleep(0.01)
        num_steps = living.engine.stats().num_steps
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await assert_nothing_is_left(backend, target)
        assert living.engine.stats().num_steps - num_steps <= 2


@pytest.mark.usefixtures("no_task_is_left")
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_goes_while_no_replica_is_there_leaves_nothing(
    family: Path, oracle: TargetModel, streamed: bool
) -> None:
    made = [replace(case, streamed=streamed) for case in cases(oracle, 8, 3)]
    target = Target(engines(family, oracle, made, 8), [2], Death.KILLED, 8)
    target.replaces = False
    async with served(target, str(family / "large"), num_replicas=1) as backend:
        readers = [asyncio.create_task(answer(backend, case)) for case in made]
        async with asyncio.timeout(30):
            while len(target.asked) < 2 * len(made) or target.replicas:
                await asyncio.sleep(0.01)
        for reader in readers:
            reader.cancel()
        assert {type(each) for each in await asyncio.gather(*readers, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        await assert_nothing_is_left(backend, target)


async def test_a_time_limit_in_the_search_is_an_error_event_or_a_408(family: Path, oracle: TargetModel) -> None:
    body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": True, "seed": 3}
    request = GenerateRequest("x", (5, 6, 7), SamplingParams(seed=3), StopRules(40))
    case = Case(GenerationJob(CARD, request, (), CARD.tokenizer), True, (), "", FinishReason.LENGTH)
    for stream_it in (True, False):
        target = Target(slow(engines(family, oracle, [case], 4), 0.05), [4], Death.KILLED, 4)
        target.replaces = False
        async with served(target, str(family / "large"), num_replicas=1) as backend:
            transport = httpx.ASGITransport(create_app(backend))
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
                headers = {"x-request-timeout-seconds": "1"}
                response = await client.post("/v1/completions", json=body | {"stream": stream_it}, headers=headers)
            if stream_it:
                *chunks, last = events(response)
                assert chunks, "the first tokens came before"
                assert last["error"]["code"] == "request_timeout"
            else:
                assert error_of(response, 408)["code"] == "request_timeout"
            await assert_nothing_is_left(backend, target)
