"""Cuts prompts out of the held-out files: the beginnings of functions and classes.

A prompt is the source of one definition up to some line inside its body, so the model has to write code. The prompts
are committed, so that no test depends on the running Python. Run this again only when the corpus changes.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tokenizers import Tokenizer

from demo.corpus import read_corpus, split
from demo.evaluate import PROMPTS
from demo.prepare import TOKENIZER, prepare

SHORTEST, LONG, LONGEST = 64, 256, 400
COUNT, LONG_COUNT = 192, 80


@dataclass(frozen=True)
class HeldOutPrompt:
    """The beginning of a definition. tokens: its length."""

    source: str
    tokens: int
    prompt: str

    @property
    def rank(self) -> bytes:
        """An order that depends on the text alone."""
        return hashlib.sha256(self.prompt.encode()).digest()


def definitions(source: str) -> Iterator[tuple[str, str]]:
    """(name, source with its indentation) of every function and class, in order."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, "".join(lines[node.lineno - 1 : node.end_lineno])


def cut_prompt(source: str, text: str, tokenizer: Tokenizer, wanted: int) -> HeldOutPrompt | None:
    """The first lines of `text`, about `wanted` tokens; None if it cannot be cut there."""
    encoding = tokenizer.encode(text)
    if len(encoding.ids) < wanted + 32:
        return None
    prompt = text[: text.rfind("\n", 0, encoding.offsets[wanted][0]) + 1]
    length = len(tokenizer.encode(prompt).ids)
    return HeldOutPrompt(source, length, prompt) if SHORTEST <= length <= LONGEST else None


def candidates(tokenizer: Tokenizer) -> Iterator[HeldOutPrompt]:
    """The longest usable prompt of every definition in the held-out files."""
    for file in split(read_corpus())[1]:
        for name, text in definitions(file.text):
            source = f"{file.path}:{name}"
            draw = int(hashlib.sha256(source.encode()).hexdigest(), 16)
            sizes = (LONG + 20 + draw % 110, 80 + draw % 160)
            prompts = (cut_prompt(source, text, tokenizer, wanted) for wanted in sizes)
            yield from [prompt for prompt in prompts if prompt is not None][:1]


def choose(tokenizer: Tokenizer) -> list[HeldOutPrompt]:
    """COUNT prompts, LONG_COUNT of them long, picked and ordered by hash."""
    prompts = sorted(
        {prompt.prompt: prompt for prompt in candidates(tokenizer)}.values(), key=lambda prompt: prompt.rank
    )
    long = [prompt for prompt in prompts if prompt.tokens >= LONG][:LONG_COUNT]
    short = [prompt for prompt in prompts if prompt.tokens < LONG][: COUNT - len(long)]
    return sorted(long + short, key=lambda prompt: prompt.rank)


def main() -> None:
    """Writes demo/prompts/heldout.jsonl."""
    prepare()
    prompts = choose(Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")))
    lines = (json.dumps({"id": f"heldout-{index:03d}", **asdict(prompt)}) for index, prompt in enumerate(prompts))
    PROMPTS.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
