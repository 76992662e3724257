"""Chat over a scripted backend: messages, the template that writes them as a prompt, and the shape of the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.api_client import CHAT, TEXT, Client, error_of, events
from tests.api.api_twins import CHAT_TEMPLATE, ScriptedBackend, card, says, tiny_tokenizer


async def test_a_chat_completion_has_openais_shape(client: Client, backend: ScriptedBackend) -> None:
    body = (await client.chat()).json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    prompt = tiny_tokenizer().decode(backend.requests[0].prompt_ids)
    assert prompt == "<|bos|>user: grüße<|eos|><|bos|>assistant: "


async def test_a_chat_stream_opens_with_the_role(client: Client) -> None:
    first, *rest = events(await client.chat(stream=True))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest) == TEXT
    assert rest[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least 1 item"),
        (None, "messages is missing"),
        ("hello", "list"),
        ([{"role": "function", "content": "x"}], "'assistant'"),
        ([{"role": "tool", "content": "x"}], "tool_call_id"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'text'"),
        ([{"role": "user", "content": "x", "colour": 1}], "colour"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "tool_calls"),
        ([{"content": "x"}], "role"),
        (["hello"], "messages"),
    ],
    ids=str,
)
async def test_bad_messages_are_a_400(client: Client, messages: Any, words: str) -> None:
    error = error_of(await client.chat(messages=messages), 400)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("message", "message_says"),
    [
        (
            {"content": [{"type": "text", "text": "x"}, {"type": "text", "text": "x", "colour": 1}]},
            "unknown parameter 'messages[1].content[1].colour'; leave it out",
        ),
        ({"content": [{"type": "text"}]}, "messages[1].content[0].text is missing"),
        ({"content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text: Input should be a valid string"),
        ({"content": 5}, "messages[1].content: Input should be a valid list"),
        ({"content": "x", "tool_calls": [{}]}, "messages[1].tool_calls[0].id is missing"),
        ({"content": "x", "audio": {}}, "messages[1]: audio {} is not supported; leave it out or send null"),
        ({"content": "x", "name": 5}, "messages[1].name: Input should be a valid string"),
    ],
    ids=str,
)
async def test_a_refusal_names_the_place(client: Client, message: Any, message_says: str) -> None:
    messages = [{"role": "user", "content": "fine"}, {"role": "user"} | message]
    error = error_of(await client.chat(messages=messages), 400)
    assert (error["message"], error["param"]) == (message_says, "messages")


async def test_fields_that_change_no_answer_are_dropped_wherever_they_stand(
    client: Client, backend: ScriptedBackend
) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    part = {"type": "text", "text": "x"}
    messages = [{"role": "user", "content": [part | cached]} | cached, {"role": "user", "content": [part]}]
    assert (await client.chat(messages=messages, **cached)).status_code == 200
    await client.chat(messages=[{"role": "user", "content": "x"}] * 2)
    assert backend.requests[0].prompt_ids == backend.requests[1].prompt_ids


async def test_text_parts_and_echoed_assistant_messages_are_taken(client: Client, backend: ScriptedBackend) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None, "annotations": []},
        {"role": "user", "content": "d", "name": "me"},
    ]
    assert (await client.chat(messages=messages)).status_code == 200
    prompt = tiny_tokenizer().decode(backend.requests[0].prompt_ids)
    assert "user: ab<|eos|><|bos|>assistant: c<|eos|><|bos|>user: d" in prompt


async def test_chat_without_a_template_is_a_400_that_says_what_to_do() -> None:
    async with Client(ScriptedBackend(says(TEXT), (card(chat_template=None),))) as client:
        error = error_of(await client.chat(), 400)
    assert "no chat template" in error["message"]
    assert "/v1/completions" in error["message"]


async def test_messages_with_too_many_tokens_are_named_as_messages(client: Client) -> None:
    error = error_of(await client.chat(messages=[{"role": "user", "content": "a b c d " * 20}]), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "this model holds 64" in error["message"]


OPEN = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content | trim }}<|eos|>{% endfor %}"
OPEN += "{% if add_generation_prompt %}<|bos|>assistant: {% if enable_thinking %}hm{% endif %}{% endif %}"
TWO = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c "}]


@pytest.mark.parametrize("template", [OPEN, CHAT_TEMPLATE])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"add_generation_prompt": True, "continue_final_message": False},
    ],
    ids=str,
)
async def test_a_prompt_ends_as_transformers_ends_it(template: str, asked: dict[str, bool]) -> None:
    backend = ScriptedBackend(says(TEXT), (card(chat_template=template),))
    async with Client(backend) as client:
        assert (await client.chat(messages=TWO, **asked)).status_code == 200
    opens = {"add_generation_prompt": "continue_final_message" not in asked or not asked["continue_final_message"]}
    expected = tiny_tokenizer(template).apply_chat_template(TWO, tokenize=False, **opens | asked)
    assert tiny_tokenizer().decode(backend.requests[0].prompt_ids) == expected


async def test_a_message_that_looks_like_a_control_token_can_be_continued(
    client: Client, backend: ScriptedBackend
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "see <|eos|> or <|e"}]
    assert (await client.chat(messages=messages, continue_final_message=True)).status_code == 200
    ids = backend.requests[0].prompt_ids
    assert tiny_tokenizer().decode(ids).endswith("assistant: see <|eos|> or <|e")
    assert ids.count(tiny_tokenizer().eos_token_id) == 1


async def test_a_prompt_that_both_goes_on_and_begins_is_a_400(client: Client) -> None:
    error = error_of(await client.chat(messages=TWO, continue_final_message=True, add_generation_prompt=True), 400)
    assert error["param"] == "continue_final_message"
    assert "send one" in error["message"]


async def test_a_last_message_that_the_template_does_not_write_cannot_be_continued() -> None:
    async with Client(ScriptedBackend(says(TEXT), (card(chat_template="{{ messages[0].content }}"),))) as client:
        error = error_of(await client.chat(messages=TWO, continue_final_message=True), 400)
    assert "cannot be continued" in error["message"]


async def test_variables_reach_the_template_that_reads_them() -> None:
    backend = ScriptedBackend(says(TEXT), (card(chat_template=OPEN),))
    async with Client(backend) as client:
        for thinks in (True, False, None, "<|eos|>"):
            assert (await client.chat(chat_template_kwargs={"enable_thinking": thinks})).status_code == 200
    ends = [tiny_tokenizer().decode(request.prompt_ids).rpartition("assistant: ")[2] for request in backend.requests]
    assert ends == ["hm", "", "", "hm"]


async def test_a_control_token_in_a_variable_is_its_characters() -> None:
    backend = ScriptedBackend(says(TEXT), (card(chat_template="{{ messages[0].content }}<|eos|>{{ x }}"),))
    async with Client(backend) as client:
        await client.chat(chat_template_kwargs={"x": "<|eos|>"})
    assert backend.requests[0].prompt_ids.count(tiny_tokenizer().eos_token_id) == 1


def nested(depth: int) -> Any:
    return {"x": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"messages": []}, "cannot set 'messages'"),
        ({"tools": []}, "cannot set 'tools'"),
        ({"add_generation_prompt": False}, "cannot set 'add_generation_prompt'"),
        ({"chat_template": "x"}, "cannot set 'chat_template'"),
        ({"tokenize": True}, "cannot set 'tokenize'"),
        ({"bos_token": "x"}, "cannot set 'bos_token'"),
        ({"enable_thinkng": True}, "does not read 'enable_thinkng'; leave it out"),
        ({"": True}, "does not read ''"),
        ({"x": nested(40)}, "nested more than 32 deep"),
        ({"x": float("nan")}, "nan is no JSON"),
        ({"x": "\ud800"}, "surrogate"),
        ([1], "dictionary"),
        ({"x": "y" * 10_000}, "more than the 64 tokens"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_variables_that_are_not_the_templates_own_are_a_400(variables: Any, words: str) -> None:
    template = OPEN + "{{ x }}{% set own = [bos_token, tokenize] %}"
    async with Client(ScriptedBackend(says(TEXT), (card(chat_template=template),))) as client:
        content = json.dumps(CHAT | {"chat_template_kwargs": variables})
        error = error_of(await client.send_raw("/v1/chat/completions", content), 400)
    assert words in error["message"]
    assert error["param"] == "chat_template_kwargs"
    assert "chat_template_kwargs" in error["message"]
