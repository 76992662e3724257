"""How often SmolLM2's drafter picks what SmolLM2 writes, by exit, on Spec-Bench's first turns. Writes results and card.

Along the target's own answers, the drafter's pick under coupled noise (argmax at temperature 0) is compared with the
token that was written: the probability that a drafted token is accepted if all before it were.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.workload import SPEC_BENCH, PromptText, read_texts
from demo.cards import joined, machine, table
from demo.evaluate import accepted, by_exit
from demo.prepare import ROOT
from drafters.manifest import drafter_exits
from drafters.training.distil import continue_prompts
from model.decoder import Decoder
from model.files import resolve
from model.load import WeightFormat, load_decoder
from model.tokenizer import load_tokenizer
from protocol.request import SamplingParams

RESULTS = ROOT / "results" / "smollm2.json"
TEMPERATURES = (0.0, 0.7)
LONGEST = 512

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# A nested drafter for SmolLM2-135M-Instruct

The first {layers} layers of the model, trained further so that layers {exits} all exit through the final norm and an
LM head of {head:,} tokens. One drafter serves the dense weights and the quantized file alike. `draftpool train-drafter
demo/smollm2.yaml` made it from texts that the target wrote by itself (`demo/chats.py`): {steps} steps, {tokens:.2f} M
tokens, {minutes:.0f} minutes beside other work on {machine}.

## Accepted tokens

Along the target's own answers to Spec-Bench's first turns, which were never trained on (`{command}`): the share of
positions where the drafter's pick is the target's token, and the share of the target's tokens that the head has.

{rows}
"""


@dataclass(frozen=True)
class Pair:
    """A target, its drafter, and the end of an answer."""

    target: Decoder
    drafter: Decoder
    exits: tuple[int, ...]
    eos: int | None

    def accept(self, prompts: Sequence[Sequence[int]], temperature: float, new: int) -> dict[str, Any]:
        """Acceptance by exit over the target's answers of at most `new` tokens."""
        sampling = [SamplingParams(temperature=temperature, seed=seed) for seed in range(len(prompts))]
        lengths = [len(prompt) + new for prompt in prompts]
        hits, num_tokens, in_head = np.zeros(len(self.exits)), 0, 0
        head = set(self.drafter.config.head_token_ids) or set(range(self.drafter.config.vocab_size))
        for prompt, text, how in zip(
            prompts, continue_prompts(self.target, prompts, lengths, sampling), sampling, strict=True
        ):
            row_hits, count = accepted(self.drafter, self.exits, text, len(prompt), how, self.eos)
            hits, num_tokens = hits + row_hits, num_tokens + count
            in_head += sum(token in head for token in text[len(prompt) : len(prompt) + count])
        return {
            "accepted": by_exit(self.exits, hits / num_tokens),
            "in_head": round(in_head / num_tokens, 4),
            "tokens": num_tokens,
        }


def evaluate(pair: Pair, texts: Sequence[PromptText], per_category: int, new: int) -> dict[str, Any]:
    """Acceptance by category and temperature."""
    figures: dict[str, Any] = {}
    for category in sorted({text.category for text in texts}):
        own = [text.token_ids[:LONGEST] for text in texts if text.category == category]
        step = max(1, len(own) // per_category)
        prompts = own[::step][:per_category]
        figures[category] = {str(at): pair.accept(prompts, at, new) for at in TEMPERATURES}
    return figures


def write_card(folder: Path, results: dict[str, Any], pair: Pair, summary: dict[str, Any]) -> None:
    header = ["category", "temperature", *(f"exit {at}" for at in pair.exits), "in the head"]
    rows = [
        [category, at, *(f"{share:.1%}" for share in row["accepted"].values()), f"{row['in_head']:.1%}"]
        for category, temperatures in results["categories"].items()
        for at, row in temperatures.items()
    ]
    card = CARD.format(
        layers=pair.exits[-1],
        exits=joined(pair.exits),
        head=pair.drafter.config.head_size,
        steps=summary["steps"],
        tokens=summary["tokens"] / 1e6,
        minutes=summary["minutes"],
        machine=results["machine"],
        command=results["command"],
        rows=table(header, rows),
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    """Evaluates a drafter, and writes demo/results/smollm2.json and its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="the target: a GGUF file, a folder or a hub id")
    parser.add_argument("--drafter", default=str(ROOT / "models" / "smollm2-drafter"))
    parser.add_argument("--prompts", type=int, default=12, help="of each category")
    parser.add_argument("--new", type=int, default=96, help="tokens of each answer")
    parser.add_argument("--summary", type=Path, default=ROOT / ".work/smollm2/summary.json", help="of the training run")
    options = parser.parse_args()
    target, drafter = resolve(options.target), resolve(options.drafter)
    tokenizer = load_tokenizer(target)
    pair = Pair(
        load_decoder(target, dtype=torch.bfloat16, weights=WeightFormat.DENSE),
        load_decoder(drafter, dtype=torch.bfloat16),
        drafter_exits(drafter),
        tokenizer.eos_token_id,
    )
    results = {
        "command": f"python -m demo.evaluate_smollm2 --prompts {options.prompts} --new {options.new}",
        "machine": machine(),
        "categories": evaluate(pair, read_texts(SPEC_BENCH, tokenizer), options.prompts, options.new),
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    write_card(Path(options.drafter), results, pair, json.loads(options.summary.read_text()))


if __name__ == "__main__":
    main()
