"""Chats that a target writes by itself: what its drafter is trained on. No prompt is Spec-Bench's.

An instructed model that is given the beginning of a user's turn writes a prompt of its own (Magpie, Xu et al. 2024). It
then answers these prompts, half of them at temperature 0. Some prompts are put behind a text that the model wrote
earlier, with a task for it, because answers that quote their prompt are drafted differently. A second target can answer
the prompts of a smaller one's chats instead of writing its own.
"""

import argparse
import json
import logging
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from drafters.training.distil import continue_prompts
from model.batch import CPU
from model.decoder import Decoder
from model.files import resolve
from model.load import load_decoder
from model.tokenizer import load_tokenizer
from protocol.request import SamplingParams

log = logging.getLogger(__name__)

GROUP = 64  # rows that are rolled out together
PROMPT_TOKENS = 96
LONGEST_PROMPT = 512
PROMPT_TEMPERATURES = (0.8, 1.0)
ANSWER_TEMPERATURES = (0.0, 0.7)
TASKS = (  # a text takes the place of {}
    "Summarize: {}",
    "{}\n\nSummarize the text above in a few sentences.",
    "Use the passage to answer the question.\n\nPassage: {}\n\nQuestion: What is the main point?",
    "Rewrite the following text so that it is easier to read:\n\n{}",
    "Translate to English: {}",
    "List the key facts of this text.\n\n{}",
)
TASK_SHARE = 0.3
SENTENCE_END = re.compile(r"[.?!](?=\s)|\n")


class Chats:
    """Writes chats, group by group. A group depends on its number, the seed and earlier groups' texts alone.

    answer_tokens: the most that an answer has.
    """

    def __init__(self, checkpoint: Path, seed: int, answer_tokens: int) -> None:
        self.target: Decoder = load_decoder(checkpoint, dtype=torch.bfloat16, device=CPU)
        self.tokenizer: Any = load_tokenizer(checkpoint)
        self.seed, self.answer_tokens = seed, answer_tokens
        marked = self._chat("\0")
        self._opening = marked[: marked.index("\0")]

    def group(self, number: int, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The chats of a group. texts: answers of earlier groups, for tasks."""
        draw = random.Random(f"{self.seed}:{number}")
        prompts = self._prompts(number)
        return self.answered(
            number, [self._with_task(draw, texts) if texts and draw.random() < TASK_SHARE else own for own in prompts]
        )

    def answered(self, number: int, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """The chats of a group whose prompts are given."""
        encoded = [(prompt, self._encode(self._chat(prompt))) for prompt in prompts]
        encoded = [(prompt, chat) for prompt, chat in encoded if len(chat) <= LONGEST_PROMPT]
        temperatures = [ANSWER_TEMPERATURES[row % len(ANSWER_TEMPERATURES)] for row in range(len(encoded))]
        chats = [chat for _, chat in encoded]
        answers = self._continued(chats, self.answer_tokens, temperatures, f"{number}:answers")
        return [
            {
                "group": number,
                "prompt": prompt,
                "answer": self.tokenizer.decode(answer, skip_special_tokens=True),
                "text": self.tokenizer.decode([*chat, *answer]),
            }
            for (prompt, chat), answer in zip(encoded, answers, strict=True)
        ]

    def _prompts(self, number: int) -> list[str]:
        """What it writes as a user; a turn that does not end in time ends with its last full line or sentence."""
        temperatures = [PROMPT_TEMPERATURES[row % len(PROMPT_TEMPERATURES)] for row in range(GROUP)]
        opening = self._encode(self._opening)
        turns = self._continued([opening] * GROUP, PROMPT_TOKENS, temperatures, f"{number}:prompts")
        return [text for text in map(self._turn, turns) if text]

    def _turn(self, tokens: list[int]) -> str:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        return text if tokens[-1] == self.tokenizer.eos_token_id else text[: last_end(text)].strip()

    def _with_task(self, draw: random.Random, texts: Sequence[str]) -> str:
        return draw.choice(TASKS).format(draw.choice(texts))

    def _continued(
        self, prompts: Sequence[list[int]], length: int, temperatures: Sequence[float], name: str
    ) -> list[list[int]]:
        """The new tokens of each prompt, up to `length`, and up to and with its first end."""
        seeds = (
            np.random.default_rng(list(f"{self.seed}:{name}".encode())).integers(1 << 63, size=len(prompts)).tolist()
        )
        sampling = [SamplingParams(temperature=own, seed=seed) for own, seed in zip(temperatures, seeds, strict=True)]
        rows = continue_prompts(self.target, prompts, [len(prompt) + length for prompt in prompts], sampling)
        return [self._until_end(row[len(prompt) :]) for row, prompt in zip(rows, prompts, strict=True)]

    def _until_end(self, tokens: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens

    def _chat(self, prompt: str) -> str:
        """The prompt in the chat template, ready for an answer."""
        message = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def last_end(text: str) -> int:
    """Where the last full line or sentence of the text ends; 0 if there is none."""
    return max((match.end() for match in SENTENCE_END.finditer(text)), default=0)


def write_chats(chats: Chats, path: Path, num_groups: int, until: float, prompts: Sequence[Sequence[str]] = ()) -> None:
    """Appends to `path` until it holds `num_groups` groups, or until the clock shows `until`. Can be run again.

    prompts: of each group, where they are not the target's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = read_chats(path) if path.exists() else []
    texts = [chat["answer"] for chat in written]
    first = written[-1]["group"] + 1 if written else 0
    with path.open("a") as file:
        for number in tqdm(range(first, num_groups)):
            if time.monotonic() > until:
                break
            group = chats.answered(number, prompts[number]) if prompts else chats.group(number, texts)
            texts += [chat["answer"] for chat in group]
            file.write("".join(f"{json.dumps(chat)}\n" for chat in group))
            file.flush()


def read_chats(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_prompts(path: Path) -> list[list[str]]:
    """The prompts of the chats in `path`, group by group."""
    chats = read_chats(path)
    return [[chat["prompt"] for chat in chats if chat["group"] == number] for number in range(chats[-1]["group"] + 1)]


def main() -> None:
    """Writes the chats of a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="the target: a folder, a GGUF file or a hub id")
    parser.add_argument("out", type=Path, help="the .jsonl file of chats, a line each")
    parser.add_argument("--groups", type=int, default=96, help=f"groups of about {GROUP} chats")
    parser.add_argument("--minutes", type=float, default=1e6, help="when to stop before that")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answer-tokens", type=int, default=288, help="the most that an answer has")
    parser.add_argument("--prompts-of", type=Path, help="a file of chats whose prompts this target answers")
    options = parser.parse_args()
    chats = Chats(resolve(options.checkpoint), options.seed, options.answer_tokens)
    prompts = read_prompts(options.prompts_of) if options.prompts_of else []
    num_groups = min(options.groups, len(prompts)) if prompts else options.groups
    write_chats(chats, options.out, num_groups, time.monotonic() + 60 * options.minutes, prompts)


if __name__ == "__main__":
    main()
