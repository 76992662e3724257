"""A target and its drafter in one process, without Ray. `draftpool generate` and exactness runs use it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import load_nested
from drafters.translated import reached
from drafters.translation import Translation
from drafters.worker import DraftWorker
from model.execution import Execution
from model.load import WeightFormat
from protocol.errors import ConfigError
from protocol.plan import DepthRule, cascade
from router.policy import Fixed, Off, Policy
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel


def depth_rule(exits: Sequence[int], depth: int | str | None) -> DepthRule:
    """The rule for an exit, the cascade, or (None) the deepest exit. Raises ConfigError if depth is not an exit."""
    if depth == "cascade":
        return cascade(exits)
    chosen = exits[-1] if depth is None else int(depth)
    if chosen not in exits:
        raise ConfigError(f"depth {chosen} is not an exit of this drafter; choose one of {list(exits)} or cascade")
    return DepthRule((chosen,))


def draft_policy(worker: DraftWorker | None, depth: int | str | None, length: int) -> Policy:
    """A fixed depth and length, or plain decoding without a worker."""
    return Fixed(depth_rule(worker.describe().exits, depth), length) if worker else Off()


def open_engine(
    model: TargetModel,
    worker: DraftWorker | None,
    policy: Policy,
    config: EngineConfig,
    translation: Translation | None = None,
) -> Engine:
    """Starts an engine. Its drafter, if there is one, runs in the engine's thread. translation: to its vocabulary."""
    client = reached(LocalDraftClient(worker, config.incarnation), translation) if worker else None
    engine = Engine(model, policy, client, config)
    engine.start()
    return engine


def open_worker(
    directory: Path,
    *,
    dtype: torch.dtype,
    num_positions: int,
    page_size: int,
    max_rows: int,
    execution: Execution = Execution.AUTO,
    weights: WeightFormat = WeightFormat.STORED,
) -> DraftWorker:
    drafter = load_nested(
        directory, dtype=dtype, num_positions=num_positions, page_size=page_size, execution=execution, weights=weights
    )
    return DraftWorker(drafter, PoolLimits(max_rows=max_rows), time.monotonic)
