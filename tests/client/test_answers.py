"""What an answer tells beside its text: calls of functions, logprobs and sources, alike over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from api.generation import PIECE
from api.text import decode
from draftpool import Completion, ToolCall, completion_of
from protocol.logit_rules import TokenLogprobs
from protocol.request import FinishReason, TokenRun
from targets.engine import Engine
from tests.api.api_twins import (
    EngineBackend,
    ScriptedBackend,
    card,
    make_drafting_engine,
    runs_of,
    tiny_tokenizer,
)
from tests.api.test_structured import SCHEMA
from tests.api.tool_cases import FORMS, HERMES, QUESTION, TEXTS, TOOLS, backend_of
from tests.client.conftest import Connect, Serve
from tests.client.servers import CALLING_TEMPLATE, Servers

PROMPT = "grüße aus"
BOTH = ("whole", "stream")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine, _ = make_drafting_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


@pytest.fixture
def both(servers: Servers, connect_both: Connect) -> Any:
    return connect_both(servers)


def in_completions(client: Any, how: str, prompt: Any = PROMPT, **options: Any) -> Completion:
    if how == "stream":
        return completion_of(list(client.stream("tiny", prompt, **options)))
    made: Completion = client.complete("tiny", prompt, **options)
    return made


def in_chats(client: Any, how: str, messages: Any = QUESTION, **options: Any) -> Completion:
    if how == "stream":
        return completion_of(list(client.stream_chat("tiny", messages, **options)))
    made: Completion = client.chat("tiny", messages, **options)
    return made


def plain(made: Completion) -> Completion:
    """Without the ids, which are drawn."""
    return replace(made, request_id="", tool_calls=tuple(replace(call, id="") for call in made.tool_calls))


def alike(made: list[Completion]) -> Completion:
    assert [plain(each) for each in made] == [plain(made[0])] * len(made)
    return made[0]


@FORMS
@pytest.mark.parametrize("before", ["", "I look. "])
def test_calls_have_name_and_arguments_whole_and_in_a_stream(
    serve: Serve, connect_both: Connect, template: str, before: str
) -> None:
    with serve(backend_of(template, before + TEXTS[template])) as servers:
        both = connect_both(servers)
        answers = [in_chats(client, how, tools=TOOLS, seed=5) for client in both for how in BOTH]
    made = alike(answers)
    assert (made.text, made.finish_reason) == (before.rstrip(), "tool_calls")
    assert [(call.name, call.parsed()) for call in made.tool_calls] == [("weather", {"city": "Köln 🙂"}), ("time", {})]
    ids = [call.id for each in answers for call in each.tool_calls]
    assert len(set(ids)) == len(ids)
    assert all(ids)


def test_a_call_comes_piece_by_piece(serve: Serve, connect_both: Connect) -> None:
    with serve(backend_of(HERMES, TEXTS[HERMES])) as servers:
        streams = [list(client.stream_chat("tiny", QUESTION, tools=TOOLS, seed=5)) for client in connect_both(servers)]
    told = [[[replace(part, id=None) for part in delta.tool_calls] for delta in stream] for stream in streams]
    assert told[0] == told[1]
    parts = [part for delta in streams[0] for part in delta.tool_calls]
    assert len(parts) > 4
    assert [(part.index, part.name) for part in parts if part.id] == [(0, "weather"), (1, "time")]
    assert {part.name for part in parts if not part.id} == {None}


def test_a_call_that_is_cut_off_is_told_as_far_as_it_came(serve: Serve, connect_both: Connect) -> None:
    ids = tiny_tokenizer().encode(TEXTS[HERMES][:50])
    backend = backend_of(HERMES, "x")
    backend.script = lambda request: runs_of(request, ids[:9], ids[9:], reason=FinishReason.LENGTH)
    with serve(backend) as servers:
        both = connect_both(servers)
        made = alike([in_chats(client, how, tools=TOOLS, seed=5) for client in both for how in BOTH])
    assert made.finish_reason == "length"
    (call,) = made.tool_calls
    assert call.arguments == '{"city":'[: len(call.arguments)] != ""
    with pytest.raises(ValueError, match=r"."):
        call.parsed()


def test_a_chat_goes_on_behind_the_results_of_its_calls(serve: Serve, connect_both: Connect) -> None:
    backend = backend_of(HERMES, TEXTS[HERMES])
    with serve(backend) as servers:
        both = connect_both(servers)
        made = in_chats(both[0], "whole", tools=TOOLS)
        results = [call.result(f"{call.name} is fine") for call in made.tool_calls]
        for client in both:
            in_chats(client, "whole", [*QUESTION, made.message(), *results], tools=TOOLS, seed=5)
    prompts = [str(tiny_tokenizer().decode(request.prompt_ids)) for request in backend.requests[1:]]
    assert prompts[0] == prompts[1]
    for call in made.tool_calls:
        assert f"({call.name} {call.id}): {call.name} is fine" in prompts[0]
    assert "Köln 🙂" in prompts[0]


def test_a_function_that_has_to_be_called_is_called_with_arguments_of_its_schema(
    serve: Serve, connect_both: Connect, engine: Engine
) -> None:
    shaped: Any = {"properties": {"city": {"enum": ["Köln", "Bonn"]}}, "required": ["city"], "type": "object"}
    tools = [{"type": "function", "function": {"name": name, "parameters": shaped}} for name in ("weather", "time")]
    named = {"type": "function", "function": {"name": "weather"}}
    asked: Any = {"tools": tools, "tool_choice": named, "parallel_tool_calls": False, "seed": 2}
    tokenizer = tiny_tokenizer()
    asked["logit_bias"] = {token: -100 for token in range(len(tokenizer)) if tokenizer.decode([token]).isspace()}
    with serve(EngineBackend(engine, card(max_model_len=engine.max_length, chat_template=CALLING_TEMPLATE))) as servers:
        both = connect_both(servers)
        made = alike([in_chats(client, how, **asked) for client in both for how in BOTH])
    assert made.finish_reason == "tool_calls"
    (call,) = made.tool_calls
    assert call.name == "weather"
    assert call.parsed() in ({"city": "Köln"}, {"city": "Bonn"})


@pytest.mark.parametrize("ask", [in_completions, in_chats])
def test_a_schema_holds_for_the_text(both: Any, ask: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    made = alike([ask(client, how, response_format=form, seed=3, max_tokens=60) for client in both for how in BOTH])
    assert made.text.lstrip().startswith("{")
    chosen = {"structured_outputs": {"choice": ["yes", "no"]}, "seed": 3}
    assert alike([ask(client, how, **chosen) for client in both for how in BOTH]).text in ("yes", "no")


def test_logprobs_are_of_each_token_and_of_the_most_probable_ones(both: Any) -> None:
    shared: dict[str, Any] = {"seed": 5, "max_tokens": 40}
    answers = [
        alike([in_completions(client, how, logprobs=3, **shared) for client in both for how in BOTH]),
        alike([in_chats(client, how, logprobs=True, top_logprobs=3, **shared) for client in both for how in BOTH]),
    ]
    for made in answers:
        assert len(made.logprobs) == len(made.token_ids) > 8
        spelled = b"".join(told.chosen.spelling for told in made.logprobs if not told.chosen.text.startswith("<|"))
        assert spelled.decode("utf-8", "replace") == made.text == decode(tiny_tokenizer(), list(made.token_ids))
        assert any("\\x" in told.chosen.text for told in made.logprobs), "no token is a part of a character"
        for told in made.logprobs:
            assert len(told.top) == 3
            assert all(one.logprob >= other.logprob for one, other in pairwise(told.top))
            assert told.chosen in told.top or told.chosen.logprob <= told.top[-1].logprob
        assert len({told.chosen in told.top for told in made.logprobs}) == 2, "the picked one is not always among them"


def test_with_an_echo_they_are_of_the_prompt_too_behind_its_first_token(both: Any) -> None:
    asked: dict[str, Any] = {"seed": 5, "max_tokens": 12, "logprobs": 2}
    bare = alike([in_completions(client, how, **asked) for client in both for how in BOTH])
    made = alike([in_completions(client, how, echo=True, **asked) for client in both for how in BOTH])
    assert (made.logprobs, made.token_ids) == (bare.logprobs, bare.token_ids)
    assert made.text == PROMPT + bare.text
    assert bare.prompt_logprobs == ()
    assert len(made.prompt_logprobs) == made.usage.prompt_tokens - 1 > 1
    assert all(len(told.top) == 2 for told in made.prompt_logprobs)
    long: Any = {"prompt": [*tiny_tokenizer().encode(PROMPT)] * 60, "echo": True, **asked}
    made = alike([in_completions(client, how, **long) for client in both for how in BOTH])
    assert len(made.prompt_logprobs) == made.usage.prompt_tokens - 1 > 2 * PIECE, "in several messages"


@pytest.mark.parametrize("ask", [in_completions, in_chats])
def test_without_most_probable_ones_only_the_chosen_token_is_told(both: Any, ask: Any) -> None:
    asked: Any = {"seed": 5, "max_tokens": 12, "logprobs": 0 if ask is in_completions else True}
    made = alike([ask(client, how, **asked) for client in both for how in BOTH])
    assert [told.top for told in made.logprobs] == [()] * len(made.token_ids)
    told_not = alike([ask(client, how, seed=5, max_tokens=12) for client in both for how in BOTH])
    assert (told_not.logprobs, told_not.token_sources, told_not.tool_calls) == ((), (), ())


def test_what_is_impossible_has_the_lowest_logprob_of_openais_api(serve: Serve, connect_both: Connect) -> None:
    def script(request: Any) -> list[TokenRun]:
        told = TokenLogprobs(float("-inf"), ((70, -0.5),))
        return [replace(run, logprobs=(told,)) for run in runs_of(request, (71,))]

    with serve(ScriptedBackend(script)) as servers:
        made = alike(
            [in_completions(client, how, logprobs=1, seed=5) for client in connect_both(servers) for how in BOTH]
        )
    assert made.logprobs[0].chosen.logprob == -9999.0


def test_names_that_look_like_bytes_are_read_as_what_they_spell(serve: Serve, connect_both: Connect) -> None:
    """The names of whole tokens are texts, and `bytes:` with escapes is a part of a character."""
    ids = tiny_tokenizer().encode("🙂 \\xf0 bytes: ü", add_special_tokens=False)

    def script(request: Any) -> list[TokenRun]:
        told = tuple(TokenLogprobs(-1.0, ((token, -1.0),)) for token in ids)
        return [replace(run, logprobs=told) for run in runs_of(request, ids)]

    with serve(ScriptedBackend(script)) as servers:
        made = alike(
            [in_completions(client, how, logprobs=1, seed=5) for client in connect_both(servers) for how in BOTH]
        )
    assert b"".join(told.chosen.spelling for told in made.logprobs).decode() == "🙂 \\xf0 bytes: ü"
    assert all(told.top == (told.chosen,) for told in made.logprobs)


@pytest.mark.parametrize("ask", [in_completions, in_chats])
def test_sources_tell_which_tokens_were_drafted(both: Any, ask: Any) -> None:
    asked: Any = {"seed": 5, "max_tokens": 40, "return_token_sources": True}
    made = alike([ask(client, how, **asked) for client in both for how in BOTH])
    assert len(made.token_sources) == len(made.token_ids)
    assert set(made.token_sources) == {0, 1}
    assert made.acceptance is not None


def test_no_repr_has_a_callers_text() -> None:
    call = ToolCall("a1", "weather", '{"city": "secret"}')
    assert "secret" not in repr(call)
