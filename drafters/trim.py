"""Trims the LM head of a drafter that is there: which tokens stay, and the folder with their rows only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from drafters.head import Counts, count_tokens, most_frequent
from drafters.manifest import Manifest, vocabulary_hash
from drafters.training.base import load_model, trim_head
from drafters.training.config import Corpus
from drafters.training.data import read_stream
from drafters.training.export import copy_tokenizer
from model.config import DecoderConfig, read_config
from model.gguf.header import read_header
from model.gguf.trim import trim_gguf
from model.gguf.unpack import GGUF_NAME
from model.tokenizer import end_tokens, load_tokenizer
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
    """The ends of an answer and the most frequent tokens, `size` in all. Raises ConfigError for a size that is none."""
    ends = end_tokens(config.eos_token_ids, load_tokenizer(folder))
    smallest = max(2, len(ends))
    if not smallest <= size < config.vocab_size:
        raise ConfigError(
            f"{size} rows are no trimmed head of {folder}; give {smallest} to {config.vocab_size - 1}: all tokens that "
            "end an answer, and fewer than its vocabulary has"
        )
    return most_frequent(counts, size, ends)


def write_trimmed(folder: Path, out: Path, token_ids: Sequence[int]) -> None:
    """The drafter in `folder` with a head of these tokens, in its own dtype or blocks, as a checkpoint of its own."""
    manifest = Manifest.load(folder)
    out.mkdir(parents=True, exist_ok=True)
    if (folder / GGUF_NAME).exists():
        trim_gguf(read_header(folder / GGUF_NAME), out / GGUF_NAME, token_ids, _silent)
    else:
        model = load_model(folder, AutoConfig.from_pretrained(folder).dtype or torch.float32)
        trim_head(model, token_ids)
        model.save_pretrained(out)
        copy_tokenizer(folder, out)
    Manifest(manifest.exits, vocabulary_hash(folder), manifest.targets).save(out)


def _silent(done: int, total: int) -> None: ...
