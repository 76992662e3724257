"""`draftpool export-gguf`: a drafter's folder becomes a file that is the same drafter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from drafters.manifest import NAME, Manifest, vocabulary_hash
from drafters.nested import load_nested
from model.files import resolve
from model.gguf.header import read_header
from protocol.request import GREEDY
from tests.cli.commands import printed, refused
from tests.model.families import make_checkpoint
from tests.model.gguf.files import byte_vocabulary, write_gguf
from tests.reference.drafting import draft_from_scratch


@pytest.fixture
def target(tmp_path: Path) -> Path:
    checkpoint = make_checkpoint("qwen3", tmp_path / "target", seed=3)
    vocabulary = byte_vocabulary(160) | {"tokenizer.chat_template": "{{ messages }}"}
    return write_gguf(checkpoint, tmp_path / "target.gguf", vocabulary)


@pytest.fixture
def drafter(tmp_path: Path, target: Path) -> Path:
    """Another model of the same shape, with the target's tokenizer and three exits."""
    folder = make_checkpoint("qwen3", tmp_path / "drafter", seed=4)
    shutil.copyfile(resolve(str(target)) / "tokenizer.json", folder / "tokenizer.json")
    Manifest((1, 2, 4), vocabulary_hash(folder), ("target",)).save(folder)
    return folder


def export(drafter: Path, out: Path, target: Path, *options: str) -> tuple[str, ...]:
    dense = ("--format", "F32", "--embedding-format", "F32")
    return ("export-gguf", str(drafter), str(out), "--like", str(target), *dense, *options)


def test_a_file_drafts_as_the_folder_does(
    capsys: pytest.CaptureFixture[str], drafter: Path, target: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "drafter.gguf"
    assert printed(capsys, *export(drafter, out, target)).endswith("MB, exits 1, 2, 4\n")
    directory = resolve(str(out))
    assert Manifest.load(directory) == Manifest.load(drafter)
    assert vocabulary_hash(directory) == Manifest.load(directory).vocabulary_hash
    ours, theirs = (
        load_nested(path, dtype=torch.float32, num_positions=64, page_size=16).decoder for path in (directory, drafter)
    )
    for depth in (1, 2, 4):
        rule = depth
        drafted = [draft_from_scratch(decoder, [5, 9, 13], 8, rule, GREEDY) for decoder in (ours, theirs)]
        assert [token for token, _ in drafted[0]] == [token for token, _ in drafted[1]]


def test_an_exit_is_a_drafter_of_its_own_with_the_targets_template(
    capsys: pytest.CaptureFixture[str], drafter: Path, target: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "drafter.gguf"
    printed(capsys, *export(drafter, out, target, "--depth", "2"))
    assert Manifest.load(resolve(str(out))).exits == (1, 2)
    metadata = read_header(out).metadata
    assert (metadata["qwen3.block_count"], metadata["tokenizer.chat_template"]) == (2, "{{ messages }}")


def test_what_cannot_be_written_is_refused(
    capsys: pytest.CaptureFixture[str], drafter: Path, target: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "drafter.gguf"
    assert "--depth 3 is no exit of" in refused(capsys, *export(drafter, out, target, "--depth", "3"))
    assert "invalid choice: 'Q4_K'" in refused(capsys, *export(drafter, out, target, "--format", "Q4_K"))
    assert "does not end with .gguf" in refused(capsys, *export(drafter, tmp_path / "new" / "out", target))
    assert "holds no GGUF file; give the target's" in refused(capsys, *export(drafter, out, drafter))
    assert not out.parent.exists()


def test_a_folder_that_holds_a_model_already_is_refused(
    capsys: pytest.CaptureFixture[str], drafter: Path, target: Path, tmp_path: Path
) -> None:
    """A manifest beside the target's file would give it the drafter's exits."""
    message = refused(capsys, *export(drafter, target.parent / "drafter.gguf", target))
    assert f"holds {target.name} already; name a file in a new folder" in message
    Manifest((1,), "hash").save(tmp_path / "drafter")
    assert f"holds {NAME} already" in refused(capsys, *export(drafter, tmp_path / "drafter" / "a.gguf", target))


def test_another_vocabulary_is_refused(
    capsys: pytest.CaptureFixture[str], drafter: Path, target: Path, tmp_path: Path
) -> None:
    text = (drafter / "tokenizer.json").read_text(encoding="utf-8")
    (drafter / "tokenizer.json").write_text(text.replace("</s>", "</end>"), encoding="utf-8")
    message = refused(capsys, *export(drafter, tmp_path / "new" / "drafter.gguf", target))
    assert "have different vocabularies" in message
