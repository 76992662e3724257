"""A tiny family: a tokenizer folder with a two-layer checkpoint, and a configuration that trains from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.tokenizer import save_tokenizer, train_tokenizer
from drafters.training.config import TrainDrafterConfig, load_config

TEXT = "def add(first, second):\n    return first + second\n\n\nclass Thing:\n    def grow(self):\n        self.x = 1\n"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HF folder with random weights, 4 layers, and a tokenizer trained on a few lines."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer([TEXT])
    save_tokenizer(tokenizer, folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def values(tmp_path: Path, checkpoint: Path) -> dict[str, Any]:
    """A configuration as it stands in a YAML file in `tmp_path`."""
    (tmp_path / "code.txt").write_text(TEXT * 40)
    return {
        "output": "drafter",
        "work": "work",
        "base": {
            "checkpoint": str(checkpoint),
            "layers": 2,
            "fresh": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
        },
        "exits": [1, 2],
        "corpus": {"files": ["*.txt"]},
        "schedule": {"steps": 4, "parts": 2, "part_tokens": 64, "sequence_length": 16},
        "dtype": "float32",
    }


def parse(values: dict[str, Any], folder: Path) -> TrainDrafterConfig:
    """The configuration that the command would load from a file in `folder`."""
    path = folder / "drafter.yaml"
    path.write_text(json.dumps(values))
    return load_config(path)
