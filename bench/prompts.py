"""The prompts of every run: held-out Python code, and first turns of Spec-Bench where the file is at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bench.machine import ROOT

HELD_OUT = ROOT / "demo/prompts/heldout.jsonl"
SPEC_BENCH = ROOT.parent / "shared/spec_bench/question.jsonl"


@dataclass(frozen=True, slots=True)
class Prompt:
    name: str
    token_ids: tuple[int, ...]


def held_out(tokenizer: Any, count: int, max_tokens: int) -> list[Prompt]:
    rows = map(json.loads, HELD_OUT.read_text(encoding="utf-8").splitlines())
    return [_cut(tokenizer, str(row["id"]), row["prompt"], max_tokens) for row in islice(rows, count)]


def spec_bench(tokenizer: Any, count: int, max_tokens: int) -> list[Prompt]:
    """Spread evenly over the question file, and so over its categories; empty where the file is absent."""
    if not SPEC_BENCH.exists():
        return []
    rows = [json.loads(line) for line in SPEC_BENCH.read_text(encoding="utf-8").splitlines()]
    chosen = rows[:: len(rows) // count][:count]
    return [_cut(tokenizer, f"spec-bench-{row['question_id']}", row["turns"][0], max_tokens) for row in chosen]


def mixed(tokenizer: Any, count: int, max_tokens: int) -> list[Prompt]:
    """Half held-out code, half Spec-Bench, alternating; held-out code alone where Spec-Bench is absent."""
    questions = spec_bench(tokenizer, count // 2, max_tokens)
    code = held_out(tokenizer, count - len(questions), max_tokens)
    if not questions:
        return code
    return [prompt for pair in zip(code, questions, strict=True) for prompt in pair]


def _cut(tokenizer: Any, name: str, text: str, max_tokens: int) -> Prompt:
    return Prompt(name, tuple(tokenizer.encode(text)[:max_tokens]))
