"""The effect of LogitRules on the logits of a text's places, as a pure function of the tokens before each.

The plain loop, a verified draft, a resumed sequence and a drafter all call it, so they read rules alike. Penalties are
those of transformers (repetition) and of OpenAI's API (frequency, presence). Only the logits of tokens that a rule
touches are read, a few hundred of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protocol.logit_rules import LogitRules, Ruled

Ids = npt.NDArray[np.integer[Any]]
Columns = Ids | slice  # the tokens of the columns of logits, which ascend


def adjust(logits: Tensor, text: Ruled, lengths: Sequence[int], head: Columns) -> None:
    """Changes the logits of places of a text in place. logits: [places, columns] float32. lengths: how many tokens
    stand before each place. head: the tokens of the columns.
    """
    rules, short = text.rules, [place for place, length in enumerate(lengths) if text.is_held_at(length)]
    biased, bias = [token for token, _ in rules.bias], [value for _, value in rules.bias]
    held, read = rules.withheld if short else (), text.tokens if rules.penalises else ()
    touched, index = np.unique(np.array([*biased, *held, *read], np.int64), return_inverse=True)
    columns, known = _columns(touched, head)
    tensor = partial(torch.as_tensor, device=logits.device)
    own = logits[:, tensor(columns)]
    own[:, tensor(index[: len(biased)])] += tensor(bias, dtype=own.dtype)
    if read:
        own = _penalised(own, rules, index[len(biased) + len(held) :], text.num_prompt, lengths)
    for place in short:
        own[place, tensor(index[len(biased) : len(biased) + len(held)])] = -float("inf")
    logits[:, tensor(columns[known])] = own[:, tensor(known)]


def _columns(tokens: Ids, head: Columns) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """The columns of these tokens, and which of them the head has; the others get any column."""
    if isinstance(head, slice):
        known = (tokens >= 0) & (tokens < head.stop)
        return np.where(known, tokens, 0), known
    columns = np.searchsorted(head, tokens).clip(max=len(head) - 1)
    return columns, head[columns] == tokens


def _penalised(logits: Tensor, rules: LogitRules, index: Ids, num_prompt: int, lengths: Sequence[int]) -> Tensor:
    """index: the column of each token of the text, of these logits."""
    counted = partial(np.bincount, minlength=logits.shape[-1])
    prompt = torch.from_numpy(counted(index[:num_prompt]))
    generated = np.stack([counted(index[num_prompt:length]) for length in lengths])
    times = torch.from_numpy(generated).to(logits.device)
    if rules.repetition_penalty != 1:
        penalty, seen = rules.repetition_penalty, times + prompt.to(logits.device) > 0
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if rules.frequency_penalty or rules.presence_penalty:
        logits = logits - (rules.frequency_penalty * times + rules.presence_penalty * (times > 0))
    return logits
