"""What `draftpool check` says of a checkpoint's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

from model.config import read_config
from model.tokenizer import end_token_warning, load_tokenizer, tokens_beyond
from protocol.errors import ConfigError

MESSAGE = {"role": "user", "content": "Hello"}


def check_text(directory: Path) -> Iterator[str]:
    """Warnings. Raises ConfigError for what can never work."""
    tokenizer, vocab_size = load_tokenizer(directory), read_config(directory).vocab_size
    if warning := end_token_warning(directory, tokenizer):
        yield warning
    beyond = tokens_beyond(vocab_size, tokenizer)
    if beyond:
        yield (
            f"the tokenizer of {directory} has {len(beyond)} tokens beyond the {vocab_size} of the embedding "
            f"({', '.join(beyond[:3])}{', ...' if beyond[3:] else ''}); requests with them are refused"
        )
    try:
        rendered = render_once(tokenizer)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template of {directory} has a syntax error in line {error.lineno}: {error.message}; mend it"
        ) from None
    except Exception as error:
        yield f"the chat template of {directory} refuses a message of a user, so chats fail: {error}"
        return
    if written := [token for token in beyond if token in rendered]:
        yield f"the chat template of {directory} writes {written[0]}, so every chat request is refused"


def render_once(tokenizer: PreTrainedTokenizerFast) -> str:
    """A chat of one message; nothing without a template."""
    if tokenizer.chat_template is None:
        return ""
    return str(tokenizer.apply_chat_template([MESSAGE], tokenize=False, add_generation_prompt=True))
