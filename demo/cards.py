"""Writes the models' cards, which name the training data, the training time and the measured quality."""

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from demo.corpus import LICENCE, PYTHON
from demo.prepare import CORPUS_HASH, MODELS, ROOT
from drafters.training.config import TrainDrafterConfig, load_config

CARD = """---
license: apache-2.0
library_name: transformers
---

# DraftPool demo {kind} "{name}"

A Llama of {millions:.1f} M parameters ({layers} layers, hidden {hidden}) that completes Python code, of DraftPool's
demo family: small enough to be committed and to run on a CPU, and no more than that. Its first {exits} layers all exit
through the final norm and the LM head.

## Data

The source of the standard library of CPython {python} (licence {licence}), tests and generated tables left out.
About 4 % of the files, chosen by the hash of their path, are held out. sha256 of the corpus:
`{corpus}`.

Tokenizer: byte-level BPE, 4096 entries, line break and indentation in one token. Encoding adds no `<bos>`: prompts
are encoded as given. In training each file was `<bos>` text `<eos>`.

## Training

`draftpool train-drafter demo/{name}.yaml`: {steps} steps, {tokens:.2f} M tokens, {minutes:.0f} minutes
on {machine}, beside other work. The loss is the mean over exits{weights} of next-token loss{distillation}.

## Measured

Held-out text: next-token loss, and how often the exit's most likely token is the target's.

{held_out}
"""

DISTILLATION = """ plus {weight} times
the KL divergence from the targets' outputs. {share:.0%} of the tokens are the targets' own continuations of prompts
from the training files (each taught by its own target), the rest is corpus text (taught by both)"""

CONTINUATIONS = """
Along the targets' own continuations of held-out prompts (`{command}`): the share of positions where the drafter's pick
under coupled sampling is the target's, and the share of repeated 8-grams in that text.

{table}
"""


def machine() -> str:
    """A short description of this computer, with versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    cpu = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of {cpu} (torch {torch.__version__}, transformers {transformers.__version__})"


def write_card(name: str, results: dict[str, Any]) -> None:
    """Writes README.md of a model from its recipe, its training run and the figures of `demo.evaluate`."""
    folder, config = MODELS / name, load_config(ROOT / f"{name}.yaml")
    summary = json.loads((config.work / "summary.json").read_text())
    card = CARD.format(
        kind="target" if name in results["targets"] else "drafter",
        name=name,
        millions=sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) / 1e6,
        layers=config.base.layers,
        hidden=config.base.fresh and config.base.fresh.hidden_size,
        exits=joined(config.exits),
        python=PYTHON,
        licence=LICENCE,
        corpus=CORPUS_HASH.read_text(),
        steps=summary["steps"],
        tokens=summary["tokens"] / 1e6,
        minutes=summary["minutes"],
        machine=results["machine"],
        weights=f" (weights {joined(config.exit_weights)})" if config.exit_weights else "",
        distillation=distillation(config),
        held_out=held_out_table(results["targets"].get(name, results["held_out"])),
    )
    if name not in results["targets"]:
        card += CONTINUATIONS.format(command=results["command"], table=continuation_table(results["continuations"]))
    (folder / "README.md").write_text(card)


def distillation(config: TrainDrafterConfig) -> str:
    if not config.targets:
        return ""
    return DISTILLATION.format(weight=config.distillation.weight, share=config.schedule.on_policy_share)


def held_out_table(figures: dict[str, Any]) -> str:
    agreement = figures["greedy_agreement"]
    rows = [
        [at, f"{loss:.3f}", *(f"{shares[at]:.1%}" for shares in agreement.values())]
        for at, loss in figures["loss"].items()
    ]
    return table(["exit", "loss, nats", *(f"agrees with {name}" for name in agreement)], rows)


def continuation_table(figures: dict[str, Any]) -> str:
    rows, exits = [], []
    for name, temperatures in figures.items():
        for temperature, row in temperatures.items():
            exits = [f"exit {at}" for at in row["accepted"]]
            shares = [*row["accepted"].values(), row["repeated_8grams"]]
            rows.append([name, temperature, *(f"{share:.1%}" for share in shares)])
    return table(["target", "temperature", *exits, "repeated 8-grams"], rows)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def joined(values: Iterable[float]) -> str:
    return ", ".join(map(str, values))
