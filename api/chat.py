"""Turns chat messages into token ids with the tokenizer's chat template, in a thread beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from api.backend import ModelCard
from api.control import END, START
from api.openai import Message
from api.prompts import check_size, token_ids
from protocol.errors import InvalidRequest

Turns = list[dict[str, str]]


async def chat_prompt(
    card: ModelCard, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> tuple[int, ...]:
    """The token ids of the prompt. Raises PromptTooLong, or InvalidRequest if the template is missing or fails.

    add_generation_prompt: whether it ends with the opening of the model's turn.
    """
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", "messages"
        )
    check_size(card, [message.text for message in messages], "messages")
    return await asyncio.to_thread(_encode_messages, card, messages, add_generation_prompt)


def _encode_messages(card: ModelCard, messages: Sequence[Message], add_generation_prompt: bool) -> tuple[int, ...]:
    mark = card.control.mark
    turns = [{"role": one.role, "content": mark(one.text, of_model=one.role == "assistant")} for one in messages]
    try:
        text = render(card.tokenizer, turns, add_generation_prompt=add_generation_prompt)
    except InvalidRequest as error:
        complaint = str(error).replace(START, "").replace(END, "")
        raise InvalidRequest(
            f"the chat template of {card.id} refuses these messages: {complaint}", "messages"
        ) from None
    if START in text or END in text:
        return card.control.encode(text)
    return token_ids(card, text, add_special_tokens=False)


def render(tokenizer: PreTrainedTokenizerBase, turns: Turns, *, add_generation_prompt: bool = True) -> str:
    """The text of these turns; of the prompt that asks for an answer to them, unless add_generation_prompt is false.

    Raises InvalidRequest with the template's error. A template is code from the checkpoint, so it may raise anything.
    """
    try:
        if "developer" not in tokenizer.get_chat_template():
            turns = [turn | {"role": turn["role"].replace("developer", "system")} for turn in turns]
        rendered: Any = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:
        raise InvalidRequest(f"{type(error).__name__}: {str(error)[:300]}", "messages") from None
    return str(rendered)


def opens_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens the model's turn behind a message, as those of chat models do."""
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": "hello"}]
    return render(tokenizer, turns) != tokenizer.apply_chat_template(turns, tokenize=False)
