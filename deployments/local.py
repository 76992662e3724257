"""A drafter in its target's process: with KV of its own, or on the target's where both are one model.

`draftpool generate`, tests and benchmarks use it without Ray; deployments/colocated.py does in a replica.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.manifest import drafter_exits
from drafters.nested import load_nested
from drafters.translated import reached
from drafters.translation import Translation
from drafters.worker import DraftWorker
from model.config import read_config
from model.execution import Execution
from model.load import WeightFormat, load_decoder
from model.siblings import are_siblings
from protocol.draft import DraftClient
from protocol.errors import ConfigError
from router.costs import DrafterCosts
from router.policy import Fixed, Off, Policy
from targets.model import TargetModel
from targets.own_client import OwnDraftClient

INCARNATION = "local"


@dataclass(frozen=True, slots=True)
class LocalDrafter:
    """costs: None where no policy needs them."""

    client: DraftClient
    exits: tuple[int, ...]
    costs: DrafterCosts | None = None


def known_depth(exits: Sequence[int], depth: int | None) -> int:
    """The depth; None: the deepest exit. Raises ConfigError if it is not an exit."""
    if depth is not None and depth not in exits:
        raise ConfigError(f"depth {depth} is not an exit of this drafter; choose one of {list(exits)}")
    return depth or exits[-1]


def draft_policy(drafter: LocalDrafter | None, depth: int | None, length: int) -> Policy:
    """A fixed depth and length, or plain decoding without a drafter."""
    return Fixed(known_depth(drafter.exits, depth), length) if drafter else Off()


def open_drafter(
    model: TargetModel,
    target: Path,
    drafter: Path,
    *,
    dtype: torch.dtype,
    num_positions: int,
    page_size: int,
    max_rows: int,
    execution: Execution = Execution.AUTO,
    weights: WeightFormat = WeightFormat.STORED,
    translation: Translation | None = None,
) -> LocalDrafter:
    """target: the model's checkpoint. translation: to the vocabulary of a drafter that has another."""
    if (own := open_own(model, target, drafter, execution, weights)) is not None:
        return LocalDrafter(own, own.exits)
    nested = load_nested(
        drafter, dtype=dtype, num_positions=num_positions, page_size=page_size, execution=execution, weights=weights
    )
    worker = DraftWorker(nested, PoolLimits(max_rows=max_rows), time.monotonic)
    return LocalDrafter(reached(LocalDraftClient(worker, INCARNATION), translation), nested.exits)


def open_own(
    model: TargetModel, target: Path, drafter: Path, execution: Execution, weights: WeightFormat
) -> OwnDraftClient | None:
    """The drafter on the target's KV; None where it is another model, or leaves at exits before the last layer."""
    if not works_on(target, drafter):
        return None
    decoder = model.decoder
    own = load_decoder(drafter, dtype=decoder.dtype, device=decoder.device, execution=execution, weights=weights)
    return OwnDraftClient(model, own)


def works_on(target: Path, drafter: Path) -> bool:
    """Whether a drafter in the target's process works on its KV: all layers of the same model in other weights."""
    return drafter_exits(drafter) == (read_config(target).num_layers,) and are_siblings(target, drafter)
