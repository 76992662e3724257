"""Checks a target's tokenizer and chat template, for `draftpool check`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from api.chat import render
from model.config import read_config
from model.tokenizer import end_token_warning, load_tokenizer, tokens_beyond
from protocol.errors import ConfigError, InvalidRequest


def check_text(name: str, directory: Path) -> Iterator[str]:
    """Yields warnings. Raises ConfigError for a tokenizer or a template that cannot work."""
    tokenizer, vocab_size = load_tokenizer(directory), read_config(directory).vocab_size
    rendered = render_sample(name, tokenizer)
    if warning := end_token_warning(directory, tokenizer):
        yield f"target {name}: {warning}"
    if beyond := tokens_beyond(vocab_size, tokenizer):
        yield (
            f"the tokenizer of target {name} has {len(beyond)} tokens beyond the {vocab_size} of the embedding "
            f"({', '.join(beyond[:3])}{', ...' if beyond[3:] else ''}); requests with them are refused"
        )
    if written := [token for token in beyond if token in rendered]:
        yield f"the chat template of target {name} writes {written[0]}, so every chat request is refused"


def render_sample(name: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The rendered prompt of a chat with one message; empty without a template."""
    if not tokenizer.chat_template:
        return ""
    try:
        return render(tokenizer, [{"role": "user", "content": "hello"}])
    except InvalidRequest as error:
        raise ConfigError(f"the chat template of target {name} does not work: {error}; fix it, or remove it") from None
