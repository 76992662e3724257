"""The closed loop over the real API on a real socket: as many under way as asked for, and no failure goes unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from bench.client import LoadClient, RequestFailed, RequestTemplate
from protocol.errors import NotReady
from protocol.request import GenerateRequest
from tests.api.api_twins import ScriptedBackend, runs_of, says
from tests.bench.http_server import http_server

ASK = RequestTemplate(("one", "two", "three"), max_tokens=8, temperature=0.5)


@pytest.mark.parametrize("stream", [True, False])
async def test_every_request_is_answered_in_the_order_in_which_it_was_sent(stream: bool) -> None:
    ask, backend = RequestTemplate(ASK.prompts, 8, stream=stream), ScriptedBackend(says("import os"))
    with http_server(backend) as url:
        async with LoadClient(url, 2) as client:
            seen: list[float] = []
            requests = [("tiny", number) for number in range(5)]
            answers = await client.closed_loop(ask, requests, 2, lambda answer: seen.append(answer.end_s))
    assert [answer.text for answer in answers] == ["import os"] * 5
    assert len(seen) == 5
    assert all(answer.num_tokens > 0 and answer.sent_s < answer.end_s for answer in answers)
    assert sorted(request.sampling.seed for request in backend.requests) == [0, 1, 2, 3, 4]
    assert all(request.stop.max_tokens == 8 for request in backend.requests)


async def test_no_more_are_under_way_than_asked_for() -> None:
    backend, gate, most = ScriptedBackend(says("")), asyncio.Event(), [0]

    def script(request: GenerateRequest) -> list[object]:
        most[0] = max(most[0], backend.num_open)
        return [asyncio.Event()] if gate.is_set() else list(runs_of(request, [5, 6]))

    backend.script = script  # type: ignore[assignment]
    with http_server(backend) as url:
        async with LoadClient(url, 8) as client:
            await client.closed_loop(ASK, [("tiny", number) for number in range(9)], 3)
    assert len(backend.requests) == 9
    assert most[0] <= 3


@pytest.mark.parametrize("model", ["tiny", "absent"])
async def test_a_request_that_fails_ends_the_measurement(model: str) -> None:
    backend = ScriptedBackend(lambda request: [NotReady("going down")])
    with http_server(backend) as url:
        async with LoadClient(url, 1) as client:
            with pytest.raises(ExceptionGroup) as failed:
                await client.closed_loop(ASK, [(model, 0)], 1)
    assert failed.group_contains(RequestFailed, match=f"a request to {model} failed")
