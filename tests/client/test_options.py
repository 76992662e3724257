"""Every option that both protocols take: a target is asked for the same over both, and no field is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from api.openai import ChatCompletionRequest, CompletionRequest
from draftpool import ChatOptions, CompletionOptions, InvalidRequest, Speculation
from protocol.pb import inference_pb2 as pb
from protocol.request import GenerateRequest
from tests.api.api_twins import ScriptedBackend, card, runs_of, tiny_tokenizer
from tests.api.test_structured import SCHEMA
from tests.api.tool_cases import CONVERSATION, HERMES, PARAMETERS, TOOLS
from tests.client.conftest import Connect, Serve

FORM = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
NAMED = {"type": "function", "function": {"name": "time"}}
SHARED: Any = [
    {"max_tokens": 3},
    {"temperature": 0.5},
    {"top_p": 0.5},
    {"top_k": 5},
    {"min_p": 0.25},
    {"seed": -3},
    {"stop_token_ids": (71, 72)},
    {"ignore_eos": True},
    {"min_tokens": 2},
    {"logit_bias": {70: -100, 71: 2.5}},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"repetition_penalty": 1.5},
    {"response_format": {"type": "json_object"}},
    {"response_format": FORM},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json_object": True}},
    {"structured_outputs": {"regex": "[ab]{3}c"}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"grammar": 'start: "x" "y"*'}},
    {"return_token_sources": True},
    {"speculation": "off"},
    {"speculation": Speculation(2, 3)},
    {"priority": -7},
]
WITHOUT_EFFECT: Any = [
    {"top_k": -1},
    {"speculation": "auto"},
    {"response_format": {"type": "text"}},
    {"max_tokens": None, "stop": None, "structured_outputs": None},
]
OF_COMPLETIONS: Any = [{"logprobs": 0}, {"logprobs": 3}]
OF_CHATS: Any = [
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3},
    {"tools": TOOLS},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS, "strict": True}}]},
    {"tools": TOOLS, "tool_choice": "required"},
    {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    {"tools": TOOLS, "tool_choice": NAMED},
    {"chat_template_kwargs": {"mood": "gay"}},
    {"add_generation_prompt": False},
    {"continue_final_message": True},
]
OF_NO_TEMPLATE: Any = [{"logprobs": False}, {"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": "auto"}]
WRONG: Any = [
    {"structured_outputs": {}},
    {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    {"structured_outputs": {"pattern": "a"}},
    {"structured_outputs": {"json": "{"}},
    {"structured_outputs": {"regex": "("}},
    {"response_format": {"type": "xml"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
    {"response_format": {"type": "json_object"}, "ignore_eos": True},
    {"top_k": -2},
    {"min_tokens": -1},
    {"logit_bias": {999: 1.0}},
    {"logit_bias": {"a": 1.0}},
    {"frequency_penalty": 3.0},
    {"speculation": "perhaps"},
    {"priority": 2000},
]
WRONG_IN_CHATS: Any = [
    {"logprobs": 2},
    {"top_logprobs": 2},
    {"logprobs": True, "top_logprobs": 21},
    {"tool_choice": "required"},
    {"tool_choice": "perhaps"},
    {"tool_choice": NAMED},
    {"tools": [{"type": "function", "function": {"name": "f", "no": 1}}]},
    {"tools": [{"type": "machine", "function": {"name": "f"}}]},
    {"tools": [{"function": {"name": "f"}}]},
    {"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}},
    {"chat_template_kwargs": [1]},
    {"echo": True},
]
TEMPLATE = HERMES.replace("{% if add_generation_prompt %}", "{{ mood }}{% if add_generation_prompt %}")
MESSAGES = [{"role": "user", "content": "grüße"}]


@pytest.fixture
def backend() -> ScriptedBackend:
    cards = (card(max_model_len=4096, chat_template=TEMPLATE),)
    return ScriptedBackend(lambda request: runs_of(request, [70, 71], [72]), cards)


@pytest.fixture
def both(serve: Serve, connect_both: Connect, backend: ScriptedBackend) -> Iterator[Any]:
    with serve(backend) as servers:
        yield connect_both(servers)


def asked(backend: ScriptedBackend) -> list[GenerateRequest]:
    """What the target was asked for since the last time."""
    found = [replace(request, request_id="") for request in backend.requests]
    backend.requests.clear()
    return found


def in_chats(client: Any, **options: Any) -> Any:
    return client.chat("tiny", **{"messages": MESSAGES, "seed": 5, **options})


def in_completions(client: Any, **options: Any) -> Any:
    return client.complete("tiny", "grüße", **{"seed": 5, **options})


ROUTES = pytest.mark.parametrize("ask", [in_completions, in_chats])


@ROUTES
def test_an_option_asks_a_target_for_the_same_over_both(both: Any, backend: ScriptedBackend, ask: Any) -> None:
    ask(both[0])
    (plain,) = asked(backend)
    for options in [*SHARED, *(OF_CHATS if ask is in_chats else OF_COMPLETIONS)]:
        for client in both:
            ask(client, **options)
        over_http, over_grpc = asked(backend)
        assert over_http == over_grpc, options
        assert over_http != plain, options


@ROUTES
def test_what_is_the_default_changes_nothing(both: Any, backend: ScriptedBackend, ask: Any) -> None:
    for client in both:
        for options in [{}, *WITHOUT_EFFECT, *(OF_NO_TEMPLATE if ask is in_chats else ())]:
            ask(client, **options)
    first, *others = asked(backend)
    assert others == [first] * len(others)


@ROUTES
def test_what_makes_no_sense_is_refused_over_both(both: Any, backend: ScriptedBackend, ask: Any) -> None:
    for client in both:
        for options in [*WRONG, *(WRONG_IN_CHATS if ask is in_chats else [{"tools": TOOLS}, {"logprobs": 21}])]:
            with pytest.raises(InvalidRequest) as caught:
                ask(client, **options)
            assert caught.type is InvalidRequest, options
    assert not backend.requests


def test_options_of_the_text_are_the_same_over_both(both: Any, backend: ScriptedBackend) -> None:
    backend.script = lambda request: runs_of(request, [70, tiny_tokenizer().bos_token_id, 71], [72])
    texts = {
        "def": {},
        "d<|bos|>ef": {"skip_special_tokens": False},
        "grüßedef": {"echo": True},
        "d": {"stop": "e"},
        "de": {"stop": ["e", "f"], "include_stop_str_in_output": True},
    }
    for text, options in texts.items():
        assert [in_completions(client, **options).text for client in both] == [text, text]


class Marking:
    """Writes a special token before every prompt, as the tokenizers of many checkpoints do."""

    def __getattr__(self, name: str) -> Any:
        return getattr(tiny_tokenizer(), name)

    def encode(self, text: str, add_special_tokens: bool, **options: Any) -> list[int]:
        return [0] * add_special_tokens + tiny_tokenizer().encode(text)


def test_special_tokens_around_a_prompt_are_the_same_over_both(both: Any, backend: ScriptedBackend) -> None:
    marking: Any = Marking()
    backend.cards = (replace(backend.cards[0], tokenizer=marking),)
    for options, num_special in (({}, 1), ({"add_special_tokens": True}, 1), ({"add_special_tokens": False}, 0)):
        for client in both:
            in_completions(client, **options)
        over_http, over_grpc = asked(backend)
        assert over_http == over_grpc
        assert over_http.prompt_ids == (0,) * num_special + tuple(tiny_tokenizer().encode("grüße"))


def test_messages_of_all_roles_make_the_same_prompt_over_both(both: Any, backend: ScriptedBackend) -> None:
    dumped = [{"refusal": None, "annotations": [], **message} for message in CONVERSATION]
    spelled = [*CONVERSATION[:2], {"role": "tool", "tool_call_id": "b2", "content": "noon", "name": "time"}]
    for messages in (CONVERSATION, dumped, spelled):
        for client in both:
            in_chats(client, messages=messages)
        over_http, over_grpc = asked(backend)
        assert over_http == over_grpc


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "rain"},
        {"role": "user", "content": "a", "tool_call_id": "b2"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
        {"role": "user", "content": 5},
        {"role": "user", "content": "a", "no_such_field": 1},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"id": "a"}]},
        {"content": "a"},
        "a",
    ],
    ids=str,
)
def test_a_message_that_makes_no_sense_is_refused_over_both(both: Any, message: Any) -> None:
    for client in both:
        with pytest.raises(InvalidRequest):
            in_chats(client, messages=[message])


def test_no_field_of_the_messages_is_left_out() -> None:
    one, chat = (set(kind.DESCRIPTOR.fields_by_name) for kind in (pb.GenerateRequest, pb.ChatRequest))
    grammars = {field.name for field in pb.GenerateRequest.DESCRIPTOR.oneofs_by_name["grammar"].fields}
    one -= grammars | {"model", "text", "token_ids", "n"}
    assert one == CompletionOptions.__annotations__.keys() - {"response_format", "structured_outputs", "timeout_s"}
    chat -= {"messages", "options", "tool_choice_function"}
    assert chat | {"top_logprobs"} == ChatOptions.__annotations__.keys() - CompletionOptions.__annotations__.keys()


def test_no_field_of_the_bodies_is_left_out_but_what_grpc_has_no_place_for() -> None:
    own = {"model", "stream", "stream_options", "return_token_ids", "max_completion_tokens"}
    for body, options, others in (
        (CompletionRequest, CompletionOptions, {"prompt", "n"}),
        (ChatCompletionRequest, ChatOptions, {"messages", "n", "add_special_tokens"}),  # the template writes them
    ):
        fields = body.model_fields.keys() - own - others
        assert fields == options.__annotations__.keys() - {"timeout_s"}
