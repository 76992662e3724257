"""Where GGUF files are found, what is refused by name, and `draftpool import`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.main import main
from drafters.manifest import NAME, Manifest
from drafters.training.base import load_model
from model import files
from model.config import read_config
from model.files import resolve
from model.gguf.hf_folder import plan_shards, write_hf_folder
from model.gguf.unpack import GGUF_NAME
from model.load import check_weights
from model.tokenizer import load_tokenizer
from protocol.errors import ConfigError, UnsupportedModel
from tests.model.families import make_checkpoint
from tests.model.gguf.files import write_gguf
from tests.model.test_families import assert_same, oracle_logits, random_tokens

Writer = Callable[[gguf.GGUFWriter], None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama") / "hf", seed=3)


@pytest.fixture(scope="module")
def file(checkpoint: Path) -> Path:
    return write_gguf(checkpoint, checkpoint.parent / "tiny.gguf")


def test_a_file_and_a_folder_with_it_are_one_checkpoint_that_is_unpacked_once(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = shutil.copyfile(file, folder / "tiny.gguf")
    directory = resolve(str(path))
    made = (directory / "config.json").stat().st_mtime_ns
    assert resolve(str(folder)) == resolve(str(directory)) == directory
    assert (directory / "config.json").stat().st_mtime_ns == made
    assert (directory / GGUF_NAME).resolve() == path.resolve()


def test_a_file_that_was_replaced_is_unpacked_again(checkpoint: Path, file: Path, tmp_path: Path) -> None:
    path = shutil.copyfile(file, tmp_path / "tiny.gguf")
    before = resolve(str(path))
    write_gguf(checkpoint, path, extra=lambda writer: writer.add_string("general.name", "another"))
    assert resolve(str(path)) != before


def test_a_folder_with_two_files_asks_which(file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copyfile(file, tmp_path / name)
    with pytest.raises(ConfigError, match=r"holds 2 GGUF files; name one of them: .*a\.gguf"):
        resolve(str(tmp_path))


def test_exits_beside_a_file_are_a_drafters(file: Path, tmp_path: Path) -> None:
    path = shutil.copyfile(file, tmp_path / "tiny.gguf")
    assert Manifest.load(resolve(str(path))).exits == (4,)
    Manifest((2, 4), "hash").save(tmp_path)
    assert Manifest.load(resolve(str(path))).exits == (2, 4)
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize(("name", "asked"), [("org/model", "tiny.gguf"), ("org/model/other.gguf@v2", "other.gguf")])
def test_a_file_on_the_hub_is_downloaded_at_its_commit(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: str
) -> None:
    class Hub:
        def list_repo_files(self, repository: str, *, revision: str) -> list[str]:
            return ["README.md", "tiny.gguf"]

    def download(repository: str, wanted: str, *, revision: str) -> str:
        assert (repository, wanted, revision) == ("org/model", asked, "c0ffee")
        return str(file)

    (tmp_path / "c0ffee").mkdir()
    monkeypatch.setattr(files, "snapshot_download", lambda *_, **__: str(tmp_path / "c0ffee"))
    monkeypatch.setattr(files, "HfApi", Hub)
    monkeypatch.setattr(files, "hf_hub_download", download)
    assert (resolve(name) / GGUF_NAME).resolve() == file.resolve()
    assert files.pin_revision(name) == f"{name.partition('@')[0]}@c0ffee"


def changed_bytes(file: Path, path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(file.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: b"PK\x03\x04" + data[4:], ConfigError, "is not a GGUF file"),
        (lambda data: data[:4] + b"\x09" + data[5:], UnsupportedModel, "GGUF version 9; supported are 2 and 3"),
        (lambda data: data[:3], ConfigError, "is damaged or cut short"),
        (lambda data: data[:400], ConfigError, "is damaged or cut short"),
        (lambda data: data[:-4096], ConfigError, "tensors lie beyond"),
        (lambda data: b"", ConfigError, "cannot read"),
    ],
)
def test_a_damaged_file_is_named(
    file: Path, tmp_path: Path, change: Callable[[bytes], bytes], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(str(changed_bytes(file, tmp_path / "tiny.gguf", change)))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda writer: writer.add_expert_count(8), r"sets llama\.expert_count, which is not supported"),
        (lambda writer: writer.add_logit_scale(0.5), r"sets llama\.logit_scale, which is not supported"),
        (lambda writer: writer.add_rope_dimension_count(6), "rope.dimension_count 6 and heads of 12"),
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
            "rope scaling 'longrope' .* supported are none, linear and yarn",
        ),
        (lambda writer: writer.add_uint16("split.count", 3), "is one of 3 parts; join them"),
        (
            lambda writer: writer.add_tensor("rope_freqs.weight", np.full(6, 3.0, np.float32)),
            r"frequency factors \(rope_freqs.weight\) of .* are not those of Llama 3",
        ),
        (
            lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)),
            "holds tensors that no supported family has: blk.0.attn_sinks.weight",
        ),
        (
            lambda writer: writer.add_tensor(
                "extra", np.zeros((1, 110), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q3_K
            ),
            "stored in the format Q3_K; supported are F32, F16",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, extra: Writer, message: str
) -> None:
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", extra=extra)
    with pytest.raises(UnsupportedModel, match=message):
        check_weights(resolve(str(path)))


def test_an_unknown_family_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    path = changed_bytes(file, tmp_path / "tiny.gguf", lambda data: data.replace(b"llama", b"bambi"))
    with pytest.raises(UnsupportedModel, match="of the family 'bambi'; supported are llama, mistral"):
        resolve(str(path))


def test_import_writes_a_folder_that_transformers_loads(checkpoint: Path, file: Path, tmp_path: Path) -> None:
    out, tokens = tmp_path / "out", random_tokens(0, 30)
    assert main(["import", str(file), str(out), "--dtype", "fp32"]) == 0
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), tokens)
    assert_same(oracle_logits(AutoModelForCausalLM.from_pretrained(out), tokens), expected)
    assert read_config(out) == read_config(resolve(str(file)))
    ids = load_tokenizer(resolve(str(file))).encode("ĀāĂ")
    assert AutoTokenizer.from_pretrained(out).encode("ĀāĂ") == ids
    assert main(["import", str(file), str(out)]) == 2
    assert main(["import", str(checkpoint), str(tmp_path / "other")]) == 2


def test_import_writes_large_models_in_shards(checkpoint: Path, file: Path, tmp_path: Path) -> None:
    write_hf_folder(resolve(str(file)), tmp_path, torch.float32, lambda done, total: None, shard_bytes=100_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    check_weights(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_shard_holds_at_most_its_size_or_one_tensor() -> None:
    assert plan_shards({"a": (4,), "b": (2, 2), "c": (20,), "d": (1,)}, 8) == [["a", "b"], ["c"], ["d"]]


def test_training_starts_from_a_file(checkpoint: Path, file: Path) -> None:
    tokens = random_tokens(1, 20)
    model = load_model(resolve(str(file)), torch.float32)
    expected = oracle_logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), tokens)
    assert_same(oracle_logits(model, tokens), expected)
