"""Runs the whole recipe: tokenizer, large, small, drafter, evaluation.

Finished stages are skipped, and an interrupted stage resumes at its last checkpoint, so the command can be run again.
Each stage is a separate process with one thread per kernel; training uses as many threads as it has workers.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from demo.corpus import read_corpus, split
from demo.prepare import MODELS, ROOT, WORK, load_data

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456",
}
log = logging.getLogger(__name__)


def stages() -> list[tuple[Path, list[str]]]:
    """(file that exists when the stage is finished, arguments of the Python process that makes it)."""
    return [
        (MODELS / "large" / "README.md", ["-m", "demo.train_targets", "large"]),
        (MODELS / "small" / "README.md", ["-m", "demo.train_targets", "small"]),
        (MODELS / "drafter" / "draftpool.json", ["-m", "demo.train_drafter"]),
        (ROOT / "results" / "evaluation.json", ["-m", "demo.evaluate"]),
    ]


def write_training_text(path: Path) -> None:
    """The training files as .jsonl, for the drafter's corpus."""
    lines = (json.dumps({"source": file.path, "text": file.text}) for file in split(read_corpus())[0])
    path.write_text("".join(f"{line}\n" for line in lines))


def main() -> None:
    """Makes the missing parts of the demo family."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    finished = [path.exists() for path, _ in stages()]
    if all(finished):
        log.info("all models are there; delete the folders of %s to train them again", MODELS)
        return
    load_data()
    if not (WORK / "training.jsonl").exists():
        write_training_text(WORK / "training.jsonl")
    for path, arguments in stages():
        if path.exists():
            log.info("%s is there", path)
            continue
        log.info("python %s", " ".join(arguments))
        subprocess.run([sys.executable, *arguments], check=True, env={**ENVIRONMENT, **os.environ})


if __name__ == "__main__":
    main()
