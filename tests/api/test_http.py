"""What the HTTP API answers, over a scripted backend: shapes, streams, usage, models and health."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from api.seeds import choice_seed
from tests.api.api_client import TEXT, Client, events
from tests.api.api_twins import ScriptedBackend, runs_of, tiny_tokenizer


def usage(num_prompt: int, num_answered: int) -> dict[str, Any]:
    total = num_prompt + num_answered
    told = {"prompt_tokens": num_prompt, "completion_tokens": num_answered, "total_tokens": total}
    return told | {"prompt_tokens_details": {"cached_tokens": 0}}


async def test_a_completion_has_openais_shape(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.complete(seed=7)).json()
    count = len(tiny_tokenizer().encode(TEXT))
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    metrics = body.pop("metrics")["speculative_decoding"]
    assert body == {
        "object": "text_completion",
        "model": "tiny",
        "seed": 7,
        "choices": [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "seed": 7}],
        "usage": usage(2, count),
    }
    assert metrics["num_draft_tokens"] == 8
    assert metrics["num_accepted_draft_tokens"] == 3
    assert metrics["draft_acceptance_rate"] == 3 / 8
    assert metrics["mean_acceptance_length"] == 1 + 3 / metrics["num_spec_steps"]
    assert backend.requests[0].prompt_ids == tuple(tiny_tokenizer().encode("import"))


async def test_each_round_is_one_chunk_and_chunks_join_to_the_whole_text(client: Client) -> None:
    chunks = events(await client.complete(stream=True))
    num_rounds = -(-len(tiny_tokenizer().encode(TEXT)) // 3)
    assert len(chunks) == num_rounds
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (num_rounds - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_usage_comes_in_one_more_chunk_when_asked_for(client: Client) -> None:
    *chunks, last = events(await client.complete(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    count = len(tiny_tokenizer().encode(TEXT))
    assert last["usage"] == usage(2, count)
    assert last["metrics"]["speculative_decoding"]["num_draft_tokens"] == 8


async def test_usage_can_come_with_every_chunk(client: Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = events(await client.complete(stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:3]] == [3, 6, 9]
    opening, *chunks, _ = events(await client.chat(stream=True, stream_options=options))
    assert opening["usage"]["completion_tokens"] == 0
    assert opening["usage"]["prompt_tokens"] == chunks[-1]["usage"]["prompt_tokens"] > 0


async def test_every_chat_chunk_but_the_last_has_a_usage_of_null_when_usage_is_asked_for(client: Client) -> None:
    *chunks, last = events(await client.chat(stream=True, stream_options={"include_usage": True}))
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["usage"]["completion_tokens"] == len(tiny_tokenizer().encode(TEXT))
    assert not any("usage" in chunk for chunk in events(await client.chat(stream=True)))


async def test_a_stop_string_ends_the_text_before_it_and_cancels_the_rest() -> None:
    tokens = tiny_tokenizer().encode("one two three")
    hold = asyncio.Event()
    backend = ScriptedBackend(lambda request: [*runs_of(request, tokens, tokens)[:1], hold])
    async with Client(backend) as client:
        body = (await client.complete(stop=[" three", " tw"])).json()
    assert body["choices"][0]["text"] == "one"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] < len(tokens)
    assert "metrics" not in body
    assert backend.num_open == 0


async def test_several_prompts_give_several_choices(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.complete(prompt=["a", "b"])).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert [choice["text"] for choice in body["choices"]] == [TEXT, TEXT]
    assert body["usage"]["prompt_tokens"] == 2
    assert len({request.request_id for request in backend.requests}) == 2
    chunks = events(await client.complete(prompt=[[5], [6]], stream=True))
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == TEXT


async def test_token_ids_may_be_the_prompt_and_may_be_returned(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.complete(prompt=[4, 5, 6], return_token_ids=True)).json()
    assert backend.requests[0].prompt_ids == (4, 5, 6)
    assert body["choices"][0]["token_ids"] == tiny_tokenizer().encode(TEXT)


async def test_a_seed_that_was_not_given_is_drawn_and_told(client: Client, backend: ScriptedBackend) -> None:
    bodies = [(await client.complete()).json() for _ in range(40)]
    seeds = [request.sampling.seed for request in backend.requests]
    assert [body["seed"] for body in bodies] == seeds
    assert len(set(seeds)) == len(seeds)
    assert all(int(float(seed)) == seed < 1 << 53 for seed in seeds), "any JSON library keeps it"
    assert events(await client.complete(stream=True))[0]["seed"] == backend.requests[-1].sampling.seed


async def test_each_choice_has_a_seed_of_its_own_and_the_first_has_the_requests(
    client: Client, backend: ScriptedBackend
) -> None:
    body = (await client.complete(prompt=["a"] * 4, seed=-1)).json()
    seeds = [choice["seed"] for choice in body["choices"]]
    assert body["seed"] == seeds[0] == -1
    assert [request.sampling.seed for request in backend.requests] == [(1 << 64) - 1, *seeds[1:]]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 1 << 53 for seed in seeds[1:])
    assert seeds == [choice["seed"] for choice in (await client.complete(prompt=["a"] * 4, seed=-1)).json()["choices"]]
    chunks = events(await client.complete(prompt=["a"] * 4, seed=-1, stream=True))
    assert {(choice["index"], choice["seed"]) for chunk in chunks for choice in chunk["choices"]} == set(
        enumerate(seeds)
    )


def test_the_seed_of_a_choice_is_what_the_docs_say() -> None:
    assert choice_seed(7, 0) == 7
    assert choice_seed(7, 1) == int(hashlib.sha256(b"7:1").hexdigest()[:16], 16) // 2**11
    assert choice_seed(-1, 3) == choice_seed((1 << 64) - 1, 3)


async def test_models_are_listed_and_found(client: Client) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"][0] == (await client.get("/v1/models/tiny")).json()
    assert listed["data"][0]["max_model_len"] == 64
    assert listed["data"][0]["object"] == "model"


async def test_operators_can_read_the_counts_of_every_replica(client: Client) -> None:
    assert (await client.get("/debug/stats")).json() == {"targets": {"tiny": [{"num_running": 0}]}, "pool": []}
    assert (await client.get("/debug/router")).json() == {"tiny": [{"policy": "off"}]}


async def test_operators_can_read_what_the_last_rounds_took(client: Client) -> None:
    events = (await client.get("/debug/trace?rounds=2")).json()["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["tiny", "pool"]
    assert [event["pid"] for event in events if event["ph"] == "X"] == [1, 1, 2]
    for bad in ("0", "many", "100000"):
        refused = await client.get(f"/debug/trace?rounds={bad}")
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("rounds: Input should be")


@pytest.mark.parametrize("name", ["query", "body", "no_such"])
async def test_an_unknown_parameter_is_named(client: Client, name: str) -> None:
    assert (await client.complete(**{name: 1})).json()["error"]["message"].startswith(f"unknown parameter '{name}'")


async def test_the_request_id_is_echoed_or_made(client: Client) -> None:
    response = await client.get("/health", headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    for bad in ("", "a b", "x" * 200):
        assert (await client.get("/health", headers={"x-request-id": bad})).headers["x-request-id"] not in ("", bad)
