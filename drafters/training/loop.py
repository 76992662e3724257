"""Trains a nested drafter from a configuration: prepare the rows, run the steps, export."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drafters.head import count_tokens, most_frequent
from drafters.training.base import build_model, check_vocabularies, head_columns, trim_head
from drafters.training.config import TrainDrafterConfig
from drafters.training.data import TokenRows, read_stream
from drafters.training.exits import exit_logits, pick_device
from drafters.training.export import export_drafter
from drafters.training.fit import fit
from drafters.training.losses import sorted_loss
from drafters.training.optim import build_optimisers
from drafters.training.rows import Mixture, corpus_rows, on_policy_rows
from model.ends import configured_eos

log = logging.getLogger(__name__)


def train(config: TrainDrafterConfig) -> Path:
    """Trains the drafter of `config`, continuing an earlier run that stopped. Returns the folder it is exported to."""
    tokenizer, schedule = config.base.checkpoint, config.schedule
    check_vocabularies(tokenizer, config.targets)
    stream = read_stream(config.corpus, tokenizer)
    mixture = Mixture(corpus_rows(config, stream), on_policy_rows(config, stream), schedule, config.seed)
    model = build_model(config.base, config.seed)
    if config.base.head_size is not None:
        counts = count_tokens(stream, model.config.vocab_size)
        trim_head(model, most_frequent(counts, config.base.head_size, configured_eos(tokenizer)))
    model.to(pick_device())
    optimisers, losses = build_optimisers(model, schedule), partial(step_losses, model, config, mixture)
    state = fit(model, optimisers, losses, schedule, config.work / "fit")
    export_drafter(model, tokenizer, config.output, config.exits, config.targets)
    tokens = state.step * schedule.parts * schedule.part_tokens
    summary = {"steps": state.step, "tokens": tokens, "minutes": state.seconds / 60}
    (config.work / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    log.info("%d steps in %.1f minutes; the drafter is in %s", state.step, state.seconds / 60, config.output)
    return config.output


def step_losses(model: Any, config: TrainDrafterConfig, mixture: Mixture, step: int) -> list[Callable[[], Tensor]]:
    """The losses of the parts of `step`, still to be computed; they add up to the mean over parts."""
    parts = mixture.step(step)
    return [partial(part_loss, model, config, part, 1 / len(parts)) for part in parts]


def part_loss(model: Any, config: TrainDrafterConfig, part: TokenRows, scale: float) -> Tensor:
    """`scale` times the sorted loss of one part, in nats per token."""
    tokens = torch.from_numpy(part.tokens.astype(np.int64)).to(model.device)
    logits = exit_logits(model, tokens, config.exits, getattr(torch, config.dtype))
    ids, teachers = (torch.from_numpy(side[:, :, :-1]).flatten(1, 2).to(model.device) for side in (part.ids, part.logp))
    flat = [at_exit[:, :-1].flatten(0, 1) for at_exit in logits]
    columns = head_columns(model)
    labels = columns[tokens[:, 1:].flatten()]
    return scale * sorted_loss(
        flat, labels, columns[ids.long()], teachers, config.distillation.weight, config.exit_weights
    )
