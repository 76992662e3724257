"""What a target's replica refuses before it has loaded anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from deployments.config import load_config
from deployments.loading import Loading
from deployments.target import TargetReplica
from protocol.errors import ConfigError
from tests.deployments.checkpoints import config_beside, with_another_tokenizer

CONFIG = """
targets: [{name: large, path: large, speculation: {ahead: on}}]
pool: {path: ./other}
"""


async def test_drafts_ahead_from_another_tokenizer_are_refused_with_their_key_before_the_weights_are_read(
    family: Path, tmp_path: Path
) -> None:
    with_another_tokenizer(family / "drafter", tmp_path / "other")
    config = load_config(config_beside(family, tmp_path, CONFIG))
    (target,), nothing = config.targets, cast(Any, None)
    with pytest.raises(ConfigError, match=r"another tokenizer, .*; leave ahead: on out"):
        await TargetReplica._start(nothing, target, object(), config.pool, Loading("large", "large-1"))
