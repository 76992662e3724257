"""Cuts prompts out of the held-out files: the beginnings of functions and classes.

A prompt is the source of one definition up to some line inside its body, so the model has to write code. The prompts
are committed, so that no test depends on the running Python. Run this again only when the corpus changes.
"""

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from demo.corpus import read_corpus, split
from demo.prepare import ROOT, TOKENIZER
from demo.tokenizer import load_tokenizer

SHORTEST, LONG, LONGEST = 64, 256, 400
COUNT, LONG_COUNT = 192, 80


def definitions(source: str) -> Iterator[tuple[str, str]]:
    """(name, source with its indentation) of every function and class, in order."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, "".join(lines[node.lineno - 1 : node.end_lineno])


def cut_prompt(text: str, tokenizer: Tokenizer, wanted: int) -> str | None:
    """The first lines of `text`, about `wanted` tokens; None if it cannot be cut there."""
    encoding = tokenizer.encode(text)
    if len(encoding.ids) < wanted + 32:
        return None
    end = encoding.offsets[wanted][0]
    prompt = text[: text.rfind("\n", 0, end) + 1]
    return prompt if SHORTEST <= len(tokenizer.encode(prompt).ids) <= LONGEST else None


def candidates(tokenizer: Tokenizer) -> Iterator[dict[str, object]]:
    """Every usable prompt of the held-out files, with its length in tokens."""
    for file in split(read_corpus())[1]:
        for name, text in definitions(file.text):
            place = f"{file.path}:{name}"
            draw = int(hashlib.sha256(place.encode()).hexdigest(), 16)
            for wanted in (LONG + 20 + draw % 110, 80 + draw % 160):
                prompt = cut_prompt(text, tokenizer, wanted)
                if prompt is not None:
                    tokens = len(tokenizer.encode(prompt).ids)
                    yield {"source": place, "tokens": tokens, "prompt": prompt}
                    break


def choose(tokenizer: Tokenizer) -> list[dict[str, object]]:
    """COUNT prompts, LONG_COUNT of them long, picked and ordered by hash."""
    found = list({str(item["prompt"]): item for item in candidates(tokenizer)}.values())
    found.sort(key=lambda item: hashlib.sha256(str(item["prompt"]).encode()).digest())
    long = [item for item in found if int(str(item["tokens"])) >= LONG]
    short = [item for item in found if int(str(item["tokens"])) < LONG]
    chosen = (long[:LONG_COUNT] + short[: COUNT - min(len(long), LONG_COUNT)])[:COUNT]
    chosen.sort(key=lambda item: hashlib.sha256(str(item["prompt"]).encode()).digest())
    return [{"id": f"heldout-{index:03d}", **item} for index, item in enumerate(chosen)]


def main() -> None:
    """Writes demo/prompts/heldout.jsonl."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "prompts" / "heldout.jsonl")
    output = parser.parse_args().output
    prompts = choose(load_tokenizer(TOKENIZER))
    output.write_text("".join(json.dumps(item) + "\n" for item in prompts))
    long = sum(int(str(item["tokens"])) >= LONG for item in prompts)
    sys.stdout.write(f"{len(prompts)} prompts, {long} of at least {LONG} tokens, in {output}\n")


if __name__ == "__main__":
    main()
