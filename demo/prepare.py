"""Prepares the tokenizer and the two token streams, the input of every stage of the recipe.

Both are made once from the corpus and stored in `demo/.work`, with the hash of the corpus.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.corpus import SourceFile, corpus_hash, read_corpus, split
from demo.tokenizer import BOS, EOS, load_tokenizer, save_tokenizer, train_tokenizer
from drafters.training.stream import Tokens, join_documents

ROOT = Path(__file__).parent
WORK = ROOT / ".work"
MODELS = ROOT / "models"
TOKENIZER = WORK / "tokenizer"


@dataclass(frozen=True)
class Data:
    """The two token streams, and the hash of the corpus that they were made from."""

    training: Tokens
    held_out: Tokens
    corpus_sha256: str


def load_data(work: Path = WORK) -> Data:
    """The streams in `work`; makes them if they are missing."""
    record = work / "corpus.json"
    if not record.exists():
        prepare(work)
    values = json.loads(record.read_text())
    return Data(
        np.load(work / "training.npy", mmap_mode="r"),
        np.load(work / "held_out.npy", mmap_mode="r"),
        values["sha256"],
    )


def prepare(work: Path = WORK) -> None:
    """Reads the corpus, trains the tokenizer on its training part and writes both streams."""
    files = read_corpus()
    training, held_out = split(files)
    work.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer([file.text for file in training]), work / "tokenizer")
    np.save(work / "training.npy", encode(training, work / "tokenizer"))
    np.save(work / "held_out.npy", encode(held_out, work / "tokenizer"))
    values = {"sha256": corpus_hash(files), "files": len(files), "held_out_files": len(held_out)}
    (work / "corpus.json").write_text(json.dumps(values, indent=2) + "\n")


def encode(files: list[SourceFile], folder: Path) -> Tokens:
    """All files as one stream [tokens], each between <bos> and <eos>."""
    tokenizer = load_tokenizer(folder)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    return join_documents((tokenizer.encode(file.text).ids for file in files), bos, eos)
