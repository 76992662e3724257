"""Vocabularies of both kinds for tests, as a GGUF file stores them, made from one byte-level vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from model.gguf.vocabulary import TokenKind

DEMO = Path(__file__).parents[3] / "demo" / "models" / "small"
NORMAL, CONTROL, USER_DEFINED, BYTE = (
    int(kind) for kind in (TokenKind.NORMAL, TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.BYTE)
)


def demo_tokens() -> tuple[list[str], list[str]]:
    """The byte-level tokens and merges of the demo's tokenizer."""
    model = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    special = {"<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>"}
    return [token for token in model["vocab"] if token not in special], merges


def byte_level(pre: str, tokens: Sequence[str], merges: Sequence[str], **keys: Any) -> dict[str, Any]:
    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<tool>"]
    kinds = [CONTROL] * 4 + [USER_DEFINED] + [NORMAL] * len(tokens)
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*named, *tokens],
        "token_type": kinds,
        "merges": list(merges),
        "bos_token_id": 3,
        "eos_token_id": 2,
        "padding_token_id": 0,
        "add_bos_token": False,
    } | keys


def sentencepiece(tokens: Sequence[str], **keys: Any) -> dict[str, Any]:
    """The tokens that are text, and all their characters, with scores that fall."""
    codes = {character: byte for byte, character in bytes_to_unicode().items()}
    texts = [text for text in (_text(token, codes) for token in tokens) if text and "\n" not in text]
    pieces = dict.fromkeys(text.replace(" ", "▁") for text in [*"".join(texts), *texts] if text not in ("<unk>", "<s>"))
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|im_start|>", "\n\n", "   "]
    kinds = [int(TokenKind.UNKNOWN), CONTROL, CONTROL, *[BYTE] * 256, CONTROL, USER_DEFINED, USER_DEFINED]
    return {
        "model": "llama",
        "tokens": [*named, *pieces],
        "token_type": [*kinds, *[NORMAL] * len(pieces)],
        "scores": [0.0] * len(named) + [-float(index) for index in range(len(pieces))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | keys


def _text(token: str, codes: Mapping[str, int]) -> str:
    """The text of a byte-level token; empty if its bytes are no text."""
    try:
        return bytes(codes[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""
