"""A GGUF file as a checkpoint directory: its config and tokenizer as HF files, and a link to the file for its weights.

The directory lies in the cache, named after the file, its size and time, so that everything that reads checkpoints
reads it. It is made once; several processes may make it at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.gguf.header import GgufHeader, read_header
from model.gguf.hf_config import hf_config
from model.gguf.tensors import frequency_factors
from model.gguf.tokenizer import build_tokenizer, special_ids, tokenizer_config
from model.gguf.vocabulary import read_vocabulary
from model.native.compiler import cache_directory
from protocol.errors import ConfigError, UnsupportedModel

GGUF_NAME = "model.gguf"
MANIFEST_NAME = "draftpool.json"  # of a drafter; beside the file, if there is one
_CONVERTERS = sorted(Path(__file__).parent.glob("*.py"))


def unpack(path: Path) -> Path:
    """The directory of a GGUF file. Raises ConfigError or UnsupportedModel."""
    directory = _directory(path)
    if directory.is_dir():
        return directory
    header = read_header(path)
    _refuse_parts(header)

    def fill(part: Path) -> None:
        write_texts(header, part)
        (part / GGUF_NAME).symlink_to(path.resolve())
        if (beside := path.parent / MANIFEST_NAME).exists():
            shutil.copyfile(beside, part / MANIFEST_NAME)

    return made_once(directory, fill)


def made_once(directory: Path, fill: Callable[[Path], None]) -> Path:
    """A directory of the cache, which appears when it is filled. Raises ConfigError where it cannot be written."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
        part.chmod(0o755)
    except OSError as error:
        raise ConfigError(f"cannot write to {directory.parent}: {error.strerror}; set DRAFTPOOL_CACHE") from None
    try:
        fill(part)
        _put(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory


def write_texts(header: GgufHeader, directory: Path) -> None:
    """Writes config.json, generation_config.json, tokenizer.json and tokenizer_config.json."""
    config = hf_config(header, frequency_factors(header))
    vocabulary = read_vocabulary(header)
    special = special_ids(header, vocabulary)
    ids = {
        "bos_token_id": special["bos"],
        "eos_token_id": vocabulary.ends or special["eos"],
        "pad_token_id": special["pad"],
    }
    stored = sorted({tensor.format.value for tensor in header.tensors.values()})
    build_tokenizer(header).save(str(directory / "tokenizer.json"))
    _write(directory / "config.json", config | ids | {"gguf_formats": stored})
    _write(directory / "generation_config.json", ids)
    _write(directory / "tokenizer_config.json", tokenizer_config(header))


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _directory(path: Path) -> Path:
    beside = path.parent / MANIFEST_NAME
    try:
        stats = [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in (path, beside) if file.exists()]
        key = repr([str(path.resolve()), *((size, time) for _, size, time in stats)])
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    digest = hashlib.sha256(key.encode())
    for file in _CONVERTERS:
        digest.update(file.read_bytes())
    return cache_directory() / "gguf" / f"{path.stem}-{digest.hexdigest()[:12]}"


def _put(part: Path, directory: Path) -> None:
    """Moves the finished directory into place, unless another process was first."""
    try:
        os.rename(part, directory)
    except OSError:
        if not directory.is_dir():
            raise


def _refuse_parts(header: GgufHeader) -> None:
    count = header.metadata.get("split.count", 1)
    if count > 1:
        raise UnsupportedModel(
            f"{header.path} is one of {count} parts; join them with llama.cpp's gguf-split --merge, and give the result"
        )
