"""Prepares the tokenizer and both sides of the corpus, the input of every other stage of the recipe."""

import json
from pathlib import Path

from demo.corpus import corpus_hash, read_corpus, split
from demo.tokenizer import save_tokenizer, train_tokenizer

ROOT = Path(__file__).parent
MODELS = ROOT / "models"
WORK = ROOT / ".work"
TOKENIZER, TRAINING, HELD_OUT, CORPUS_HASH = (
    WORK / name for name in ("tokenizer", "training.jsonl", "held_out.jsonl", "corpus.sha256")
)


def prepare() -> None:
    """Reads the corpus and writes the files above, unless they are there; the hash comes last."""
    if CORPUS_HASH.exists():
        return
    WORK.mkdir(exist_ok=True)
    files = read_corpus()
    training, held_out = split(files)
    save_tokenizer(train_tokenizer([file.text for file in training]), TOKENIZER)
    for path, side in ((TRAINING, training), (HELD_OUT, held_out)):
        lines = (json.dumps({"source": file.path, "text": file.text}) for file in side)
        path.write_text("".join(f"{line}\n" for line in lines))
    CORPUS_HASH.write_text(corpus_hash(files))
