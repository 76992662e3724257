"""Turns chat messages into token ids with the tokenizer's chat template, beside the event loop."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from api.backend import ModelCard
from api.call_parsers import parser_of
from api.calls import Calling
from api.control import CUT, MARK, ControlTokens
from api.openai import ChatCompletionRequest, Message
from api.prompts import MAX_BODY_BYTES, check_size, token_ids
from protocol.errors import InvalidRequest

Turns = list[dict[str, Any]]
KWARGS = "chat_template_kwargs"
MOST_BYTES = 4 * MAX_BODY_BYTES  # of a prompt: templates add little to what they are given


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template is told beside the messages. tools: in OpenAI's shape. place: the caller's name for the messages.

    opens: whether the prompt opens the model's turn. continues: whether it ends within the last message. variables: the
    template's own, such as enable_thinking.
    """

    opens: bool = True
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[dict[str, Any]] = ()
    place: str = "messages"


USUAL = Rendering()


def rendering(body: ChatCompletionRequest) -> Rendering:
    """What a request asks of the template."""
    opens = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
    tools = [tool.definition() for tool in body.offered]
    return Rendering(opens, body.continue_final_message, body.chat_template_kwargs, tools, body.prompt_field)


def calling(card: ModelCard, body: ChatCompletionRequest) -> Calling | None:
    """How answers may call the offered tools, by what the chat template teaches; None without tools.

    Raises InvalidRequest if the template has no tools, or teaches calls that no parser reads.
    """
    if not body.offered:
        return None
    template = _template(card, body.offered)
    parser = parser_of(template)
    if "tools" not in _words(template) or parser is None:
        lacks = "has no tools" if "tools" not in _words(template) else "teaches calls in a form that is not read here"
        raise InvalidRequest(
            f'the chat template of {card.id} {lacks}; leave tools out, send tool_choice "none", or ask another model',
            "tools",
        )
    names = frozenset(tool.function.name for tool in body.offered)
    return Calling(parser, names, None if body.parallel_tool_calls else 1)


def _template(card: ModelCard, tools: Sequence[Any] = ()) -> str:
    return str(card.tokenizer.get_chat_template(tools=list(tools) or None))


def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", template))


async def chat_prompt(card: ModelCard, messages: Sequence[Message], how: Rendering = USUAL) -> tuple[int, ...]:
    """The token ids of the prompt. Raises PromptTooLong, or InvalidRequest if the template is missing or fails."""
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", how.place
        )
    calls = [call.model_dump() for message in messages for call in message.tool_calls]
    check_size(card, [*(message.text for message in messages), *map(_json, calls)], how.place)
    check_size(card, [_json(how.variables)], KWARGS)
    check_size(card, map(_json, how.tools), "tools")
    _check_variables(card, how)
    if calls and "tool_calls" not in _words(_template(card, how.tools)):
        raise InvalidRequest(f"the chat template of {card.id} writes no tool_calls; leave them out", how.place)
    arguments = await card.beside(partial(_marked_arguments, card, messages, how))
    most_bytes = min(card.max_model_len * card.max_token_bytes, MOST_BYTES)
    try:
        text = await card.renderer.render(arguments, most_bytes)
        text = _up_to_cut(text) if how.continues else text
    except InvalidRequest as error:
        complaint = str(error).replace(MARK, "")
        message = f"the chat template of {card.id} refuses these messages: {complaint}"
        raise type(error)(message, how.place) from None
    return await card.beside(partial(_encode, card, text))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check_variables(card: ModelCard, how: Rendering) -> None:
    """Raises InvalidRequest for a variable that the API sets itself, or that the template does not read."""
    if not how.variables:
        return
    tokenizer = card.tokenizer
    ours = {"messages", "conversations", *inspect.signature(tokenizer.apply_chat_template).parameters}
    words = _words(_template(card, how.tools))
    for name in how.variables:
        if name in ours or name in tokenizer.special_tokens_map:
            raise InvalidRequest(f"{KWARGS} cannot set {name!r}; leave it out", KWARGS)
        if name not in words:
            raise InvalidRequest(
                f"{KWARGS}: the chat template of {card.id} does not read {name[:100]!r}; leave it out", KWARGS
            )


def _marked_arguments(card: ModelCard, messages: Sequence[Message], how: Rendering) -> dict[str, Any]:
    control = card.control
    marked = replace(how, tools=control.mark_all(list(how.tools)), variables=control.mark_all(dict(how.variables)))
    return template_arguments(card.tokenizer, _turns(control, messages), marked)


def _encode(card: ModelCard, rendered: str) -> tuple[int, ...]:
    text = card.control.plain(rendered)
    if text is not None:
        ids = token_ids(card, text, add_special_tokens=False)
        if card.control.are_of_template(ids, text):
            return ids
    return card.control.encode(rendered)


def _turns(control: ControlTokens, messages: Sequence[Message]) -> Turns:
    """The messages as templates take them. A result of a function has the name of the one that was called."""
    turns: Turns = []
    called: dict[str, str] = {}
    for message in messages:
        content = control.mark(message.text, of_model=message.role == "assistant")
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.tool_calls:
            turn["tool_calls"] = control.mark_all([call.model_dump() for call in message.tool_calls])
            called |= {call.id: call.function.name for call in message.tool_calls}
        if message.tool_call_id is not None:
            turn["tool_call_id"] = control.mark(message.tool_call_id)
            name = message.name or called.get(message.tool_call_id)
            turn |= {"name": control.mark(name)} if name else {}
        turns.append(turn)
    return turns


def template_arguments(tokenizer: PreTrainedTokenizerBase, turns: Turns, how: Rendering = USUAL) -> dict[str, Any]:
    """What transformers' render_jinja_template takes for the prompt that asks for an answer to these turns."""
    if how.continues:
        last = turns[-1]
        turns = [*turns[:-1], last | {"content": f"{last['content']}{CUT} "}]
    template = tokenizer.get_chat_template(tools=list(how.tools) or None)
    if "developer" not in template:
        turns = [turn | {"role": turn["role"].replace("developer", "system")} for turn in turns]
    given = {"conversations": [turns], "chat_template": template, "add_generation_prompt": how.opens}
    return {**tokenizer.special_tokens_map, **how.variables, **given, "tools": list(how.tools) or None}


def render(tokenizer: PreTrainedTokenizerBase, turns: Turns, how: Rendering = USUAL) -> str:
    """The text of that prompt, rendered here and without limits: what api/rendering.py does in a process of its own.

    Raises InvalidRequest with the template's error. A template is code from the checkpoint, so it may raise anything.
    """
    try:
        texts: Any = render_jinja_template(**template_arguments(tokenizer, turns, how))[0]
    except Exception as error:
        raise InvalidRequest(f"{type(error).__name__}: {str(error)[:300]}", how.place) from None
    return _up_to_cut(str(texts[0])) if how.continues else str(texts[0])


def _up_to_cut(rendered: str) -> str:
    """As transformers does, without the spaces that a template trims from the end of a message."""
    text, cut, rest = rendered.rpartition(CUT)
    if not cut:
        raise InvalidRequest("it does not write the last message as it is, so it cannot be continued")
    return text if rest.startswith(" ") else text.rstrip()


def opens_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens the model's turn behind a message, as those of chat models do."""
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": "hello"}]
    return render(tokenizer, turns) != tokenizer.apply_chat_template(turns, tokenize=False)
