"""Measures the drafter against both targets, writes results/evaluation.json and the drafter's card.

Two figures per exit and target: greedy agreement on held-out text, and the acceptance rate on the target's
continuations of held-out prompts at temperatures 0 and 0.8 (`demo.acceptance`). The latter comes with the share of
repeated 8-grams, because greedy text of a small model loops, and loops are easy to draft.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from demo.acceptance import accepted, continue_prompts, groups, repeated
from demo.cards import machine, write_drafter_card
from demo.prepare import MODELS, ROOT, load_data
from demo.tokenizer import EOS, load_tokenizer
from drafters.manifest import Manifest
from drafters.training.exits import exit_logits
from drafters.training.stream import cut

TEMPERATURES = (0.0, 0.8)
SEQUENCE = 512


def load(folder: Path) -> Any:
    """A model of the family, in bf16 and ready for inference."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    return model.eval()


@torch.inference_mode()
def on_held_out(drafter: Any, exits: Sequence[int], targets: dict[str, Any]) -> dict[str, Any]:
    """For each exit, the loss in nats and the agreement of its argmax with each target's, on held-out text."""
    stream = load_data().held_out
    rows = cut(stream, range(0, len(stream) - SEQUENCE, 4 * SEQUENCE), SEQUENCE)
    losses = torch.zeros(len(exits))
    same = {name: torch.zeros(len(exits)) for name in targets}
    parts = torch.split(rows, 4)
    for part in tqdm(parts, desc="held-out text"):
        logits = [at_exit[:, :-1].float() for at_exit in exit_logits(drafter, part, exits, torch.float32)]
        labels = part[:, 1:].flatten()
        losses += torch.stack([torch.nn.functional.cross_entropy(x.flatten(0, 1), labels) for x in logits])
        for name, target in targets.items():
            picks = target(input_ids=part[:, :-1], use_cache=False).logits.argmax(-1)
            same[name] += torch.stack([(x.argmax(-1) == picks).float().mean() for x in logits])
    return {
        "loss": by_exit(exits, losses / len(parts)),
        "greedy_agreement": {name: by_exit(exits, counts / len(parts)) for name, counts in same.items()},
    }


def on_continuations(
    drafter: Any, exits: Sequence[int], target: Any, prompts: Sequence[list[int]], new: int, eos: int | None
) -> dict[str, Any]:
    """For each temperature: acceptance rate by exit, number of tokens, and share of repeated 8-grams."""
    found = {}
    for temperature in TEMPERATURES:
        counts, num_drafted, shares = torch.zeros(len(exits), dtype=torch.long), 0, []
        for tokens, seeds in tqdm(list(groups(prompts)), desc=f"continuations at {temperature}"):
            text = continue_prompts(target, tokens, seeds, new, temperature)
            hits, number = accepted(drafter, exits, text, eos)
            counts, num_drafted = counts + hits, num_drafted + number
            shares.append(repeated(text) * len(tokens))
        found[str(temperature)] = {
            "accepted": by_exit(exits, counts / num_drafted),
            "tokens": num_drafted,
            "repeated_8grams": round(sum(shares) / len(prompts), 4),
        }
    return found


def by_exit(exits: Sequence[int], values: torch.Tensor) -> dict[str, float]:
    return {str(at): round(value, 4) for at, value in zip(exits, values.tolist(), strict=True)}


def read_prompts(folder: Path, count: int) -> list[list[int]]:
    """The first `count` committed prompts as token ids."""
    tokenizer = load_tokenizer(folder)
    lines = (ROOT / "prompts" / "heldout.jsonl").read_text().splitlines()[:count]
    return [tokenizer.encode(json.loads(line)["prompt"]).ids for line in lines]


def evaluate(folder: Path, names: Sequence[str], count: int, new: int) -> dict[str, Any]:
    """All figures of the drafter in `folder` against the targets called `names`."""
    drafter, exits = load(folder), Manifest.load(folder).exits
    targets = {name: load(MODELS / name) for name in names}
    eos = load_tokenizer(folder).token_to_id(EOS)
    prompts = read_prompts(folder, count)
    return {
        "command": f"python -m demo.evaluate --prompts {count} --new {new}",
        "machine": machine(),
        "held_out": on_held_out(drafter, exits, targets),
        "continuations": {
            name: on_continuations(drafter, exits, target, prompts, new, eos) for name, target in targets.items()
        },
    }


def main() -> None:
    """Evaluates demo/models/drafter and writes the results and its card."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--drafter", type=Path, default=MODELS / "drafter")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts to continue")
    parser.add_argument("--new", type=int, default=128, help="tokens of each continuation")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "evaluation.json")
    options = parser.parse_args()
    results = evaluate(options.drafter, ("large", "small"), options.prompts, options.new)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    if options.drafter == MODELS / "drafter":
        write_drafter_card(results)
    logging.info("%s", json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
