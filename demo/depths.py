"""S2D's table: the nested drafter of a recipe beside a drafter of each single depth that cost as much to train.

A drafter of one depth has fewer layers and one LM head to train, so it gets more steps. Along the targets' own answers
to first turns of Spec-Bench, the drafter's pick under coupled noise (argmax at temperature 0) is compared with what
was written: the probability that a drafted token is accepted if all before it were.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.workload import SPEC_BENCH, read_texts
from demo.cards import machine
from demo.evaluate import accepted, by_exit
from drafters.training.config import TrainDrafterConfig, load_config
from drafters.training.distil import continue_prompts, load_teacher
from drafters.training.loop import train
from model.decoder import Decoder
from model.load import load_decoder
from model.tokenizer import load_tokenizer
from protocol.request import SamplingParams

TEMPERATURES = (0.0, 0.7)
LONGEST = 512  # tokens of a prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a target wrote: prompt and answer, `start` tokens of prompt, and how it was sampled."""

    category: str
    tokens: list[int]
    start: int
    sampling: SamplingParams


def weights_trained(recipe: TrainDrafterConfig) -> int:
    """Weights that a token of training passes through: those of the layers, and the LM head once for each exit."""
    config = AutoConfig.from_pretrained(recipe.base.checkpoint)
    head = (recipe.base.head_size or config.vocab_size) * config.hidden_size
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        layer = auto.from_config(config).model.layers[0]
    in_layer = sum(parameter.numel() for parameter in layer.parameters())
    return int(in_layer * recipe.base.layers + head * len(recipe.exits))


def of_one_depth(recipe: TrainDrafterConfig, depth: int) -> TrainDrafterConfig:
    """The recipe of a drafter of `depth` layers with one exit, for the training cost of `recipe`."""
    name = f"depth-{depth}"
    single = recipe.model_copy(
        update={
            "output": recipe.output.with_name(f"{recipe.output.name}-{name}"),
            "work": recipe.work / name,
            "base": recipe.base.model_copy(update={"layers": depth}),
            "exits": (depth,),
            "exit_weights": (),
        }
    )
    steps = round(recipe.schedule.steps * weights_trained(recipe) / weights_trained(single))
    return single.model_copy(update={"schedule": recipe.schedule.model_copy(update={"steps": steps})})


def answers(target: Path, per_category: int, new: int) -> list[Answer]:
    """The target's answers of at most `new` tokens, by category and temperature."""
    model, texts = load_teacher(target), read_texts(SPEC_BENCH, load_tokenizer(target))
    found = []
    for category in sorted({text.category for text in texts}):
        own = [list(text.token_ids[:LONGEST]) for text in texts if text.category == category]
        prompts = own[:: max(1, len(own) // per_category)][:per_category]
        for temperature in TEMPERATURES:
            sampling = [SamplingParams(temperature=temperature, seed=seed) for seed in range(len(prompts))]
            written = continue_prompts(model, prompts, [len(prompt) + new for prompt in prompts], sampling)
            found += [
                Answer(category, tokens, len(prompt), how)
                for prompt, tokens, how in zip(prompts, written, sampling, strict=True)
            ]
    return found


def acceptance(
    drafter: Decoder, exits: Sequence[int], written: Sequence[Answer], eos: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    """By temperature, then by category and over all ("all"): the share of tokens that each exit picks as written."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for temperature in TEMPERATURES:
        hits, counts = np.zeros(len(exits)), 0
        rows = figures[str(temperature)] = {}
        for category, of_category in _grouped(written, temperature):
            seen = [
                accepted(drafter, exits, answer.tokens, answer.start, answer.sampling, eos) for answer in of_category
            ]
            own, count = np.sum([each for each, _ in seen], axis=0), sum(count for _, count in seen)
            rows[category] = by_exit(exits, own / count)
            hits, counts = hits + own, counts + count
        rows["all"] = by_exit(exits, hits / counts)
    return figures


def _grouped(written: Sequence[Answer], temperature: float) -> Iterator[tuple[str, list[Answer]]]:
    at = [answer for answer in written if answer.sampling.temperature == temperature]
    for category in sorted({answer.category for answer in at}):
        yield category, [answer for answer in at if answer.category == category]


def compare(recipe: TrainDrafterConfig, per_category: int, new: int) -> dict[str, Any]:
    """Trains what is not trained yet, and measures all drafters on all targets."""
    recipes = {"nested": recipe} | {f"depth {depth}": of_one_depth(recipe, depth) for depth in recipe.exits}
    figures: dict[str, Any] = {"training": {}, "acceptance": {}}
    for name, each in recipes.items():
        train(each)
        figures["training"][name] = json.loads((each.work / "summary.json").read_text())
    eos = load_tokenizer(recipe.base.checkpoint).eos_token_id
    written = {target.name: answers(target, per_category, new) for target in recipe.targets}
    for name, each in recipes.items():
        drafter = load_decoder(each.output, dtype=torch.bfloat16)
        figures["acceptance"][name] = {
            target: acceptance(drafter, each.exits, of_target, eos) for target, of_target in written.items()
        }
    return figures


def main() -> None:
    """Trains and measures the drafters of a recipe. Can be run again: what is trained stays."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("recipe", type=Path, help="the YAML file of the nested drafter")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file of the results")
    parser.add_argument("--prompts", type=int, default=4, help="of each category")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    options = parser.parse_args()
    figures = compare(load_config(options.recipe), options.prompts, options.new)
    command = f"python -m demo.depths {options.recipe} --prompts {options.prompts} --new {options.new}"
    options.out.write_text(json.dumps({"command": command, "machine": machine(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
