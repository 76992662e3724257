"""Turns chat messages into token ids with the tokenizer's chat template, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from api.backend import ModelCard
from api.control import MARK
from api.openai import Message
from api.prompts import MAX_BODY_BYTES, check_size, token_ids
from protocol.errors import InvalidRequest

Turns = list[dict[str, str]]
MOST_BYTES = 4 * MAX_BODY_BYTES  # of a prompt: templates add little to what they are given


async def chat_prompt(card: ModelCard, messages: Sequence[Message]) -> tuple[int, ...]:
    """The token ids of the prompt. Raises PromptTooLong, or InvalidRequest if the template is missing or fails."""
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", "messages"
        )
    check_size(card, [message.text for message in messages], "messages")
    arguments = await asyncio.to_thread(_marked_arguments, card, messages)
    most_bytes = min(card.max_model_len * card.max_token_bytes, MOST_BYTES)
    try:
        text = await card.renderer.render(arguments, most_bytes)
    except InvalidRequest as error:
        complaint = str(error).replace(MARK, "")
        message = f"the chat template of {card.id} refuses these messages: {complaint}"
        raise type(error)(message, "messages") from None
    return await asyncio.to_thread(_encode, card, text)


def _marked_arguments(card: ModelCard, messages: Sequence[Message]) -> dict[str, Any]:
    mark = card.control.mark
    turns = [{"role": one.role, "content": mark(one.text, of_model=one.role == "assistant")} for one in messages]
    return template_arguments(card.tokenizer, turns)


def _encode(card: ModelCard, rendered: str) -> tuple[int, ...]:
    text = card.control.plain(rendered)
    if text is not None:
        ids = token_ids(card, text, add_special_tokens=False)
        if card.control.are_of_template(ids, text):
            return ids
    return card.control.encode(rendered)


def template_arguments(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> dict[str, Any]:
    """What transformers' render_jinja_template takes for the prompt that asks for an answer to these turns."""
    template = tokenizer.get_chat_template()
    if "developer" not in template:
        turns = [turn | {"role": turn["role"].replace("developer", "system")} for turn in turns]
    given = {"conversations": [turns], "chat_template": template, "add_generation_prompt": True}
    return {**tokenizer.special_tokens_map, **given}


def render(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    """The text of that prompt, rendered here and without limits: what api/rendering.py does in a process of its own.

    Raises InvalidRequest with the template's error. A template is code from the checkpoint, so it may raise anything.
    """
    try:
        texts: Any = render_jinja_template(**template_arguments(tokenizer, turns))[0]
    except Exception as error:
        raise InvalidRequest(f"{type(error).__name__}: {str(error)[:300]}", "messages") from None
    return str(texts[0])


def opens_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens the model's turn behind a message, as those of chat models do."""
    if not tokenizer.chat_template:
        return False
    turns = [{"role": "user", "content": "hello"}]
    return render(tokenizer, turns) != tokenizer.apply_chat_template(turns, tokenize=False)
