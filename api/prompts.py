"""Turns a caller's prompts into token ids in a thread beside the event loop, after refusing text that cannot fit."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from api.backend import ModelCard
from api.openai import CompletionRequest
from protocol.errors import InvalidRequest, PromptTooLong

MAX_BODY_BYTES = 4 << 20  # more than any prompt that fits a context, less than Ray Serve's own limit


def too_large(size: str, limit: int) -> str:
    """The error message for a request of `size` bytes."""
    return f"the request has {size} bytes, and this server takes at most {limit}; send fewer or shorter prompts"


async def prompt_ids(card: ModelCard, body: CompletionRequest) -> list[tuple[int, ...]]:
    """The token ids of each prompt. Raises InvalidRequest or PromptTooLong."""
    return [
        await encode(card, prompt, add_special_tokens=body.add_special_tokens)
        if isinstance(prompt, str)
        else tuple(prompt)
        for prompt in body.prompts()
    ]


async def encode(card: ModelCard, prompt: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
    """The token ids of a prompt. Raises InvalidRequest or PromptTooLong."""
    check_size(card, [prompt], "prompt")
    return await card.beside(partial(token_ids, card, prompt, add_special_tokens=add_special_tokens))


def token_ids(card: ModelCard, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    """The token ids of a text. Turns off the tokenizer's warning about long texts; the API checks the length itself."""
    return tuple(card.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))


def check_size(card: ModelCard, texts: Iterable[str], param: str) -> None:
    """Raises PromptTooLong for more bytes than the context's tokens can hold, InvalidRequest for invalid text."""
    num_bytes = sum(check_text(text, param) for text in texts)
    if num_bytes > card.max_model_len * card.max_token_bytes:
        held = f"the {card.max_model_len} tokens of {card.id} can hold"
        raise PromptTooLong(f"{param} has {num_bytes} bytes, more than {held}; shorten it", param)


def check_text(text: str, param: str) -> int:
    """The length of the text in bytes. Raises InvalidRequest for lone surrogates."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{param} holds half of a surrogate pair, which is not text; send whole characters", param
        ) from None
