"""Exports models with cards, which name the training data, the training time and the measured quality."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from demo.corpus import LICENCE, PYTHON
from demo.prepare import MODELS, ROOT, TOKENIZER, load_data
from drafters.training.config import load_config
from drafters.training.export import export_checkpoint
from drafters.training.fit import FitState

STEP_TOKENS = 8192

DATA = f"""## Data

The source of the standard library of CPython {PYTHON} (licence {LICENCE}), tests and generated tables left out.
About 4 % of the files, chosen by the hash of their path, are held out. sha256 of the corpus:
`{{sha256}}`.

Tokenizer: byte-level BPE, 4096 entries, line break and indentation in one token. Encoding adds no `<bos>`: prompts
are encoded as given. In training each file was `<bos>` text `<eos>`.
"""

TARGET = """---
license: apache-2.0
library_name: transformers
---

# DraftPool demo target "{name}"

A Llama of {parameters:.1f} M parameters ({layers} layers, hidden {hidden}) that completes Python code. It is one of the
two targets of DraftPool's demo family: small enough to be committed and to run on a CPU, and no more than that.

{data}
## Training

`python -m demo.train_targets {name}`: {steps} steps of {step_tokens} tokens, {tokens:.2f} M tokens in all, rows of 512,
bf16 autocast, Muon and AdamW. The hidden state at half depth goes through the same norm and head with a loss weight
of 0.1. Wall time {minutes:.0f} minutes on {machine}, beside other work.

## Held-out text

| | |
| --- | --- |
| next-token loss, nats | {held_out:.3f} |
| next-token loss of the exit after {half} layers, nats | {held_out_half:.3f} |
| that exit's pick is the last layer's | {agreement:.1%} |
"""


def machine() -> str:
    """A short description of this computer, with versions."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = os.cpu_count()
    return f"{cores} cores of {model} (torch {torch.__version__}, transformers {transformers.__version__})"


def export_target(name: str, model: Any, state: FitState) -> Path:
    """Writes the trained target and its card to demo/models."""
    folder, config = MODELS / name, model.config
    export_checkpoint(model, TOKENIZER, folder)
    card = TARGET.format(
        name=name,
        parameters=model.num_parameters() / 1e6,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        half=config.num_hidden_layers // 2,
        data=data_section(),
        steps=state.step,
        step_tokens=STEP_TOKENS,
        tokens=state.step * STEP_TOKENS / 1e6,
        minutes=state.seconds / 60,
        machine=machine(),
        **state.figures,
    )
    (folder / "README.md").write_text(card)
    return folder


def data_section() -> str:
    """The paragraphs about data and tokenizer that all cards share."""
    return DATA.format(sha256=load_data().corpus_sha256)


DRAFTER = """---
license: apache-2.0
library_name: transformers
---

# DraftPool demo drafter

A Llama of {parameters:.1f} M parameters ({layers} layers, hidden {hidden}) whose first {exits} layers are each a
drafter: all exits share the final norm and the LM head (`draftpool.json`). It drafts for both demo targets, `large`
and `small`.

{data}
## Training

`draftpool train-drafter demo/drafter.yaml`: {steps} steps, {millions:.2f} M tokens, {minutes:.0f} minutes
on {machine}, beside other work. Sorted fine-tuning: the mean over exits of next-token loss plus {weight} times
the KL divergence from the targets' outputs. {share:.0%} of the tokens are the targets' own continuations of prompts
from the training files (each taught by its own target), the rest is corpus text (taught by both).

## Measured

Held-out text: next-token loss, and how often the exit's most likely token is the target's.

{held_out}

Along the targets' own continuations of held-out prompts ({command}): the share of positions where the drafter's pick
under coupled sampling is the target's, and the share of repeated 8-grams in that text.

{continuations}
"""


def write_drafter_card(results: dict[str, Any]) -> None:
    """Writes README.md of the drafter from the figures of `demo.evaluate`."""
    folder = MODELS / "drafter"
    config = load_config(ROOT / "drafter.yaml")
    shape = AutoConfig.from_pretrained(folder)
    summary = json.loads((config.work / "summary.json").read_text())
    card = DRAFTER.format(
        parameters=sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) / 1e6,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        exits=", ".join(str(at) for at in config.exits),
        data=data_section(),
        machine=results["machine"],
        weight=config.distillation.weight,
        share=config.schedule.on_policy_share,
        held_out=_held_out_table(results["held_out"]),
        continuations=_continuation_table(results["continuations"]),
        command=f"`{results['command']}`",
        steps=summary["steps"],
        millions=summary["tokens"] / 1e6,
        minutes=summary["minutes"],
    )
    (folder / "README.md").write_text(card)


def _held_out_table(figures: dict[str, Any]) -> str:
    names = list(figures["greedy_agreement"])
    lines = [f"| exit | loss, nats | {' | '.join(f'agrees with {name}' for name in names)} |"]
    lines.append("| --- " * (2 + len(names)) + "|")
    for at, loss in figures["loss"].items():
        shares = " | ".join(f"{figures['greedy_agreement'][name][at]:.1%}" for name in names)
        lines.append(f"| {at} | {loss:.3f} | {shares} |")
    return "\n".join(lines)


def _continuation_table(figures: dict[str, Any]) -> str:
    exits = list(next(iter(next(iter(figures.values())).values()))["accepted"])
    lines = [f"| target | temperature | {' | '.join(f'exit {at}' for at in exits)} | repeated 8-grams |"]
    lines.append("| --- " * (3 + len(exits)) + "|")
    for name, temperatures in figures.items():
        for temperature, row in temperatures.items():
            shares = " | ".join(f"{row['accepted'][at]:.1%}" for at in exits)
            lines.append(f"| {name} | {temperature} | {shares} | {row['repeated_8grams']:.1%} |")
    return "\n".join(lines)
