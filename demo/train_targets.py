"""Trains a target of the demo family: a small Llama with a lightly trained exit at half depth.

The loss is the last layer's next-token loss plus 0.1 times that of the hidden state at half depth, which goes through
the same final norm and LM head. Without it, early exits of the target would be useless (drafting ahead uses them).
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from demo.cards import export_target
from demo.prepare import WORK, Data, load_data
from drafters.training.exits import exit_logits, pick_device
from drafters.training.fit import FitOptions, FitState, fit
from drafters.training.optim import build_optimisers
from drafters.training.stream import RowSampler, cut

SEQUENCE = 512
ROWS = 16
MICRO_ROWS = 4
HALF_WEIGHT = 0.1
MATRIX_LR, OTHER_LR, WEIGHT_DECAY = 0.02, 0.003, 0.05


@dataclass(frozen=True)
class TrainedTarget:
    """One entry of targets.yaml: the shape of a target and its number of training steps."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    steps: int
    seed: int

    @property
    def exits(self) -> tuple[int, int]:
        return self.num_hidden_layers // 2, self.num_hidden_layers


def read_config(name: str) -> TrainedTarget:
    """The entry `name` of targets.yaml."""
    entries = yaml.safe_load((Path(__file__).parent / "targets.yaml").read_text())
    if name not in entries:
        raise ValueError(f"unknown target {name!r}: targets.yaml has {', '.join(entries)}")
    return TrainedTarget(**entries[name])


def build_target(config: TrainedTarget) -> Any:
    """A new model whose layers start as the identity (output projections are zero)."""
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats of tokens[:, 1:] under logits[:, :-1]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def held_out_figures(model: Any, data: Data, exits: tuple[int, int]) -> dict[str, float]:
    """Held-out loss of both exits, and the share of half-depth picks that equal the last layer's."""
    model.eval()
    rows = cut(data.held_out, range(0, len(data.held_out) - SEQUENCE, 4 * SEQUENCE), SEQUENCE)
    losses, half_losses, agreements = [], [], []
    with torch.inference_mode():
        for part in torch.split(rows.to(model.device), MICRO_ROWS):
            half, last = exit_logits(model, part, exits, torch.bfloat16)
            losses.append(next_token_loss(last, part).item())
            half_losses.append(next_token_loss(half, part).item())
            agreements.append((half.argmax(-1) == last.argmax(-1)).float().mean().item())
    return {
        "held_out": sum(losses) / len(losses),
        "held_out_half": sum(half_losses) / len(losses),
        "agreement": sum(agreements) / len(losses),
    }


def train_target(name: str) -> tuple[Any, FitState]:
    """Trains target `name` and returns it; resumes an interrupted training."""
    config, data = read_config(name), load_data()
    model = build_target(config).to(pick_device())
    model.set_attn_implementation("eager")
    sampler = RowSampler(len(data.training), SEQUENCE, ROWS, config.seed)

    def part_loss(part: Tensor) -> Tensor:
        half, last = exit_logits(model, part, config.exits, torch.bfloat16)
        loss = next_token_loss(last, part) + HALF_WEIGHT * next_token_loss(half, part)
        return loss * (len(part) / ROWS)

    def losses(step: int) -> list[Callable[[], Tensor]]:
        rows = cut(data.training, sampler.starts(step), SEQUENCE).to(model.device)
        return [partial(part_loss, part) for part in torch.split(rows, MICRO_ROWS)]

    optimisers = build_optimisers(model, matrix_lr=MATRIX_LR, other_lr=OTHER_LR, weight_decay=WEIGHT_DECAY)
    options = FitOptions(config.steps, config.steps // 20, WORK / name, workers=2, pause=WORK / "PAUSE")
    state = fit(model, optimisers, losses, options, lambda: held_out_figures(model, data, config.exits))
    return model, state


def main() -> None:
    """Trains one target into demo/.work and exports it to demo/models."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", choices=["large", "small"])
    name = parser.parse_args().name
    model, state = train_target(name)
    export_target(name, model, state)


if __name__ == "__main__":
    main()
