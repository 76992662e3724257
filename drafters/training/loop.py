"""Trains a nested drafter from a configuration: prepare the rows, run the steps, export."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters.training.base import build_model, check_vocabularies, tokenizer_folder
from drafters.training.config import TrainDrafterConfig
from drafters.training.data import read_stream
from drafters.training.exits import exit_logits, pick_device
from drafters.training.export import export_drafter
from drafters.training.fit import FitOptions, FitState, fit
from drafters.training.losses import sorted_loss
from drafters.training.optim import build_optimisers
from drafters.training.rows import Mixture, Part, prepare_mixture

log = logging.getLogger(__name__)


def train(config: TrainDrafterConfig, *, progress: bool = True, stop_after: int | None = None) -> Path:
    """Trains the drafter of `config`, going on where an earlier run stopped; the folder it is exported to.

    `stop_after` ends this run at that step. What is exported then is a drafter too, but not a finished one.
    """
    tokenizer = tokenizer_folder(config)
    check_vocabularies(tokenizer, config.targets)
    model = build_model(config).to(pick_device())
    mixture = prepare_mixture(config, read_stream(config.corpus, tokenizer))
    state = run(model, config, mixture, progress=progress, stop_after=stop_after)
    export_drafter(model, tokenizer, config.output, config.exits, config.targets)
    summary = {
        "steps": state.step,
        "tokens": state.step * config.schedule.parts * config.schedule.part_tokens,
        "minutes": state.seconds / 60,
    }
    (config.work / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    log.info("%d steps in %.1f minutes; the drafter is in %s", state.step, state.seconds / 60, config.output)
    return config.output


def run(
    model: Any, config: TrainDrafterConfig, mixture: Mixture, *, progress: bool, stop_after: int | None
) -> FitState:
    """The steps of the schedule that are still to do."""
    schedule = config.schedule
    optimisers = build_optimisers(
        model,
        matrix_lr=schedule.matrix_learning_rate,
        other_lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
    )
    options = FitOptions(
        schedule.steps,
        round(schedule.warm_up * schedule.steps),
        config.work / "fit",
        workers=schedule.workers,
        pause=config.pause,
        stop_after=stop_after,
        progress=progress,
    )
    return fit(model, optimisers, partial(step_losses, model, config, mixture), options)


def step_losses(model: Any, config: TrainDrafterConfig, mixture: Mixture, step: int) -> list[Callable[[], Tensor]]:
    """The losses of the parts of `step`, still to be computed; they add up to the mean over parts."""
    parts = mixture.step(step)
    return [partial(part_loss, model, config, part, 1 / len(parts)) for part in parts]


def part_loss(model: Any, config: TrainDrafterConfig, part: Part, scale: float) -> Tensor:
    """`scale` times the sorted loss of one part, in nats a token."""
    tokens = part.tokens.to(model.device)
    logits = exit_logits(model, tokens, config.exits, getattr(torch, config.dtype))
    ids, teachers = (side[:, :, :-1].flatten(1, 2).to(model.device) for side in (part.ids, part.logp))
    flat = [at_exit[:, :-1].flatten(0, 1) for at_exit in logits]
    return scale * sorted_loss(flat, tokens[:, 1:].flatten(), ids, teachers, config.distillation.weight)
