"""Stream heads for a finished drafter, taught by the drafter itself.

A guess is right when it is the exit's own pick one pass later (model/streams.py). So the teacher of stream s at a
position is the exit at the position s further on: KL(exit || stream), in nats, at every exit. The drafter is read and
never changed; what text it reads matters more than who wrote it, so the rows are those of its own training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drafters.manifest import STREAM_WEIGHTS, weight_name
from drafters.training.config import Streams, TrainDrafterConfig
from drafters.training.exits import autocast, head
from drafters.training.fit import FitOptions, FitState, fit
from drafters.training.optim import build_optimisers
from drafters.training.rows import Mixture, Part
from model.streams import StreamHead, next_state


class StreamHeads(nn.Module):
    """One head per exit and stream. A new one is the identity: it guesses the pick once more."""

    def __init__(self, exits: Sequence[int], hidden_size: int, options: Streams, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for at in exits:
            for stream in range(1, options.count + 1):
                inner = torch.randn(options.width, 2 * hidden_size, generator=generator) / (2 * hidden_size) ** 0.5
                self.register_parameter(weight_name(at, stream, "inner"), nn.Parameter(inner))
                outer = torch.zeros(hidden_size, options.width)
                self.register_parameter(weight_name(at, stream, "outer"), nn.Parameter(outer))

    def at(self, exit_: int, stream: int) -> StreamHead:
        """stream: from 1."""
        return StreamHead(*(self.get_parameter(weight_name(exit_, stream, part)) for part in StreamHead._fields))


class Body:
    """A finished drafter of the kind that transformers loads, which is only read. It is taken apart for that: its final
    norm is no longer part of its forward pass, since streams go on from hidden states as they are before the norm.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._norm = model.model.norm
        model.model.norm = nn.Identity()

    @property
    def device(self) -> torch.device:
        return self._model.device  # type: ignore[no-any-return]

    def embed(self, tokens: Tensor) -> Tensor:
        return self._model.get_input_embeddings()(tokens)  # type: ignore[no-any-return]

    def hidden(self, tokens: Tensor, exits: Sequence[int]) -> list[Tensor]:
        """[row, position, hidden] on leaving each exit."""
        states = self._model.model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
        return [states[at] for at in exits]

    def logits(self, hidden: Tensor) -> Tensor:
        return head(self._model, self._norm(hidden))


def train_streams(
    model: Any, config: TrainDrafterConfig, mixture: Mixture, *, progress: bool, stop_after: int | None
) -> tuple[StreamHeads, FitState]:
    """The heads of `config.streams`, going on where an earlier run stopped. `model` is of no use afterwards."""
    assert config.streams is not None, "only called where streams are asked for"
    options, schedule = config.streams, config.schedule
    body = Body(model)
    heads = StreamHeads(config.exits, model.config.hidden_size, options, config.seed).to(body.device)
    optimisers = build_optimisers(
        heads, matrix_lr=options.learning_rate, other_lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    fitting = FitOptions(
        options.steps,
        round(schedule.warm_up * options.steps),
        _place(config),
        workers=schedule.workers,
        pause=config.pause,
        stop_after=stop_after,
        progress=progress,
    )
    return heads, fit(heads, optimisers, partial(_step_losses, body, heads, config, mixture), fitting)


def stream_losses(body: Body, heads: StreamHeads, config: TrainDrafterConfig, tokens: Tensor) -> dict[str, Tensor]:
    """Mean KL(exit || stream) in nats by "exit.stream". tokens: [row, position], longer than there are streams."""
    assert config.streams is not None, "only called where streams are asked for"
    losses = {}
    with autocast(tokens.device, getattr(torch, config.dtype)):
        with torch.no_grad():
            states, embedded = body.hidden(tokens, config.exits), body.embed(tokens)
        for at, state in zip(config.exits, states, strict=True):
            with torch.no_grad():
                taught = body.logits(state).float().log_softmax(-1)
            for stream in range(1, config.streams.count + 1):
                state = next_state(heads.at(at, stream), state[:, :-1], embedded[:, stream:])
                guess = body.logits(state).float().log_softmax(-1)
                teacher = taught[:, stream:]
                losses[f"{at}.{stream}"] = (teacher.exp() * (teacher - guess)).sum(-1).mean()
    return losses


def export_streams(heads: StreamHeads, folder: Path) -> None:
    """Writes streams.safetensors, in bf16, beside the weights in `folder`."""
    weights = {name: value.to("cpu", torch.bfloat16) for name, value in heads.state_dict().items()}
    save_file(weights, folder / STREAM_WEIGHTS)


def _place(config: TrainDrafterConfig) -> Path:
    """Of the checkpoints: other heads than these, or those of another drafter, do not go on from them."""
    assert config.streams is not None, "only called where streams are asked for"
    settings = config.base, config.exits, config.streams.count, config.streams.width, config.seed
    return config.work / f"streams-{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}"


def _step_losses(
    body: Body, heads: StreamHeads, config: TrainDrafterConfig, mixture: Mixture, step: int
) -> list[Callable[[], Tensor]]:
    parts = mixture.step(step)
    return [partial(_part_loss, body, heads, config, part, 1 / len(parts)) for part in parts]


def _part_loss(body: Body, heads: StreamHeads, config: TrainDrafterConfig, part: Part, scale: float) -> Tensor:
    losses = stream_losses(body, heads, config, part.tokens.to(body.device))
    return scale * torch.stack(list(losses.values())).mean()
