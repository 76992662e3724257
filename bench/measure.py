"""The README's table: the plain loop against fixed depths, on the demo models, in bf16.

Every repetition runs all settings of a (target, batch) one after the other on the same prompts, so a ratio
compares neighbours in time; the table holds medians over repetitions. Rates follow one definition for all: tokens
behind each sequence's first, over the time from the last first token to the last token. `identical` is the share
of prompts whose tokens equal the plain loop's: 100 % in fp32 by the exactness runs, less in bf16, where a matrix
product may round differently with the number of its rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from bench import machine
from bench.prompts import Prompt, held_out
from deployments.local import Completion, complete, draft_policy, open_engine, open_worker
from protocol.request import GenerateRequest, SamplingParams, StopRules
from targets.engine import EngineConfig
from targets.model import load_target

MODELS = machine.ROOT / "demo/models"
RESULT = machine.ROOT / "bench/results/measure.json"
README = machine.ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PROMPT_TOKENS, MAX_TOKENS = 128, 96


@dataclass(frozen=True, slots=True)
class Setting:
    """depth None is the plain loop."""

    depth: int | str | None
    length: int


@dataclass(frozen=True, slots=True)
class Row:
    target: str
    batch: int
    depth: int | str | None
    length: int
    tokens_per_second: list[float]
    speedup: float
    mean_acceptance_length: float
    acceptance_rate: float
    identical: float


def run(target: Path, batch: int, setting: Setting, prompts: Sequence[Prompt]) -> list[Completion]:
    model = load_target(target, dtype=torch.bfloat16, num_positions=batch * 512, page_size=256)
    worker = None
    if setting.depth is not None:
        worker = open_worker(
            MODELS / "drafter", dtype=torch.bfloat16, num_positions=batch * 512, page_size=256, max_rows=batch
        )
    policy = draft_policy(worker, setting.depth, setting.length)
    engine = open_engine(model, worker, policy, EngineConfig(max_batch=batch, max_queue=len(prompts)))
    try:
        return complete(engine, [_request(prompt) for prompt in prompts])
    finally:
        engine.stop()


def _request(prompt: Prompt) -> GenerateRequest:
    return GenerateRequest(prompt.name, prompt.token_ids, SamplingParams(temperature=0.0), StopRules(MAX_TOKENS))


def rate(completions: Sequence[Completion]) -> float:
    """Tokens per second of one batch that started together."""
    tokens = sum(len(c.token_ids) - 1 for c in completions)
    return tokens / (max(c.last_s for c in completions) - max(c.first_s for c in completions))


def measure(target: str, batch: int, settings: Sequence[Setting], prompts: Sequence[Prompt], repeat: int) -> list[Row]:
    """settings[0] is the plain loop."""
    rates: list[list[float]] = [[] for _ in settings]
    results: list[list[Completion]] = [[] for _ in settings]
    for _ in tqdm(range(repeat), f"{target}, batch {batch}"):
        for index, setting in enumerate(settings):
            results[index] = run(MODELS / target, batch, setting, prompts)
            rates[index].append(round(rate(results[index]), 1))
    return [
        _row(target, batch, setting, rates[index], rates[0], results[index], results[0])
        for index, setting in enumerate(settings)
    ]


def _row(
    target: str,
    batch: int,
    setting: Setting,
    rates: list[float],
    plain_rates: list[float],
    completions: Sequence[Completion],
    plain: Sequence[Completion],
) -> Row:
    rounds = sum(c.stats.rounds for c in completions)
    drafted, accepted = (sum(getattr(c.stats, name) for c in completions) for name in ("drafted", "accepted"))
    same = [c.token_ids == p.token_ids for c, p in zip(completions, plain, strict=True)]
    return Row(
        target=target,
        batch=batch,
        depth=setting.depth,
        length=setting.length,
        tokens_per_second=rates,
        speedup=round(median(a / b for a, b in zip(rates, plain_rates, strict=True)), 2),
        mean_acceptance_length=round(1 + accepted / rounds, 2),
        acceptance_rate=round(accepted / drafted, 3) if drafted else 0.0,
        identical=sum(same) / len(same),
    )


def table(report: dict[str, Any]) -> str:
    """The Markdown between the README's markers."""
    facts = report["machine"]
    lines = [
        "| target | batch | draft | tokens/s | against plain | mean acceptance length | identical (bf16) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        draft = "plain loop" if row["depth"] is None else f"depth {row['depth']}, length {row['length']}"
        speed = median(row["tokens_per_second"])
        length = "" if row["depth"] is None else f"{row['mean_acceptance_length']}"
        lines.append(
            f"| {row['target']} | {row['batch']} | {draft} | {speed:.0f} | {row['speedup']:.2f}x | {length} "
            f"| {100 * row['identical']:.0f} % |"
        )
    lines += [
        "",
        f"Medians of {report['repeat']} interleaved repetitions; temperature 0, bf16, one process.",
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}; commit {facts['commit']}; "
        f"`{facts['command']}`; `bench/results/measure.json`.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only put the stored result into the README")
    args = parser.parse_args()
    if not args.table:
        settings = [Setting(None, 0), *(Setting(depth, args.length) for depth in (2, 4, 6, "cascade"))]
        rows = []
        for target in ("large", "small"):
            tokenizer = AutoTokenizer.from_pretrained(MODELS / target)
            for batch in args.batch:
                prompts = held_out(tokenizer, batch, PROMPT_TOKENS)
                rows += measure(target, batch, settings, prompts, args.repeat)
        report = {"machine": machine.describe(), "repeat": args.repeat, "rows": [asdict(row) for row in rows]}
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    text = README.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    stored = table(json.loads(RESULT.read_text()))
    README.write_text(f"{before}{BEGIN}\n{stored}\n{END}{after}", encoding="utf-8")
    sys.stdout.write(stored + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
