"""A resumable training loop.

The losses of a step come from a function of the step number. Data order, schedule and losses depend on that number
alone, so a run that was stopped and resumed ends with the same weights as one that was not.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from drafters.training.config import TrainingSchedule
from drafters.training.optim import lr_factor, set_rates

CHECKPOINT_SECONDS = 120.0
LOG_STEPS = 50
CLIP = 1.0

log = logging.getLogger(__name__)

Losses = Callable[[int], Sequence[Callable[[], Tensor]]]
"""From a step number to its parts, each of which computes a loss; gradients of parts add up."""


@dataclass
class FitState:
    """Progress of a run: steps done, and seconds spent in them."""

    step: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module, optimisers: list[Optimizer], losses: Losses, schedule: TrainingSchedule, work: Path
) -> FitState:
    """Trains `model` for the steps of the schedule, from the checkpoint in `work` if there is one."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    state = restore(model, optimisers, checkpoint)
    saved = time.monotonic()
    model.train()
    bar = tqdm(total=schedule.steps, initial=state.step)
    cores = max(1, torch.get_num_threads() // schedule.workers)
    with bar, ThreadPoolExecutor(schedule.workers, initializer=torch.set_num_threads, initargs=(cores,)) as pool:
        while state.step < schedule.steps:
            started = time.monotonic()
            loss = train_step(model, optimisers, losses, schedule, state.step, pool)
            state.step += 1
            state.seconds += time.monotonic() - started
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            if state.step % LOG_STEPS == 0 or state.step == schedule.steps:
                record(work, state, loss)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS or state.step == schedule.steps:
                save(model, optimisers, state, checkpoint)
                saved = time.monotonic()
    return state


def train_step(
    model: nn.Module,
    optimisers: list[Optimizer],
    losses: Losses,
    schedule: TrainingSchedule,
    step: int,
    pool: ThreadPoolExecutor,
) -> float:
    """One update of the weights; returns the summed loss of its parts.

    Parts run on separate threads: on a CPU, many small kernels that all cores must finish together are slower. Sums
    keep their order.
    """
    set_rates(optimisers, lr_factor(step, schedule.steps, round(schedule.warm_up * schedule.steps)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(part: Callable[[], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        loss = part()
        return loss.item(), torch.autograd.grad(loss, parameters)

    total = 0.0
    for loss, gradients in pool.map(run, losses(step)):
        total += loss
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    nn.utils.clip_grad_norm_(parameters, CLIP)
    list(pool.map(lambda optimiser: optimiser.step(), optimisers))
    model.zero_grad()
    return total


def record(work: Path, state: FitState, loss: float) -> None:
    """Appends one line of figures to `log.jsonl` in the work folder."""
    line = json.dumps({"step": state.step, "seconds": round(state.seconds, 1), "loss": loss})
    with (work / "log.jsonl").open("a") as file:
        file.write(f"{line}\n")
    log.info("%s", line)


def save(model: nn.Module, optimisers: list[Optimizer], state: FitState, path: Path) -> None:
    """Writes the whole state of the run, replacing the old one in a single rename."""
    partial = path.with_suffix(".partial")
    content = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "state": asdict(state),
    }
    torch.save(content, partial)
    os.replace(partial, path)


def restore(model: nn.Module, optimisers: list[Optimizer], path: Path) -> FitState:
    """The state saved at `path`, loaded into model and optimisers; a fresh one if there is none."""
    if not path.exists():
        return FitState()
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
    for optimiser, saved in zip(optimisers, content["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    log.info("resumed at step %d from %s", content["state"]["step"], path)
    return FitState(**content["state"])
