"""Messages to token ids, by the tokenizer's own chat template and beside the event loop, as any other prompt."""

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


async def chat_prompt(card: ModelCard, messages: Sequence[Message]) -> tuple[int, ...]:
    """Raises PromptTooLong, or InvalidRequest when there is no template or it refuses the messages."""
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", "messages"
        )
    turns = [{"role": message.role, "content": message.text} for message in messages]
    check_size(card, [turn["content"] for turn in turns], "messages")
    return await asyncio.to_thread(_encoded, card, turns)


def _encoded(card: ModelCard, turns: Turns) -> tuple[int, ...]:
    marked = [_marked(card, turn) for turn in turns]
    try:
        text = render(card.tokenizer, marked)
    except InvalidRequest as error:
        complaint = str(error).replace(START, "").replace(END, "")
        raise InvalidRequest(
            f"the chat template of {card.id} refuses these messages: {complaint}", "messages"
        ) from None
    if START in text or END in text:
        return card.control.encode(text)
    return token_ids(card, text, add_special_tokens=False)


def _marked(card: ModelCard, turn: dict[str, str]) -> dict[str, str]:
    return turn | {"content": card.control.mark(turn["content"], of_model=turn["role"] == "assistant")}


def render(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    """The prompt for an answer to these turns. Raises InvalidRequest with what the template complains of.

    A template is a program of the checkpoint's: it may raise anything.
    """
    try:
        known = "developer" in tokenizer.get_chat_template()
        sent: Any = [turn | {"role": "system"} if turn["role"] == "developer" and not known else turn for turn in turns]
        return str(tokenizer.apply_chat_template(sent, tokenize=False, add_generation_prompt=True))
    except Exception as error:
        raise InvalidRequest(f"{type(error).__name__}: {str(error)[:300]}", "messages") from None
