from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.decoder import Decoder
from model.execution import Execution
from model.load import load_decoder
from targets.grammar import Grammars
from targets.model import TargetModel, load_target
from tests.model.families import make_checkpoint
from tests.targets.shaped import EOS, TOKENIZER

LoadTarget = Callable[..., TargetModel]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("target") / "llama", seed=0)


@pytest.fixture(scope="session")
def drafter(llama: Path) -> Decoder:
    """The target's own layers: at full depth it is always right, at others sometimes."""
    return load_decoder(llama, dtype=torch.float32)


@pytest.fixture
def load(llama: Path) -> LoadTarget:
    """A tiny fp32 target with as many KV positions as asked for."""

    def loader(num_positions: int = 4096, page_size: int = 16, execution: Execution = Execution.AUTO) -> TargetModel:
        return load_target(
            llama, dtype=torch.float32, num_positions=num_positions, page_size=page_size, execution=execution
        )

    return loader


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    return Grammars(TOKENIZER.backend_tokenizer.to_str(), len(TOKENIZER), [EOS])


@pytest.fixture(scope="session")
def shaped_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the vocabulary of a tokenizer that grammars are read with."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(TOKENIZER), max_position_embeddings=256, eos_token_id=EOS, **sizes)
    folder = tmp_path_factory.mktemp("grammar") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def load_shaped(shaped_llama: Path, grammars: Grammars) -> LoadTarget:
    def loader(num_positions: int = 4096, page_size: int = 16, execution: Execution = Execution.AUTO) -> TargetModel:
        made = load_target(
            shaped_llama, dtype=torch.float32, num_positions=num_positions, page_size=page_size, execution=execution
        )
        return replace(made, grammars=grammars)

    return loader
