"""The tokenizers of checkpoints that have a chat template: the demo's, and SmolLM2's where its package is installed."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from cli.demo_family import CODE, SMOLLM2
from deployments.config import load_config
from model.files import resolve
from model.tokenizer import load_tokenizer
from protocol.errors import ConfigError

TARGETS = [target for config in (CODE, SMOLLM2) for target in load_config(config).targets]
NAMES = {target.path: target.name for target in reversed(TARGETS)}  # several targets may have one checkpoint
PATHS = {name: path for path, name in NAMES.items()}
CHECKPOINTS = tuple(PATHS)


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Skips the test if the checkpoint is not there, or has no chat template."""
    try:
        tokenizer = load_tokenizer(resolve(PATHS[name]))
    except (ConfigError, OSError) as error:
        pytest.skip(str(error))
    if not tokenizer.chat_template:
        pytest.skip(f"{name} has no chat template")
    return tokenizer
