"""Which parameters are taken, what they become, and which are refused by name."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from api.openai import ChatCompletionRequest, CompletionRequest
from api.text import decode
from api.unsupported import DROPPED, ONLY
from protocol.logit_rules import LogitRules
from tests.api.api_client import CHAT, COMPLETION, Client, error_of, events
from tests.api.api_twins import ScriptedBackend, tiny_tokenizer


async def test_parameters_reach_the_request(client: Client, backend: ScriptedBackend) -> None:
    await client.complete(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=-1, max_completion_tokens=9, stop_token_ids=[8]
    )
    request = backend.requests[0]
    assert request.sampling.temperature == 0.5
    assert (request.sampling.top_p, request.sampling.top_k, request.sampling.min_p) == (0.9, 5, 0.1)
    assert request.sampling.seed == (1 << 64) - 1
    assert request.stop.max_tokens == 9
    assert request.stop.stop_token_ids == {8, tiny_tokenizer().eos_token_id}


async def test_logit_rules_reach_the_request(client: Client, backend: ScriptedBackend) -> None:
    penalties = {"frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.25}
    await client.complete(logit_bias={"9": -100, "5": 2.5}, min_tokens=4.0, stop_token_ids=[8], **penalties)
    await client.chat(**penalties)
    first, second = backend.requests
    stops = frozenset({8, tiny_tokenizer().eos_token_id})
    assert first.rules == LogitRules(((5, 2.5), (9, -100.0)), 0.5, -1.0, 1.25, 4, stops)
    assert second.rules == LogitRules((), 0.5, -1.0, 1.25)


async def test_logprobs_reach_the_request(client: Client, backend: ScriptedBackend) -> None:
    for count in (0, 20, None):
        assert (await client.complete(logprobs=count)).status_code == 200
    for fields in ({"logprobs": True}, {"logprobs": True, "top_logprobs": 20}, {"logprobs": False, "top_logprobs": 0}):
        assert (await client.chat(**fields)).status_code == 200
    assert [request.logprobs for request in backend.requests] == [0, 20, None, 0, 20, None]


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}, {"top_logprobs": -1}])
async def test_a_chat_with_bad_top_logprobs_is_a_400_that_names_them(client: Client, fields: dict[str, Any]) -> None:
    error = error_of(await client.chat(**fields), 400)
    assert error["param"] == "top_logprobs"
    assert "top_logprobs" in error["message"]


async def test_a_stop_string_ends_nothing_before_min_tokens(client: Client) -> None:
    whole = (await client.complete(stop="no such thing")).json()["choices"][0]
    for count in range(12):
        for stream in (False, True):
            answer = await client.complete(stop=["e", "d", " "], min_tokens=count, stream=stream)
            parts = [event["choices"][0]["text"] for event in events(answer)] if stream else []
            text = "".join(parts) if stream else answer.json()["choices"][0]["text"]
            sure = decode(tiny_tokenizer(), tiny_tokenizer().encode(whole["text"])[:count])
            assert text.startswith(sure.rstrip("\ufffd"))
            assert not set("ed ") & set(text[len(sure) :])
            assert len(text) < len(whole["text"])


async def test_a_whole_number_is_one_however_it_is_written(client: Client, backend: ScriptedBackend) -> None:
    whole = {"max_tokens": 9.0, "top_k": 5.0, "seed": 7.0, "stop_token_ids": [8.0], "prompt": [70.0, 71]}
    assert (await client.complete(**whole)).status_code == 200
    request = backend.requests[0]
    assert (request.stop.max_tokens, request.sampling.top_k, request.sampling.seed) == (9, 5, 7)
    assert 8 in request.stop.stop_token_ids
    assert request.prompt_ids == (70, 71)
    assert (await client.complete(prompt=[[70.0], [71.0]], max_tokens=64.0 - 8)).status_code == 200


async def test_a_stop_string_that_is_a_special_token_stops_at_it(client: Client, backend: ScriptedBackend) -> None:
    special = tiny_tokenizer().convert_tokens_to_ids(["<|pad|>", "<|eos|>"])
    await client.complete(stop=["<|pad|>", "x"], ignore_eos=True)
    await client.complete(stop="<|eos|>", ignore_eos=True)
    await client.complete(stop="<|eos|> ", ignore_eos=True)
    assert [request.stop.stop_token_ids for request in backend.requests] == [{special[0]}, {special[1]}, set()]


async def test_the_defaults_are_openais(client: Client, backend: ScriptedBackend) -> None:
    await client.complete(ignore_eos=True, top_k=-1)
    await client.chat()
    completion, chat = backend.requests
    assert (completion.sampling.temperature, completion.sampling.top_k, completion.stop.max_tokens) == (1.0, 0, 16)
    assert completion.stop.stop_token_ids == set()
    assert chat.stop.max_tokens == 64 - len(chat.prompt_ids)


HARMLESS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "n": 1,
    "best_of": 1,
    "logit_bias": {},
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logprobs": None,
    "echo": False,
    "suffix": None,
    "stop": None,
    "seed": None,
    "temperature": None,
    "max_tokens": None,
    "min_tokens": 0,
    "stream": None,
    "stream_options": None,
    "skip_special_tokens": True,
}


async def test_harmless_fields_are_accepted(client: Client) -> None:
    assert (await client.complete(**HARMLESS)).status_code == 200
    chat = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}}
    assert (await client.chat(**chat, top_logprobs=0, logprobs=False, modalities=["text"])).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": 3, "prompt": ["a"] * 43}, "n"),
        ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output"),
        ({"skip_special_tokens": 0}, "skip_special_tokens"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"frequency_penalty": True}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "much"}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"logit_bias": [[5, 1]]}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 2.5}, "min_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": [*range(320)]}, "min_tokens"),
        ({"temprature": 0}, "temprature"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"what": 1}}, "stream_options"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1 << 40}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 1e300}, "max_tokens"),
        ({"stop_token_ids": [8.5]}, "stop_token_ids"),
        ({"prompt": [70.5]}, "prompt"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 1 << 64}, "seed"),
        ({"seed": -(1 << 63) - 1}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"max_tokens": 1 << 70}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "\ud800"}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["ok", ""]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [320]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": "\ud83d"}, "prompt"),
        ({"prompt": "a b c d " * 40}, "prompt"),
        ({"model": None}, "model"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else value,
)
async def test_a_bad_parameter_is_a_400_that_names_it(
    client: Client, backend: ScriptedBackend, changes: dict[str, Any], param: str
) -> None:
    error = error_of(await client.complete_raw(**changes), 400)
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"
    assert backend.requests == []


JUNK: list[Any] = [None, True, False, 0, -1, 1.5, 1 << 65, float("nan"), float("inf"), "", "x", "\ud800", [], [[]], {}]
JUNK += [[None], ["x", 1], [1, [2]], {"type": "text"}, {"\ud800": 1}, [{"role": "user", "content": "x"}], ["\x00"]]


@pytest.mark.parametrize("seed", range(40))
async def test_no_body_whatever_it_holds_is_answered_by_a_5xx_or_a_422(client: Client, seed: int) -> None:
    rng = random.Random(seed)
    fields = [*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields, *ONLY, *DROPPED, "\ud800", "", "zz"]
    for path, base in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)) * 6:
        body = base | {rng.choice(fields): rng.choice(JUNK) for _ in range(rng.randint(1, 3))}
        response = await client.send_raw(path, json.dumps(body))
        if response.status_code != 200:
            assert response.status_code in (400, 404), response.text
            assert error_of(response, response.status_code)["message"]


async def test_a_default_for_max_tokens_gives_way_to_a_long_prompt_and_an_explicit_one_does_not(
    client: Client, backend: ScriptedBackend
) -> None:
    assert (await client.complete(prompt=[70] * 60)).status_code == 200
    assert backend.requests[0].stop.max_tokens == 4
    assert (await client.complete(prompt=[70] * 60, max_tokens=4)).status_code == 200
    assert "ask for 4 at most" in error_of(await client.complete(prompt=[70] * 60, max_tokens=5), 400)["message"]
    assert "ask for 4 at most" in error_of(await client.complete(prompt=[70] * 60, max_tokens=16), 400)["message"]
