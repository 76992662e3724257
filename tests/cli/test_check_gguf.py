"""`draftpool check` on GGUF files: two targets of one file in a package, and a drafter that is a file too."""

from __future__ import annotations

from pathlib import Path

import pytest

from drafters.manifest import Manifest, vocabulary_hash
from model.files import resolve
from tests.cli.commands import printed, refused
from tests.model.families import VOCAB, make_checkpoint
from tests.model.gguf.files import byte_vocabulary, write_gguf
from tests.packages import make_package

CONFIG = """
targets:
  - {name: dense, path: package:tiny-model==1.2/tiny.gguf, weights: dense, page_size: 16, kv_mb: 8, speculation: {}}
  - {name: stored, path: package:tiny-model==1.2/tiny.gguf, weights: stored, page_size: 16, kv_mb: 8, speculation: {}}
pool: {path: drafter, page_size: 16, kv_mb: 8}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config beside its drafter, whose targets lie in an installed package."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("model.gguf.unpack.cache_directory", lambda: tmp_path / "cache")
    checkpoint = make_checkpoint("llama", tmp_path / "hf", seed=3)
    write_gguf(checkpoint, make_package(tmp_path, "tiny-model", "1.2") / "tiny.gguf")
    write_drafter(checkpoint, tmp_path / "drafter", byte_vocabulary(VOCAB)["tokens"])
    path = tmp_path / "app.yaml"
    path.write_text(CONFIG)
    return path


def write_drafter(checkpoint: Path, folder: Path, tokens: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    vocabulary = byte_vocabulary(VOCAB) | {"tokens": tokens}
    file = write_gguf(checkpoint, folder / "drafter.gguf", vocabulary)
    Manifest((2, 4), vocabulary_hash(resolve(str(file)))).save(folder)


def test_check_describes_two_targets_of_one_file(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert printed(capsys, "check", str(config)).splitlines() == [
        "target dense: llama, 4 layers, bf16, goodput, any exit, length 0 to 12, in turn or ahead",
        "target stored: llama, 4 layers, bf16, goodput, any exit, length 0 to 12, in turn or ahead",
        "pool: 1 replicas, bf16, exits 2, 4",
        "ok",
    ]


def test_a_file_with_another_vocabulary_drafts_through_a_translation(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    *kept, last = byte_vocabulary(VOCAB)["tokens"]
    write_drafter(config.parent / "hf", config.parent / "drafter", [*kept, last + "x"])
    share = f"{(VOCAB - 1) / VOCAB:.0%}"
    assert printed(capsys, "check", str(config)).splitlines()[-3:] == [
        f"target dense: the drafter has another tokenizer, and {share} of its tokens",
        f"target stored: the drafter has another tokenizer, and {share} of its tokens",
        "ok",
    ]
    config.write_text(config.read_text().replace("speculation: {", "speculation: {ahead: on, ", 1))
    assert "a draft through a translation does not come ahead; leave ahead: on out" in refused(
        capsys, "check", str(config)
    )
