"""From text files to rows of tokens, with what teachers say about them, kept on disk in chunks.

Each chunk is one .npz file, so that an interrupted preparation continues where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from drafters.training.config import Corpus
from model.tokenizer import load_tokenizer
from protocol.errors import ConfigError

Tokens = NDArray[np.uint32]


@dataclass(frozen=True)
class TokenRows:
    """Token rows [row, position] and, per teacher, ids and log-probabilities [teacher, row, position, k]."""

    tokens: Tokens
    ids: NDArray[np.int32]
    logp: NDArray[np.float16]

    @classmethod
    def without_teachers(cls, stream: Tokens, length: int) -> "TokenRows":
        """The stream cut into rows of `length`. Raises ConfigError if it is shorter than one."""
        count = len(stream) // length
        if count == 0:
            raise ConfigError(
                f"the corpus has {len(stream)} tokens, fewer than one row of {length}: "
                "give more text or a smaller sequence_length"
            )
        none = (0, count, length, 0)
        return cls(
            stream[: count * length].reshape(count, length), np.zeros(none, np.int32), np.zeros(none, np.float16)
        )


def read_documents(corpus: Corpus) -> Iterator[str]:
    """Every document of the corpus, files in the order of their names."""
    for pattern in corpus.files:
        paths = sorted(glob(str(pattern), recursive=True))
        if not paths:
            raise ConfigError(f"corpus.files: nothing matches {pattern}: correct the path")
        for path in paths:
            yield from _documents_of(Path(path), corpus.field)


def _documents_of(path: Path, field: str) -> Iterator[str]:
    if path.suffix != ".jsonl":
        yield path.read_text(encoding="utf-8", errors="replace")
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        document = json.loads(line)
        if field not in document:
            raise ConfigError(f"{path}:{number} has no field {field!r}: set corpus.field")
        yield document[field]


def read_stream(corpus: Corpus, folder: Path) -> Tokens:
    """The corpus as one stream [tokens] in the tokens of the checkpoint in `folder`.

    Each document is between <bos> and <eos>, where the tokenizer has them and the document does not.
    """
    tokenizer = load_tokenizer(folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    stream: list[int] = []
    for document in read_documents(corpus):
        ids = tokenizer.backend_tokenizer.encode(document, add_special_tokens=False).ids
        before = [] if bos is None or ids[:1] == [bos] else [bos]
        after = [] if eos is None or ids[-1:] == [eos] else [eos]
        stream += before + ids + after
    return np.asarray(stream[: corpus.max_tokens], np.uint32)


def cached_rows(folder: Path, settings: object, count: int, make: Callable[[int], TokenRows]) -> TokenRows:
    """The rows of `count` chunks; make(index) makes a chunk that is not on disk for these settings."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    place = folder.with_name(f"{folder.name}-{digest}")
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"chunk-{index:04d}.npz" for index in range(count)]
    for index, file in enumerate(tqdm(files, desc=folder.name)):
        if not file.exists():
            partial = file.with_suffix(".partial.npz")
            np.savez(partial, **vars(make(index)))
            os.replace(partial, file)
    return _join(TokenRows(**np.load(file)) for file in files)


def _join(chunks: Iterable[TokenRows]) -> TokenRows:
    chunks = list(chunks)
    joined = {}
    for field in fields(TokenRows):
        row_axis = 0 if field.name == "tokens" else 1
        joined[field.name] = np.concatenate([getattr(chunk, field.name) for chunk in chunks], axis=row_axis)
    return TokenRows(**joined)
