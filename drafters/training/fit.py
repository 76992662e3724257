"""One resumable training loop for every model of the project.

What is trained comes in as a function from the step number to the losses of that step. Data order,
schedule and losses depend on the step number alone, so that a run that was stopped and resumed ends
with the same weights as one that was not.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from drafters.training.optim import lr_factor, set_rates

log = logging.getLogger(__name__)

Losses = Callable[[int], Sequence[Callable[[], Tensor]]]
"""From a step number to its parts, each of which computes a loss; gradients of parts add up."""


@dataclass(frozen=True)
class FitOptions:
    """How long to train and where to keep the state; `work` is never committed."""

    steps: int
    warm_up: int
    work: Path
    clip: float = 1.0
    checkpoint_seconds: float = 120.0
    evaluate_every: int = 50
    workers: int = 1
    pause: Path | None = None
    stop_after: int | None = None
    progress: bool = True


@dataclass
class FitState:
    """Progress of a run: steps done, seconds spent training, and the last held-out figures."""

    step: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    optimisers: list[Optimizer],
    losses: Losses,
    options: FitOptions,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> FitState:
    """Trains `model` up to `options.steps`, starting from the checkpoint in `options.work`."""
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.work / "checkpoint.pt"
    state = restore(model, optimisers, checkpoint)
    last = options.steps if options.stop_after is None else min(options.stop_after, options.steps)
    saved = time.monotonic()
    model.train()
    bar = tqdm(total=options.steps, initial=state.step, disable=not options.progress)
    with bar, ThreadPoolExecutor(options.workers) as pool:
        while state.step < last:
            wait_while_paused(options.pause)
            started = time.monotonic()
            loss = train_step(model, optimisers, losses, state.step, options, pool)
            state.step += 1
            state.seconds += time.monotonic() - started
            bar.update()
            bar.set_postfix({name: f"{value:.3f}" for name, value in {"loss": loss, **state.figures}.items()})
            if is_due(state.step, options):
                state.figures = evaluate() if evaluate else {}
                model.train()
                record(options.work, state, loss)
            if time.monotonic() - saved > options.checkpoint_seconds:
                save(model, optimisers, state, checkpoint)
                saved = time.monotonic()
    save(model, optimisers, state, checkpoint)
    return state


def train_step(
    model: nn.Module,
    optimisers: list[Optimizer],
    losses: Losses,
    step: int,
    options: FitOptions,
    pool: ThreadPoolExecutor,
) -> float:
    """One update of the weights; the summed loss of its parts.

    Parts run on separate threads with one core each: on a CPU that others use too, many small
    kernels that all cores must finish together are several times slower. Sums keep their order.
    """
    set_rates(optimisers, lr_factor(step, options.steps, options.warm_up))
    parameters = list(model.parameters())

    def run(part: Callable[[], Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        loss = part()
        return loss.item(), torch.autograd.grad(loss, parameters)

    total = 0.0
    for loss, gradients in pool.map(run, losses(step)):
        total += loss
        accumulate(parameters, gradients)
    nn.utils.clip_grad_norm_(parameters, options.clip)
    list(pool.map(lambda optimiser: optimiser.step(), optimisers))
    for parameter in parameters:
        parameter.grad = None
    return total


def accumulate(parameters: list[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Adds `gradients` to the parameters' own, in place."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad += gradient


def is_due(step: int, options: FitOptions) -> bool:
    return step % options.evaluate_every == 0 or step == options.steps


def wait_while_paused(pause: Path | None) -> None:
    """Blocks for as long as the file `pause` exists."""
    if pause is None or not pause.exists():
        return
    log.info("paused by %s", pause)
    while pause.exists():
        time.sleep(0.5)
    log.info("resumed")


def record(work: Path, state: FitState, loss: float) -> None:
    """Appends one line of figures to `log.jsonl` in the work folder."""
    line = {"step": state.step, "seconds": round(state.seconds, 1), "loss": loss, **state.figures}
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    tqdm.write(json.dumps(line))


def save(model: nn.Module, optimisers: list[Optimizer], state: FitState, path: Path) -> None:
    """Writes the whole state of the run, replacing the old one in a single rename."""
    partial = path.with_suffix(".partial")
    content: dict[str, Any] = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "step": state.step,
        "seconds": state.seconds,
        "figures": state.figures,
        "rng": torch.get_rng_state(),
    }
    torch.save(content, partial)
    os.replace(partial, path)


def restore(model: nn.Module, optimisers: list[Optimizer], path: Path) -> FitState:
    """The state saved at `path`, loaded into model and optimisers; a fresh one if there is none."""
    if not path.exists():
        return FitState()
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
    for optimiser, saved in zip(optimisers, content["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    torch.set_rng_state(content["rng"])
    log.info("resumed at step %d from %s", content["step"], path)
    return FitState(content["step"], content["seconds"], content["figures"])
