"""Chats that SmolLM2 writes by itself: what its drafter is trained on. No prompt is Spec-Bench's.

An instructed model that is given the beginning of a user's turn writes a prompt of its own (Magpie, Xu et al. 2024). It
then answers these prompts, half of them at temperature 0. Some prompts are put behind a text that the model wrote
earlier, with a task for it, because answers that quote their prompt are drafted differently.
"""

import argparse
import json
import logging
import random
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
PROMPT_TOKENS, ANSWER_TOKENS = 96, 288
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


class Chats:
    """Writes chats, group by group. A group depends on its number, the seed and earlier groups' texts alone."""

    def __init__(self, checkpoint: Path, seed: int) -> None:
        self.target: Decoder = load_decoder(checkpoint, dtype=torch.bfloat16, device=CPU)
        self.tokenizer: Any = load_tokenizer(checkpoint)
        self.seed = seed
        marked = self._chat("\0")
        self._opening = marked[: marked.index("\0")]

    def group(self, number: int, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The chats of a group. texts: answers of earlier groups, for tasks."""
        draw = random.Random(f"{self.seed}:{number}")
        prompts = self._prompts(number)
        prompts = [self._with_task(draw, texts) if texts and draw.random() < TASK_SHARE else own for own in prompts]
        chats = [self._encode(self._chat(prompt)) for prompt in prompts]
        chats = [chat for chat in chats if len(chat) <= LONGEST_PROMPT]
        temperatures = [ANSWER_TEMPERATURES[row % len(ANSWER_TEMPERATURES)] for row in range(len(chats))]
        answers = self._continued(chats, ANSWER_TOKENS, temperatures, f"{number}:answers")
        return [
            {
                "group": number,
                "answer": self.tokenizer.decode(answer, skip_special_tokens=True),
                "text": self.tokenizer.decode([*chat, *answer]),
            }
            for chat, answer in zip(chats, answers, strict=True)
        ]

    def _prompts(self, number: int) -> list[str]:
        """What the model writes as a user; those that do not end in time are left out."""
        temperatures = [PROMPT_TEMPERATURES[row % len(PROMPT_TEMPERATURES)] for row in range(GROUP)]
        opening = self._encode(self._opening)
        turns = self._continued([opening] * GROUP, PROMPT_TOKENS, temperatures, f"{number}:prompts")
        eos = self.tokenizer.eos_token_id
        return [self.tokenizer.decode(turn[:-1]).strip() for turn in turns if turn[-1] == eos and len(turn) > 3]

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


def write_chats(checkpoint: Path, path: Path, num_groups: int, seed: int, minutes: float) -> None:
    """Appends to `path` until it holds `num_groups` groups, or until the minutes are over. Can be run again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    texts = [chat["answer"] for chat in written]
    first = written[-1]["group"] + 1 if written else 0
    chats, until = Chats(checkpoint, seed), time.monotonic() + 60 * minutes
    with path.open("a") as file:
        for number in tqdm(range(first, num_groups)):
            if time.monotonic() > until:
                break
            group = chats.group(number, texts)
            texts += [chat["answer"] for chat in group]
            file.write("".join(f"{json.dumps(chat)}\n" for chat in group))
            file.flush()


def main() -> None:
    """Writes the chats of a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="the target: a folder, a GGUF file or a hub id")
    parser.add_argument("out", type=Path, help="the .jsonl file of chats, a line each")
    parser.add_argument("--groups", type=int, default=96, help=f"groups of about {GROUP} chats")
    parser.add_argument("--minutes", type=float, default=1e6, help="when to stop before that")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_chats(resolve(options.checkpoint), options.out, options.groups, options.seed, options.minutes)


if __name__ == "__main__":
    main()
