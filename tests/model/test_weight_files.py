"""What a checkpoint's directory may hold; on one tiny Llama each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from model import files
from model.config import read_config
from model.decoder import Decoder
from model.files import resolve
from model.load import load_decoder
from protocol.errors import ConfigError, UnsupportedModel
from tests.model.families import change_config, make_checkpoint
from tests.model.sequences import Sequences, random_tokens


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path, seed=0)


def load(directory: Path) -> Decoder:
    return load_decoder(directory, dtype=torch.float32)


def rewrite(directory: Path, add: dict[str, Tensor], drop: str = "") -> None:
    tensors = load_file(directory / "model.safetensors") | add
    kept = {name: tensor.clone() for name, tensor in tensors.items() if name != drop}
    save_file(kept, directory / "model.safetensors")


def test_shards_are_joined(directory: Path, tmp_path: Path) -> None:
    single = load(directory)
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "shards", max_shard_size="50kB")
    sharded = load(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    tokens = random_tokens(0, 10)
    assert torch.equal(Sequences(single).forward({0: tokens})[0], Sequences(sharded).forward({0: tokens})[0])


def test_a_lost_shard_is_named(directory: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "shards", max_shard_size="50kB")
    lost = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(ConfigError, match=lost.name):
        load(tmp_path / "shards")


def test_pickled_weights_are_refused_with_the_remedy(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"\.bin weights.*save_pretrained"):
        load(directory)


def test_no_weights_at_all_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        load(directory)


def test_a_missing_tensor_is_named(directory: Path) -> None:
    rewrite(directory, {}, drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ConfigError, match=r"lacks.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(directory)


def test_an_unexplained_tensor_is_named(directory: Path) -> None:
    rewrite(directory, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)})
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.0\.self_attn\.q_proj\.bias"):
        load(directory)


def test_a_wrong_shape_is_named(directory: Path) -> None:
    rewrite(directory, {"model.norm.weight": torch.zeros(7)})
    with pytest.raises(ConfigError, match=r"model\.norm\.weight.*\(7,\).*\(48,\)"):
        load(directory)


def test_stored_rotary_frequencies_are_harmless(directory: Path) -> None:
    rewrite(directory, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)})
    load(directory)


def test_a_tied_head_may_be_stored_only_if_it_is_the_embedding(directory: Path) -> None:
    change_config(directory, {"tie_word_embeddings": True})
    with pytest.raises(ConfigError, match="ties its embeddings"):
        load(directory)
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(directory, {"lm_head.weight": embedding})
    load(directory)


def test_too_many_layers_are_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_layers 5 is not in 1\.\.4"):
        load_decoder(directory, dtype=torch.float32, num_layers=5)


def test_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        read_config(tmp_path / "nothing")


def test_a_broken_config_is_refused(directory: Path) -> None:
    change_config(directory, {"num_attention_heads": "seven"})
    with pytest.raises(ConfigError, match="not a valid llama config"):
        read_config(directory)


def test_a_hub_id_may_name_a_revision_and_is_pinned_to_its_commit(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {None: "c0ffee", "v2": "beef", "c0ffee": "c0ffee"}
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        snapshot = tmp_path / "snapshots" / commits[revision]
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "config.json").touch()
        return str(snapshot)

    monkeypatch.setattr(files, "snapshot_download", download)
    assert files.pin_revision("org/model") == "org/model@c0ffee"
    assert files.pin_revision("org/model@v2") == "org/model@beef"
    assert files.pin_revision("org/model@c0ffee") == "org/model@c0ffee"
    assert resolve("org/model@c0ffee").name == "c0ffee"
    assert asked == [("org/model", None), ("org/model", "v2"), ("org/model", "c0ffee"), ("org/model", "c0ffee")]
    assert files.pin_revision(str(directory)) == str(directory)


def test_a_path_that_is_no_directory_never_reaches_the_hub(directory: Path) -> None:
    assert resolve(str(directory)) == directory
    with pytest.raises(ConfigError, match="is not a directory"):
        resolve(str(directory / "absent"))
