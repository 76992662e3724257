"""Loads the models of a config, with their KV caches."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployments.config import PoolConfig, TargetConfig
from deployments.process import DTYPES, device_of, pool_positions, target_positions
from drafters.nested import NestedDrafter, load_nested
from drafters.translation import Translation, translation_between
from model.config import DecoderConfig
from model.execution import Execution
from model.files import TEXT_FILES, resolve
from model.load import Progress, WeightFormat
from model.tokenizer import end_tokens, load_tokenizer
from protocol.errors import ConfigError
from targets.grammar import Grammars
from targets.model import TargetModel, load_target

logger = logging.getLogger(__name__)


def load_model(config: TargetConfig, progress: Progress | None = None) -> TargetModel:
    directory = resolve(config.path)
    num_positions, deterministic = target_positions(config, directory), bool(config.deterministic)
    model = load_target(
        directory, num_positions=num_positions, deterministic=deterministic, progress=progress, **_options(config)
    )
    return replace(model, grammars=grammars_of(config.name, directory, model.decoder.config))


def grammars_of(name: str, directory: Path, decoder: DecoderConfig) -> Grammars | None:
    """None where there is no tokenizer that grammars can be read with; requests with a grammar are then refused."""
    try:
        tokenizer = load_tokenizer(directory)
        text, eos = tokenizer.backend_tokenizer.to_str(), end_tokens(decoder.eos_token_ids, tokenizer)
        return Grammars(text, decoder.vocab_size, eos)
    except Exception as error:
        logger.warning("target %s takes no grammars: %s", name, error)
        return None


def load_drafter(config: PoolConfig) -> NestedDrafter:
    directory = resolve(config.path)
    return load_nested(directory, num_positions=pool_positions(config, directory), **_options(config))


def translation_to(drafter: PoolConfig, config: TargetConfig) -> Translation | None:
    """To the tokens of a drafter of another tokenizer; None where there is nothing to translate.

    Without the drafter's tokenizer on this node, the target takes drafts of its own vocabulary only.
    """
    if config.speculation is None:
        return None
    try:
        return translation_between(resolve(config.path), resolve(drafter.path, TEXT_FILES))
    except ConfigError as error:
        logger.warning("target %s takes drafts of its own vocabulary only: %s", config.name, error)
        return None


def _options(config: TargetConfig | PoolConfig) -> dict[str, Any]:
    """What a config says of any model."""
    return {
        "dtype": DTYPES[config.dtype],
        "page_size": config.page_size,
        "device": device_of(config),
        "execution": Execution(config.execution),
        "weights": WeightFormat(config.weights),
    }
