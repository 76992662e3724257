"""Measures the demo models, and writes results/evaluation.json and the models' cards.

On held-out text: the loss of every exit, and how often its most likely token is a target's. Along each target's own
continuations of held-out prompts: how often the drafter's pick is the target's under shared noise (coupled sampling;
argmax at temperature 0). This is the probability that a drafted token is accepted if all before it were. It comes with
the share of repeated 8-grams, because greedy text of a small model loops, and loops are easy to draft.
"""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from demo.cards import machine, write_card
from demo.prepare import HELD_OUT, MODELS, ROOT
from drafters.training.config import Corpus, load_config
from drafters.training.data import TokenRows, read_stream
from drafters.training.distil import continue_prompts, load_teacher, logits_at
from model.decoder import Decoder
from model.tokenizer import load_tokenizer
from protocol.request import SamplingParams

RESULTS = ROOT / "results" / "evaluation.json"
PROMPTS = ROOT / "prompts" / "heldout.jsonl"
TEMPERATURES = (0.0, 0.8)
SEQUENCE, EVERY = 512, 4
GROUP = 32
NGRAM = 8


def on_held_out(
    model: Decoder, exits: Sequence[int], targets: Mapping[str, Decoder], rows: Sequence[list[int]]
) -> dict[str, Any]:
    """For each exit, the loss in nats and the agreement of its argmax with each target's."""
    losses, agreement = np.zeros(len(exits)), {name: np.zeros(len(exits)) for name in targets}
    for row in rows:
        picks = {name: last_logits(target, row).argmax(-1) for name, target in targets.items()}
        for index, logits in enumerate(logits_at(model, row, exits)):
            losses[index] += cross_entropy(logits[:-1], torch.tensor(row[1:], device=logits.device)).item()
            for name, pick in picks.items():
                agreement[name][index] += (logits.argmax(-1) == pick).float().mean().item()
    return {
        "loss": by_exit(exits, losses / len(rows)),
        "greedy_agreement": {name: by_exit(exits, shares / len(rows)) for name, shares in agreement.items()},
    }


def last_logits(model: Decoder, tokens: Sequence[int]) -> torch.Tensor:
    return next(logits_at(model, tokens, [model.config.num_layers]))


def on_continuations(
    drafter: Decoder, exits: Sequence[int], target: Decoder, prompts: Sequence[list[int]], new: int, eos: int | None
) -> dict[str, Any]:
    """For each temperature: acceptance rate by exit, number of tokens, and share of repeated 8-grams."""
    figures = {}
    for temperature in TEMPERATURES:
        sampling = [SamplingParams(temperature=temperature, seed=seed) for seed in range(len(prompts))]
        hits, num_tokens, repeated = np.zeros(len(exits)), 0, 0.0
        for first in range(0, len(prompts), GROUP):
            group, params = prompts[first : first + GROUP], sampling[first : first + GROUP]
            texts = continue_prompts(target, group, [len(prompt) + new for prompt in group], params)
            for text, prompt, how in zip(texts, group, params, strict=True):
                row_hits, count = accepted(drafter, exits, text, len(prompt), how, eos)
                hits, num_tokens = hits + row_hits, num_tokens + count
                repeated += repeated_share(text, len(prompt))
        figures[str(temperature)] = {
            "accepted": by_exit(exits, hits / num_tokens),
            "tokens": num_tokens,
            "repeated_8grams": round(repeated / len(prompts), 4),
        }
    return figures


def accepted(
    drafter: Decoder, exits: Sequence[int], text: list[int], start: int, sampling: SamplingParams, eos: int | None
) -> tuple[NDArray[np.int64], int]:
    """(accepted tokens [exit], drafted tokens), over the tokens of `text` from `start` to its first `eos`."""
    end = text.index(eos, start) + 1 if eos in text[start:] else len(text)
    positions = range(start, end)
    hits = []
    for logits in logits_at(drafter, text[: end - 1], exits):
        picks = drafter.pick(logits[start - 1 :], [sampling] * len(positions), positions)
        hits.append(sum(pick == token for pick, token in zip(picks, text[start:end], strict=True)))
    return np.array(hits), len(positions)


def repeated_share(text: list[int], start: int) -> float:
    """The share of positions from `start` on where an 8-gram ends that occurred earlier in the text."""
    seen: set[tuple[int, ...]] = set()
    repeated = 0
    for end in range(NGRAM, len(text) + 1):
        gram = tuple(text[end - NGRAM : end])
        repeated += gram in seen and end > start
        seen.add(gram)
    return repeated / (len(text) - max(start, NGRAM - 1))


def by_exit(exits: Sequence[int], values: NDArray[np.float64]) -> dict[str, float]:
    return {str(at): round(value, 4) for at, value in zip(exits, values.tolist(), strict=True)}


def evaluate(num_prompts: int, new: int) -> dict[str, Any]:
    """All figures of the family."""
    models = {name: load_teacher(MODELS / name) for name in ("large", "small", "drafter")}
    exits = {name: load_config(ROOT / f"{name}.yaml").exits for name in models}
    tokenizer = load_tokenizer(MODELS / "drafter")
    lines = PROMPTS.read_text().splitlines()[:num_prompts]
    prompts = [tokenizer.encode(json.loads(line)["prompt"]) for line in lines]
    stream = read_stream(Corpus(files=[HELD_OUT]), MODELS / "drafter")
    rows = TokenRows.without_teachers(stream, SEQUENCE).tokens[::EVERY].tolist()
    targets = {name: models[name] for name in ("large", "small")}
    drafter = models["drafter"], exits["drafter"]
    return {
        "command": f"python -m demo.evaluate --prompts {num_prompts} --new {new}",
        "machine": machine(),
        "held_out": on_held_out(*drafter, targets, rows),
        "targets": {name: on_held_out(target, exits[name], {name: target}, rows) for name, target in targets.items()},
        "continuations": {
            name: on_continuations(*drafter, target, prompts, new, tokenizer.eos_token_id)
            for name, target in targets.items()
        },
    }


def main() -> None:
    """Evaluates the models in demo/models, and writes the results and the models' cards."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts to continue")
    parser.add_argument("--new", type=int, default=128, help="tokens of each continuation")
    options = parser.parse_args()
    results = evaluate(options.prompts, options.new)
    text = json.dumps(results, indent=2)
    RESULTS.write_text(f"{text}\n")
    for name in ("large", "small", "drafter"):
        write_card(name, results)
    logging.info("%s", text)


if __name__ == "__main__":
    main()
