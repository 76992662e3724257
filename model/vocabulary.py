"""The bytes that each token of a tokenizer spells, so that two vocabularies can be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPACE = "▁"  # of SentencePiece
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Piece:
    """The spelling of a token. special: a meaning of its own goes with its name, such as the end of a turn."""

    spelling: bytes = field(repr=False)
    special: bool = False


def pieces(tokenizer: PreTrainedTokenizerFast) -> dict[int, Piece]:
    """By token id. Byte-level vocabularies (GPT-2's alphabet) and SentencePiece's with byte fallback."""
    added = tokenizer.added_tokens_decoder
    vocabulary = {token: index for token, index in tokenizer.get_vocab().items() if index not in added}
    spell = _speller(vocabulary)
    ordinary = {index: Piece(spell(token)) for token, index in vocabulary.items()}
    return ordinary | {index: Piece(token.content.encode(), token.special) for index, token in added.items()}


class Spellings:
    """The same as `pieces`, one token at a time: cheap for a few tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Piece] = {
            index: Piece(token.content.encode(), token.special)
            for index, token in tokenizer.added_tokens_decoder.items()
        }

    def __getitem__(self, token_id: int) -> Piece:
        """The piece of a token; empty for an id without one, as in padded vocabularies."""
        if (piece := self._known.get(token_id)) is None:
            tokens = self._tokenizer.convert_ids_to_tokens([token_id]) if token_id < len(self._tokenizer) else [""]
            piece = self._known[token_id] = Piece(self._spell(tokens[0]))
        return piece

    @cached_property
    def _spell(self) -> Callable[[str], bytes]:
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        return _speller(token for token in self._tokenizer.get_vocab() if token not in added)


def _speller(vocabulary: Iterable[str]) -> Callable[[str], bytes]:
    return _sentencepiece if any(token.startswith(SPACE) for token in vocabulary) else _byte_level


_ALPHABET = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


def _byte_level(token: str) -> bytes:
    known = all(character in _ALPHABET for character in token)
    return bytes(_ALPHABET[character] for character in token) if known else token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
