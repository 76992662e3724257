"""Messages to token ids, by the tokenizer's own chat template and beside the event loop, as any other prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jinja2 import TemplateError

from deployments.api.backend import ModelCard
from deployments.api.openai import Message
from deployments.api.prompts import check_size, token_ids
from protocol.errors import InvalidRequest


async def chat_prompt(card: ModelCard, messages: Sequence[Message]) -> tuple[int, ...]:
    """Raises PromptTooLong, or InvalidRequest when there is no template or it refuses the messages."""
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", "messages"
        )
    turns = [{"role": message.role, "content": message.text} for message in messages]
    check_size(card, [turn["content"] for turn in turns], "messages")
    return await asyncio.to_thread(_rendered, card, turns)


def _rendered(card: ModelCard, turns: list[dict[str, str]]) -> tuple[int, ...]:
    try:
        text = card.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InvalidRequest(f"the chat template of {card.id} refuses these messages: {error}", "messages") from None
    return token_ids(card, str(text), add_special_tokens=False)
