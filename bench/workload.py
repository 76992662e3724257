"""Which prompts a cell runs, in groups that start together.

Held-out functions and Spec-Bench questions are shorter than 512 tokens, so a prompt of a wanted length is as many of
them as it takes, one behind the other, cut off. Mixed lengths ascend from 32 to 512 tokens by equal factors and are
dealt out to the groups in turn, so that every group holds short and long ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cells import Cell
from bench.machine import ROOT
from protocol.errors import ConfigError

HELD_OUT = ROOT / "demo/prompts/heldout.jsonl"
SPEC_BENCH = ROOT.parent / "shared/spec_bench/question.jsonl"

SHORTEST, LONGEST, EQUAL = 32, 512, 128  # tokens
KINDS = ("mixed", "equal", "own")
# Spec-Bench's first subtask is all of MT-bench.
MT_BENCH = frozenset(("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"))


@dataclass(frozen=True, slots=True)
class PromptText:
    """One prompt of a file, as token ids. category: Spec-Bench's subtask, "" elsewhere."""

    token_ids: tuple[int, ...]
    category: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """kind: mixed or equal lengths, or each text's own up to 512 tokens. num_prompts: of a cell, at the least.

    equal: tokens of each prompt of equal length.
    """

    texts: tuple[PromptText, ...]
    kind: str
    num_prompts: int
    equal: int = EQUAL

    @property
    def categories(self) -> list[str]:
        return sorted({text.category for text in self.texts})

    def groups(self, cell: Cell) -> list[list[tuple[int, ...]]]:
        """Batches that each start together; one group, longer than the batch, where the batch is kept full."""
        if cell.queue:
            return [self.prompts(cell.category, cell.batch + cell.queue)]
        num_groups = -(-self.num_prompts // cell.batch)
        prompts = self.prompts(cell.category, num_groups * cell.batch)
        return [prompts[group::num_groups] for group in range(num_groups)]

    def prompts(self, category: str, count: int) -> list[tuple[int, ...]]:
        texts = [text for text in self.texts if text.category == category]
        pool = [text.token_ids for text in texts or self.texts[:: max(1, len(self.texts) // count)]]  # evenly of all
        match self.kind:
            case "mixed":
                return [_joined(pool, index, length) for index, length in enumerate(mixed_lengths(count))]
            case "equal":
                return [_joined(pool, index, self.equal) for index in range(count)]
            case _:
                return [pool[index % len(pool)][:LONGEST] for index in range(count)]


def mixed_lengths(count: int) -> list[int]:
    if count == 1:
        return [EQUAL]
    return [round(SHORTEST * (LONGEST / SHORTEST) ** (index / (count - 1))) for index in range(count)]


def _joined(pool: Sequence[tuple[int, ...]], first: int, length: int) -> tuple[int, ...]:
    tokens: list[int] = []
    index = first
    while len(tokens) < length:
        tokens += pool[index % len(pool)]
        index += 1
    return tuple(tokens[:length])


def read_texts(path: Path, tokenizer: Any) -> tuple[PromptText, ...]:
    """Lines with a "prompt", or Spec-Bench's with "turns" and "category", of which the first turn is a chat's if the
    tokenizer has a template. Raises ConfigError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name an existing file") from None
    texts = tuple(
        _text(line, f"{path}:{number}", tokenizer) for number, line in enumerate(lines, start=1) if line.strip()
    )
    if not texts:
        raise ConfigError(f"{path} holds no prompt; write one JSON object a line")
    return texts


def _text(line: str, place: str, tokenizer: Any) -> PromptText:
    try:
        fields = json.loads(line)
        text = fields["prompt"] if "prompt" in fields else _chat(fields["turns"][0], tokenizer)
        category = str(fields.get("category", ""))
    except (ValueError, KeyError, TypeError, IndexError):
        text = None
    if not isinstance(text, str):
        raise ConfigError(f'{place} needs a JSON object with a "prompt" string, or Spec-Bench\'s "turns"')
    token_ids = tuple(tokenizer.encode(text, add_special_tokens="prompt" in fields or not tokenizer.chat_template))
    if not token_ids:
        raise ConfigError(f"{place} holds an empty prompt")
    return PromptText(token_ids, "mt_bench" if category in MT_BENCH else category)


def _chat(question: Any, tokenizer: Any) -> Any:
    if not tokenizer.chat_template or not isinstance(question, str):
        return question
    message = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def held_out(tokenizer: Any, count: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Prompts of Python code, as token ids."""
    return [text.token_ids[:max_tokens] for text in read_texts(HELD_OUT, tokenizer)[:count]]


def spec_bench(tokenizer: Any, count: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Spread evenly over the question file, and so over its categories; empty where the file is absent."""
    if not SPEC_BENCH.exists():
        return []
    texts = read_texts(SPEC_BENCH, tokenizer)
    return [text.token_ids[:max_tokens] for text in texts[:: len(texts) // count][:count]]


def code_and_questions(tokenizer: Any, count: int, max_tokens: int) -> list[tuple[int, ...]]:
    """Half held-out code, half Spec-Bench, alternating; held-out code alone where Spec-Bench is absent."""
    questions = spec_bench(tokenizer, count // 2, max_tokens)
    code = held_out(tokenizer, count - len(questions), max_tokens)
    return [prompt for pair in zip(code, questions, strict=True) for prompt in pair] if questions else code
