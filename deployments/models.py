"""Loads the models of a config, with their KV caches."""

from __future__ import annotations

import logging
from typing import Any

from deployments.config import PoolConfig, TargetConfig
from deployments.process import DTYPES, device_of, pool_positions, target_positions
from drafters.nested import NestedDrafter, load_nested
from drafters.translation import Translation, translation_between
from model.execution import Execution
from model.files import TEXT_FILES, resolve
from model.load import Progress, WeightFormat
from protocol.errors import ConfigError
from targets.model import TargetModel, load_target

logger = logging.getLogger(__name__)


def load_model(config: TargetConfig, progress: Progress | None = None) -> TargetModel:
    directory = resolve(config.path)
    num_positions, deterministic = target_positions(config, directory), bool(config.deterministic)
    return load_target(
        directory, num_positions=num_positions, deterministic=deterministic, progress=progress, **_options(config)
    )


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
