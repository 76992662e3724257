"""The corpus: the source of one named CPython standard library, split by file.

The hash of a file's path alone decides its side of the split, so the split is the same on every machine, and adding a
file never moves another one. The corpus is identified by the sha256 over (path, content) of all files. Every model card
has this hash, and a different Python is refused, because it would give different models.
"""

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = "3.11.7"
LICENCE = "PSF-2.0"
HELD_OUT_PER_MILLE = 40
MAX_BYTES = 400_000
EXCLUDED_PARTS = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"})
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus; `path` is relative to the standard library, with forward slashes."""

    path: str
    text: str


def is_held_out(path: str) -> bool:
    """True for about 4 % of paths, by the sha256 of the path alone."""
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE


def is_included(path: str) -> bool:
    """False for tests, generated tables and anything that is not the library's own source."""
    parts = path.split("/")
    if not path.endswith(".py") or EXCLUDED_PARTS.intersection(parts):
        return False
    return not any(part.startswith(EXCLUDED_PREFIXES) for part in parts)


def standard_library() -> Path:
    """The standard library's folder. Raises RuntimeError unless this is the named Python."""
    running = ".".join(map(str, sys.version_info[:3]))
    if running != PYTHON:
        raise RuntimeError(
            f"the demo corpus is the standard library of CPython {PYTHON}, but this is {running}: "
            f"run the recipe with CPython {PYTHON}"
        )
    return Path(sysconfig.get_paths()["stdlib"])


def read_corpus(root: Path | None = None) -> list[SourceFile]:
    """All files of the corpus in the order of their paths. root: a standard library, by default the running one."""
    return list(_iterate(root or standard_library()))


def _iterate(root: Path) -> Iterator[SourceFile]:
    for path in sorted(file.relative_to(root).as_posix() for file in root.rglob("*.py")):
        file = root / path
        if not is_included(path) or not 0 < file.stat().st_size <= MAX_BYTES:
            continue
        try:
            yield SourceFile(path, file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue


def corpus_hash(files: list[SourceFile]) -> str:
    """sha256 (hex) over every file's path and content."""
    digest = hashlib.sha256()
    for file in files:
        for part in (file.path.encode(), file.text.encode()):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def split(files: list[SourceFile]) -> tuple[list[SourceFile], list[SourceFile]]:
    """(training files, held-out files)."""
    training = [file for file in files if not is_held_out(file.path)]
    return training, [file for file in files if is_held_out(file.path)]
