"""Training can be stopped and resumed, and what it exports is a drafter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from drafters.manifest import Manifest, vocabulary_hash
from drafters.training import fit, loop
from drafters.training.base import build_model
from drafters.training.data import read_stream
from drafters.training.exits import exit_logits
from drafters.training.loop import train
from model.config import read_config
from model.load import load_decoder
from protocol.errors import ConfigError
from tests.drafters.training.conftest import parse


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


def test_a_run_that_was_interrupted_continues_to_the_same_weights(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(train(parse(values, tmp_path)))
    values["work"], steps = "elsewhere", []

    def interrupted(*args: Any) -> Any:
        steps.append(args[-1])
        if steps == [0, 1, 2]:
            raise KeyboardInterrupt
        return step_losses(*args)

    step_losses = loop.step_losses
    monkeypatch.setattr(loop, "step_losses", interrupted)
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", 0)
    config = parse(values, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert same(whole, weights(train(config)))
    assert steps == [0, 1, 2, 2, 3]


def test_two_workers_give_the_same_weights_as_one(values: dict[str, Any], tmp_path: Path) -> None:
    one = weights(train(parse(values, tmp_path)))
    values["work"], values["schedule"]["workers"] = "elsewhere", 2
    assert same(one, weights(train(parse(values, tmp_path))))


def test_the_export_has_a_manifest_and_the_tokenizer_of_its_base(
    values: dict[str, Any], tmp_path: Path, checkpoint: Path
) -> None:
    values["targets"] = [str(checkpoint)]
    values["on_policy"] = {"tokens": 128, "row_length": 16, "prompt_lengths": [4, 8], "batch": 4}
    folder = train(parse(values, tmp_path))
    manifest = Manifest.load(folder)
    assert manifest.exits == (1, 2)
    assert manifest.vocabulary_hash == vocabulary_hash(checkpoint)
    assert manifest.targets == (checkpoint.name,)
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_the_first_layers_of_a_checkpoint_are_the_checkpoint_up_to_there(
    values: dict[str, Any], tmp_path: Path, checkpoint: Path
) -> None:
    values["base"] = {"checkpoint": str(checkpoint), "layers": 2}
    full = AutoModelForCausalLM.from_pretrained(checkpoint)
    cut = build_model(parse(values, tmp_path).base, 0)
    tokens = torch.arange(6)[None]
    expected = exit_logits(full, tokens, [1, 2], torch.float32)
    for mine, theirs in zip(exit_logits(cut, tokens, [1, 2], torch.float32), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_target_with_another_vocabulary_is_refused(values: dict[str, Any], tmp_path: Path, checkpoint: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": []}')
    values["targets"] = [str(other)]
    with pytest.raises(ConfigError, match="another vocabulary"):
        train(parse(values, tmp_path))


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_a_trimmed_head_has_the_most_frequent_tokens_and_embeddings_stay_as_they_were(
    values: dict[str, Any], tmp_path: Path, checkpoint: Path, optimiser: str
) -> None:
    values["base"] = {"checkpoint": str(checkpoint), "layers": 2, "head_size": 9}
    values["schedule"]["optimiser"] = optimiser
    config = parse(values, tmp_path)
    trained = train(config)
    kept = read_config(trained).head_token_ids
    counts = np.bincount(read_stream(config.corpus, checkpoint))
    assert len(kept) == 9
    assert set(kept) >= set(read_config(checkpoint).eos_token_ids)
    left_out = set(range(len(counts))) - set(kept)
    assert min(counts[list(set(kept) - {2})]) >= max(counts[list(left_out)])
    before, after = weights(checkpoint), weights(trained)
    assert after["lm_head.weight"].shape == (9, 16)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"].bfloat16())
    assert not torch.equal(
        after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"].bfloat16()
    )
    load_decoder(trained, dtype=torch.float32)
