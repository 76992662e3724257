"""Measures how often the drafter's pick equals the target's, along the target's continuations.

Both pick the argmax of logits / temperature + noise, with the same noise for a position (coupled sampling; argmax at
temperature 0). The drafter picks at every position of the target's text, so the result is the conditional acceptance
rate: the probability that a drafted token is accepted if all before it were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drafters.training.distil import roomy_cache
from drafters.training.exits import exit_logits
from model.noise import gumbel

GROUP = 16
NGRAM = 8


@dataclass(frozen=True)
class Continuation:
    """Prompts with their continuations. tokens: [row, position], the first `prompt` given. seeds: [row]."""

    tokens: Tensor
    prompt: int
    seeds: Tensor
    temperature: float


def pick(logits: Tensor, seeds: Tensor, position: int, temperature: float) -> Tensor:
    """The token [row] at `position`, picked from logits [row, vocabulary]."""
    if temperature == 0:
        return logits.float().argmax(-1)
    positions = torch.full_like(seeds, position)
    return (logits.double() / temperature + gumbel(seeds, positions, logits.shape[-1])).argmax(-1)


def groups(prompts: Sequence[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens [row, position], seeds [row]): prompts of similar length, cut at the front to the same length."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for first in range(0, len(order), GROUP):
        chosen = order[first : first + GROUP]
        length = len(prompts[chosen[0]])
        yield torch.tensor([prompts[index][-length:] for index in chosen]), torch.tensor(chosen)


@torch.inference_mode()
def continue_prompts(target: Any, tokens: Tensor, seeds: Tensor, new: int, temperature: float) -> Continuation:
    """`tokens` [row, position] continued by `new` picks of the target per row."""
    prompt, cache, last = tokens.shape[1], roomy_cache(target.config), tokens
    for position in range(prompt, prompt + new):
        logits = target(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        last = pick(logits, seeds, position, temperature)[:, None]
        tokens = torch.cat([tokens, last], dim=1)
    return Continuation(tokens, prompt, seeds, temperature)


@torch.inference_mode()
def accepted(drafter: Any, exits: Sequence[int], text: Continuation, eos: int | None) -> tuple[Tensor, int]:
    """(accepted tokens [exit], drafted tokens), over all tokens of the continuation up to its first `eos`."""
    own = text.tokens[:, text.prompt :]
    ends = (own == (-1 if eos is None else eos)).long()
    live = ends.cumsum(1) - ends == 0
    logits = exit_logits(drafter, text.tokens[:, :-1], exits, torch.float32)
    counts = torch.zeros(len(exits), dtype=torch.long)
    for column, position in enumerate(range(text.prompt, text.tokens.shape[1])):
        for index, at_exit in enumerate(logits):
            drafted = pick(at_exit[:, position - 1], text.seeds, position, text.temperature)
            counts[index] += ((drafted == own[:, column]) & live[:, column]).sum()
    return counts, int(live.sum())


def repeated(text: Continuation) -> float:
    """The share of the continuation's positions where an 8-gram ends that occurred earlier in prompt or text."""
    total = again = 0
    for row in text.tokens.tolist():
        grams = [tuple(row[end - NGRAM : end]) for end in range(NGRAM, len(row) + 1)]
        first = {gram: end for end, gram in reversed(list(enumerate(grams)))}
        begin = max(0, text.prompt + 1 - NGRAM)
        total += len(grams) - begin
        again += sum(first[gram] < end for end, gram in enumerate(grams) if end >= begin)
    return again / total
