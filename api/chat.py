"""Turns chat messages into token ids with the tokenizer's chat template, in a thread beside the event loop."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from api.backend import ModelCard
from api.control import CUT, END, START
from api.openai import ChatCompletionRequest, Message
from api.prompts import check_size, token_ids
from protocol.errors import InvalidRequest

Turns = list[dict[str, Any]]
KWARGS = "chat_template_kwargs"


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template is told beside the messages.

    opens: whether the prompt opens the model's turn. continues: whether it ends within the last message. variables: the
    template's own, such as enable_thinking.
    """

    opens: bool = True
    continues: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


USUAL = Rendering()


def rendering(body: ChatCompletionRequest) -> Rendering:
    """What a request asks of the template."""
    opens = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
    return Rendering(opens, body.continue_final_message, body.chat_template_kwargs)


async def chat_prompt(card: ModelCard, messages: Sequence[Message], how: Rendering = USUAL) -> tuple[int, ...]:
    """The token ids of the prompt. Raises PromptTooLong, or InvalidRequest if the template is missing or fails."""
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", "messages"
        )
    check_size(card, [message.text for message in messages], "messages")
    check_size(card, [json.dumps(how.variables, ensure_ascii=False)], KWARGS)
    _check_variables(card, how.variables)
    return await asyncio.to_thread(_encode_messages, card, messages, how)


def _check_variables(card: ModelCard, variables: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a variable that the API sets itself, or that the template does not read."""
    if not variables:
        return
    tokenizer = card.tokenizer
    ours = {"messages", "conversations", *inspect.signature(tokenizer.apply_chat_template).parameters}
    words = set(re.findall(r"\w+", tokenizer.get_chat_template()))
    for name in variables:
        if name in ours or name in tokenizer.special_tokens_map:
            raise InvalidRequest(f"{KWARGS} cannot set {name!r}; leave it out", KWARGS)
        if name not in words:
            raise InvalidRequest(
                f"{KWARGS}: the chat template of {card.id} does not read {name[:100]!r}; leave it out", KWARGS
            )


def _encode_messages(card: ModelCard, messages: Sequence[Message], how: Rendering) -> tuple[int, ...]:
    mark = card.control.mark
    turns = [{"role": one.role, "content": mark(one.text, of_model=one.role == "assistant")} for one in messages]
    try:
        text = render(card.tokenizer, turns, replace(how, variables=card.control.mark_all(how.variables)))
    except InvalidRequest as error:
        complaint = str(error).replace(START, "").replace(END, "")
        raise InvalidRequest(
            f"the chat template of {card.id} refuses these messages: {complaint}", "messages"
        ) from None
    if START in text or END in text:
        return card.control.encode(text)
    return token_ids(card, text, add_special_tokens=False)


def render(tokenizer: PreTrainedTokenizerBase, turns: Turns, how: Rendering = USUAL) -> str:
    """The text of the prompt that asks for an answer to these turns.

    Raises InvalidRequest with the template's error. A template is code from the checkpoint, so it may raise anything.
    """
    if how.continues:
        last = turns[-1]
        turns = [*turns[:-1], last | {"content": f"{last['content']}{CUT} "}]
    try:
        if "developer" not in tokenizer.get_chat_template():
            turns = [turn | {"role": turn["role"].replace("developer", "system")} for turn in turns]
        rendered: Any = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=how.opens, **how.variables
        )
    except Exception as error:
        raise InvalidRequest(f"{type(error).__name__}: {str(error)[:300]}", "messages") from None
    return _up_to_cut(str(rendered)) if how.continues else str(rendered)


def _up_to_cut(rendered: str) -> str:
    """As transformers does, without the spaces that a template trims from the end of a message."""
    text, cut, rest = rendered.rpartition(CUT)
    if not cut:
        raise InvalidRequest("it does not write the last message as it is, so it cannot be continued", "messages")
    return text if rest.startswith(" ") else text.rstrip()


def opens_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens the model's turn behind a message, as those of chat models do."""
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": "hello"}]
    return render(tokenizer, turns) != tokenizer.apply_chat_template(turns, tokenize=False)
