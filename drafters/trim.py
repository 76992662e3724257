"""Trims the LM head of an existing drafter: which tokens stay, and the folder that names them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from drafters.head import Counts, count_tokens, most_frequent
from drafters.manifest import NAME, Manifest
from drafters.training.config import Corpus
from drafters.training.data import read_stream
from model.config import DecoderConfig, read_config
from model.ends import HEAD_TOKEN_IDS
from model.files import resolve
from model.tokenizer import end_tokens, load_tokenizer
from model.trimmed import CHECKPOINT
from protocol.errors import ConfigError

SIZES = (2048, 4096, 8192, 16384, 32768)  # tried besides the full vocabulary


def read_trimmable(folder: Path) -> DecoderConfig:
    """Raises ConfigError for a drafter whose head cannot be trimmed."""
    config = read_config(folder)
    if config.head_token_ids:
        raise ConfigError(f"the head of {folder} is trimmed already; trim the folder that it was made from")
    return config


def count_corpus(folder: Path, config: DecoderConfig, corpus: Corpus) -> Counts:
    """How often each token of the vocabulary occurs. Raises ConfigError for an empty corpus, or one beyond it."""
    tokens = read_stream(corpus, folder)
    if not len(tokens):
        raise ConfigError("the corpus is empty; give files with text")
    if (last := int(tokens.max())) >= config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {folder} gives token {last}, but the model has {config.vocab_size}: give it its own one"
        )
    return count_tokens(tokens, config.vocab_size)


def head_tokens(folder: Path, config: DecoderConfig, counts: Counts, size: int) -> tuple[int, ...]:
    """The ends of an answer and the most frequent tokens, `size` in all. Raises ConfigError for an impossible size."""
    ends = end_tokens(config.eos_token_ids, load_tokenizer(folder))
    smallest = max(2, len(ends))
    if not smallest <= size < config.vocab_size:
        raise ConfigError(
            f"{size} rows are no trimmed head of {folder}; give {smallest} to {config.vocab_size - 1}: all tokens that "
            "end an answer, and fewer than its vocabulary has"
        )
    return most_frequent(counts, size, ends)


def write_trimmed(given: str, out: Path, token_ids: Sequence[int]) -> None:
    """Writes a drafter that reads the checkpoint `given`, with a head of these tokens only (model/trimmed.py)."""
    folder = resolve(given)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = os.path.relpath(given, out) if Path(given).exists() else given
    values = asdict(Manifest.load(folder)) | {CHECKPOINT: checkpoint, HEAD_TOKEN_IDS: list(token_ids)}
    (out / NAME).write_text(json.dumps(values) + "\n", encoding="utf-8")
