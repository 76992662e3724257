"""Loads a checkpoint's tokenizer from tokenizer.json, with its special tokens and chat template.

The class that tokenizer_config.json names is ignored, because several classes change the tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from model.ends import configured_eos, generation_eos
from protocol.errors import ConfigError


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint; several threads may use it at once. Raises ConfigError.

    It is used once here, because the first use sets its options.
    """
    if not (directory / "tokenizer.json").exists():
        raise ConfigError(f"{directory} holds no tokenizer.json; save one with tokenizer.save_pretrained(directory)")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        tokenizer.encode("")
    except Exception as error:
        raise ConfigError(f"the tokenizer of {directory} cannot be loaded: {error}") from error
    return tokenizer


def end_tokens(configured: tuple[int, ...], tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The ids that end an answer: those of the model's config files and the tokenizer's EOS."""
    eos = tokenizer.eos_token_id
    return configured if eos is None or eos in configured else (*configured, eos)


def end_token_warning(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """A warning if a checkpoint's files disagree, so that answers end at more tokens than in transformers; or None."""
    ends, expected = end_tokens(configured_eos(directory), tokenizer), generation_eos(directory)
    if set(ends) == set(expected):
        return None
    named = f"{_join_ids(expected)} by its configs, {_join_ids(end_tokens((), tokenizer))} by its tokenizer"
    return f"{directory} differs in which token ends an answer: {named}; here each of {_join_ids(ends)} does"


def tokens_beyond(vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Tokens without an embedding in the model, in the order of their ids."""
    beyond = [(index, token) for token, index in tokenizer.get_vocab().items() if index >= vocab_size]
    return [token for _, token in sorted(beyond)]


def _join_ids(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids)) or "nothing"
