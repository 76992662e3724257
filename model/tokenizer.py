"""A checkpoint's tokenizer: its tokenizer.json as it is, with the special tokens and the chat template beside it.

The class that tokenizer_config.json names is not asked: several build another tokenizer out of the same vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from model.ends import configured_eos, stops_of_generate
from protocol.errors import ConfigError


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Used once, which settles its options: later uses only read, and several threads may do that at a time.

    Raises ConfigError.
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
    """The ids that end an answer: those that the model's own files name, and the tokenizer's EOS."""
    eos = tokenizer.eos_token_id
    return configured if eos is None or eos in configured else (*configured, eos)


def end_token_warning(directory: Path, tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Where the files of a checkpoint differ, so that answers end at more tokens than with transformers."""
    ends, expected = end_tokens(configured_eos(directory), tokenizer), stops_of_generate(directory)
    if set(ends) == set(expected):
        return None
    named = f"{_in_words(expected)} by its configs, {_in_words(end_tokens((), tokenizer))} by its tokenizer"
    return f"{directory} differs in which token ends an answer: {named}; here each of {_in_words(ends)} does"


def tokens_beyond(vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Tokens whose ids the model has no embedding for, in the order of their ids."""
    beyond = [(index, token) for token, index in tokenizer.get_vocab().items() if index >= vocab_size]
    return [token for _, token in sorted(beyond)]


def _in_words(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids)) or "nothing"
