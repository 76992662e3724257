"""From text files to rows of tokens, and rows with what the targets say about them.

Targets are run once, ahead of training: for every position of a row the k largest log-probabilities of each
teacher are kept on disk, ids and float16 values. Rows are cached in chunks, one .npz file each, so that an
interrupted preparation goes on where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from drafters.training.config import Corpus
from drafters.training.fit import wait_while_paused
from drafters.training.stream import Tokens, join_documents
from protocol.errors import ConfigError


@dataclass(frozen=True)
class TokenRows:
    """Token rows [row, position] and, per teacher, ids and log-probabilities [teacher, row, position, k]."""

    tokens: NDArray[np.uint32]
    ids: NDArray[np.int32]
    logp: NDArray[np.float16]

    @classmethod
    def without_teachers(cls, tokens: Tokens, length: int) -> "TokenRows":
        """The stream `tokens` cut into rows of `length`."""
        count = len(tokens) // length
        empty = (0, count, length, 0)
        rows = np.asarray(tokens[: count * length]).reshape(count, length)
        return cls(rows, np.zeros(empty, np.int32), np.zeros(empty, np.float16))


def read_documents(corpus: Corpus) -> Iterator[str]:
    """Every document of the corpus, files in the order of their names."""
    for pattern in corpus.files:
        paths = sorted(glob(pattern, recursive=True))
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
    """The corpus as one stream, with the tokenizer and the <bos>/<eos> of the checkpoint in `folder`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos = _mark(tokenizer, folder, "bos_token"), _mark(tokenizer, folder, "eos_token")
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in read_documents(corpus))
    return join_documents(encoded, bos, eos)[: corpus.max_tokens]


def _mark(tokenizer: Tokenizer, folder: Path, name: str) -> int | None:
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text()).get(name) if path.exists() else None
    token = token.get("content") if isinstance(token, dict) else token
    return None if token is None else tokenizer.token_to_id(token)


Chunk = Mapping[str, NDArray[Any]]


def cached_chunks(
    folder: Path, settings: object, count: int, make: Callable[[int], Chunk], workers: int, pause: Path | None
) -> TokenRows:
    """The rows of `count` chunks, made by `make(index)` where the cache for these settings lacks them."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    place = folder.with_name(f"{folder.name}-{digest}")
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"chunk-{index:04d}.npz" for index in range(count)]

    def ensure(index: int) -> None:
        wait_while_paused(pause)
        if not files[index].exists():
            partial = files[index].with_suffix(".partial.npz")
            chunk = make(index)
            np.savez(partial, tokens=chunk["tokens"], ids=chunk["ids"], logp=chunk["logp"])
            os.replace(partial, files[index])

    with ThreadPoolExecutor(workers) as pool:
        list(tqdm(pool.map(ensure, range(count)), total=count, desc=folder.name))
    return _join([dict(np.load(file, allow_pickle=False)) for file in files])


def _join(chunks: list[dict[str, NDArray[Any]]]) -> TokenRows:
    return TokenRows(
        np.concatenate([chunk["tokens"] for chunk in chunks]),
        np.concatenate([chunk["ids"] for chunk in chunks], axis=1),
        np.concatenate([chunk["logp"] for chunk in chunks], axis=1),
    )
