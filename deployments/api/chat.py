"""Messages to token ids, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError

from deployments.api.backend import ModelCard
from deployments.api.generation import check_text, encode
from deployments.api.openai import Message
from protocol.errors import InvalidRequest


def chat_prompt(card: ModelCard, messages: Sequence[Message]) -> tuple[int, ...]:
    """Raises InvalidRequest when there is no template, or when the template refuses the messages."""
    if not card.tokenizer.chat_template:
        raise InvalidRequest(
            f"model {card.id} has no chat template; use /v1/completions, or add one to its tokenizer", "messages"
        )
    turns = [{"role": message.role, "content": message.text} for message in messages]
    for turn in turns:
        check_text(turn["content"], "messages")
    try:
        text = card.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InvalidRequest(f"the chat template of {card.id} refuses these messages: {error}", "messages") from None
    return encode(card, str(text), "messages", add_special_tokens=False)
