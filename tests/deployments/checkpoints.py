"""A tiny family on disk: two random targets and a drafter that is the larger one again, so that drafts are accepted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drafters.manifest import Manifest, vocabulary_hash
from tests.api.api_twins import tiny_tokenizer

MAX_POSITIONS = 512


def make_family(folder: Path) -> Path:
    """Writes large, small and drafter into the folder."""
    for name, layers, seed in (("large", 4, 1), ("small", 2, 2), ("drafter", 4, 1)):
        make_model(folder / name, layers, seed)
    Manifest((2, 4), vocabulary_hash(folder / "drafter"), ("large",)).save(folder / "drafter")
    return folder


def config_beside(family: Path, folder: Path, text: str) -> Path:
    """A config file in `folder`, with links to the family's checkpoints beside it."""
    for name in ("large", "small", "drafter"):
        (folder / name).symlink_to(family / name)
    (folder / "app.yaml").write_text(text)
    return folder / "app.yaml"


def with_another_tokenizer(drafter: Path, out: Path) -> Path:
    """A copy of the drafter in which a special token has another name."""
    shutil.copytree(drafter, out)
    tokenizer = json.loads((out / "tokenizer.json").read_text("utf-8"))
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    (out / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    Manifest((2, 4), vocabulary_hash(out)).save(out)
    return out


def make_model(directory: Path, num_layers: int, seed: int) -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
