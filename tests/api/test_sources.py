"""`return_token_sources`: where each token of an answer came from, over a real engine that drafts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from protocol.request import TokenRun
from tests.api.api_client import CHAT, COMPLETION, Client, error_of, events
from tests.api.api_twins import EngineBackend, ScriptedBackend, card, make_drafting_engine, runs_of

ASKED: dict[str, Any] = {"max_tokens": 40, "seed": 5, "return_token_sources": True, "return_token_ids": True}


@pytest.fixture
async def drafting(tmp_path: Path) -> AsyncIterator[Client]:
    engine, worker = make_drafting_engine(tmp_path)
    try:
        async with Client(EngineBackend(engine, card(max_model_len=engine.max_length), worker)) as client:  # type: ignore[arg-type]
            yield client
    finally:
        engine.stop()


async def test_an_answer_tells_the_exit_of_each_drafted_token_whole_and_in_a_stream(drafting: Client) -> None:
    for route, body in (("completions", COMPLETION), ("chat/completions", CHAT)):
        whole = (await drafting.post(f"/v1/{route}", json=body | ASKED)).json()
        (choice,) = whole["choices"]
        assert len(choice["token_sources"]) == len(choice["token_ids"]) == whole["usage"]["completion_tokens"]
        assert choice["token_sources"][0] == 0, "the prompt's own pass gives the first"
        assert set(choice["token_sources"]) == {0, 1}
        assert sum(choice["token_sources"]) <= whole["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"]
        chunks = events(await drafting.post(f"/v1/{route}", json=body | ASKED | {"stream": True}))
        pieces = [chunk["choices"][0] for chunk in chunks]
        assert [len(piece["token_sources"]) for piece in pieces] == [len(piece["token_ids"]) for piece in pieces]
        assert [source for piece in pieces for source in piece["token_sources"]] == choice["token_sources"]


async def test_speculation_off_leaves_the_targets_own_tokens_alone(drafting: Client) -> None:
    auto, off = [(await drafting.complete(**ASKED, speculation=how)).json()["choices"][0] for how in ("auto", "off")]
    assert off["token_ids"] == auto["token_ids"]
    assert off["token_sources"] == [0] * len(off["token_ids"])


async def test_nobody_is_told_who_does_not_ask(client: Client, backend: ScriptedBackend) -> None:
    assert "token_sources" not in (await client.complete()).json()["choices"][0]
    assert [request.tells_sources for request in backend.requests] == [False]


async def test_tokens_behind_a_stop_string_have_no_source() -> None:
    def script(request: Any) -> list[TokenRun]:
        (run,) = runs_of(request, (70, 71, 72))
        return [TokenRun(run.request_id, 0, run.token_ids, run.finish_reason, run.stats, sources=(0, 4, -2))]

    backend = ScriptedBackend(script)
    async with Client(backend) as client:
        text = (await client.complete(**ASKED)).json()["choices"][0]["text"]
        (choice,) = (await client.complete(**ASKED, stop=text[1])).json()["choices"]
    assert choice["token_sources"] == [0, 4, -2][: len(choice["token_ids"])]
    assert len(choice["token_ids"]) < 3


async def test_responses_have_no_place_for_it(client: Client) -> None:
    body = {"model": "tiny", "input": "a", "return_token_sources": True}
    assert error_of(await client.post("/v1/responses", json=body), 400)["param"] == "return_token_sources"
