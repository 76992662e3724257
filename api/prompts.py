"""A caller's text to token ids. What cannot fit is refused first; the rest is tokenized beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from api.backend import ModelCard
from protocol.errors import InvalidRequest, PromptTooLong


async def encode(card: ModelCard, prompt: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
    """Raises InvalidRequest or PromptTooLong."""
    check_size(card, [prompt], "prompt")
    return await asyncio.to_thread(token_ids, card, prompt, add_special_tokens=add_special_tokens)


def token_ids(card: ModelCard, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """Without the tokenizer's own warning about long texts; how long one may be is for the API to say."""
    return tuple(card.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))


def check_size(card: ModelCard, texts: Iterable[str], param: str) -> None:
    """Raises PromptTooLong for more bytes than the longest tokens could hold, InvalidRequest for what is no text."""
    num_bytes = sum(check_text(text, param) for text in texts)
    if num_bytes > card.max_model_len * card.longest_token:
        raise PromptTooLong(
            f"{param} has {num_bytes} bytes, more than the {card.max_model_len} tokens of {card.id} can hold; "
            "shorten it",
            param,
        )


def check_text(text: str, param: str) -> int:
    """Its length in bytes."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{param} holds half of a surrogate pair, which is no text; send whole characters", param
        ) from None
