"""What each token of a tokenizer spells, in bytes, so that two vocabularies can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPACE = "▁"  # of SentencePiece
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token spells. special: by its name it means something of its own, such as the end of a turn."""

    spelling: bytes = field(repr=False)
    special: bool = False


def pieces(tokenizer: PreTrainedTokenizerFast) -> dict[int, Piece]:
    """By token id. Byte-level vocabularies (GPT-2's alphabet) and SentencePiece's with byte fallback."""
    added = tokenizer.added_tokens_decoder
    vocabulary = {token: index for token, index in tokenizer.get_vocab().items() if index not in added}
    byte_level = not any(token.startswith(SPACE) for token in vocabulary)
    spell = _byte_level if byte_level else _sentencepiece
    ordinary = {index: Piece(spell(token)) for token, index in vocabulary.items()}
    return ordinary | {index: Piece(token.content.encode(), token.special) for index, token in added.items()}


_ALPHABET = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


def _byte_level(token: str) -> bytes:
    known = all(character in _ALPHABET for character in token)
    return bytes(_ALPHABET[character] for character in token) if known else token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
