"""The effect of LogitRules on the logits of a text's places, as a pure function of the tokens before each.

The plain loop, a verified draft, a resumed sequence and a drafter all call it, so they read rules alike. Penalties are
those of transformers (repetition) and of OpenAI's API (frequency, presence). Only the logits of tokens that a rule
touches are read, a few hundred of a vocabulary. A text is counted once, however many places behind it are asked for:
each adds what was drafted before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from protocol.logit_rules import LogitRules, Ruled

Ids = npt.NDArray[np.integer[Any]]
Columns = Ids | slice  # the tokens of the columns of logits, which ascend


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """A text under rules, as far as a head has its tokens.

    tokens: that a rule touches, which ascend. columns, times, in_prompt: of each its column, how often the generated
    text has it, and whether the prompt does. biased, bias: which of them have a bias, and how much. held: columns of
    the tokens that are withheld behind this text.
    """

    text: Ruled
    head: Columns
    tokens: Ids
    columns: Ids
    times: Ids
    in_prompt: npt.NDArray[np.bool_]
    biased: Ids
    bias: npt.NDArray[np.float32]
    held: Ids


def count(text: Ruled, head: Columns) -> Counted:
    """head: the tokens of the columns of logits."""
    rules, end = text.rules, len(text.rules.bias)
    read = text.tokens if rules.penalises else ()
    both = np.array([*(token for token, _ in rules.bias), *read], np.int64)
    tokens, index = np.unique(both, return_inverse=True)
    columns, known = _columns(tokens, head)
    counted = partial(np.bincount, minlength=len(tokens))
    prompt, generated = index[end:][: text.num_prompt], index[end:][text.num_prompt :]
    has = known[index[:end]]
    biased = np.searchsorted(tokens[known], both[:end][has])
    bias = np.array([value for _, value in rules.bias], np.float32)[has]
    withheld = sorted(rules.withheld) if text.is_held_at(len(text.tokens)) else []
    held, holds = _columns(np.array(withheld, np.int64), head)
    times, in_prompt = counted(generated)[known], counted(prompt)[known] > 0
    return Counted(text, head, tokens[known], columns[known], times, in_prompt, biased, bias, held[holds])


def adjust(logits: Tensor, counted: Counted, drafted: Sequence[int], before: Sequence[int]) -> None:
    """Changes the logits of places behind a text in place. logits: [places, columns] float32. drafted: tokens behind
    the text. before: how many of them stand before each place.
    """
    text, tensor = counted.text, partial(torch.as_tensor, device=logits.device)
    new, index = _placed(counted, drafted if text.rules.penalises else ())
    columns = tensor(np.concatenate([counted.columns, new]))
    if len(columns):
        own = logits[:, columns]
        own[:, tensor(counted.biased)] += tensor(counted.bias)
        if text.rules.penalises:
            times = _times(counted, len(new), [index[:end] for end in before])
            in_prompt = np.concatenate([counted.in_prompt, np.zeros(len(new), np.bool_)])
            own = _penalised(own, text.rules, tensor(times), tensor(in_prompt))
        logits[:, columns] = own
    for place, end in enumerate(before):
        if text.is_held_at(len(text.tokens) + end):
            logits[place, tensor(counted.held)] = -float("inf")


def _placed(counted: Counted, drafted: Sequence[int]) -> tuple[Ids, Ids]:
    """The columns of drafted tokens that the text has not, and where each drafted token is among all columns; behind
    all of them where the head lacks it.
    """
    tokens, own = np.array(drafted, np.int64), counted.tokens
    columns, known = _columns(tokens, counted.head)
    at = np.searchsorted(own, tokens)
    is_old = own[at.clip(max=len(own) - 1)] == tokens if len(own) else np.zeros(len(tokens), np.bool_)
    new = np.unique(columns[known & ~is_old])
    behind = len(own) + np.searchsorted(new, columns)
    return new, np.where(is_old, at, np.where(known, behind, len(own) + len(new)))


def _times(counted: Counted, num_new: int, drafted: Sequence[Ids]) -> Ids:
    """[places, columns]: how often the text has each token and the draft before that place. drafted: where the tokens
    of that are.
    """
    times = np.zeros((len(drafted), len(counted.times) + num_new + 1), np.int64)
    times[:, : len(counted.times)] = counted.times
    for place, index in zip(times, drafted, strict=True):
        np.add.at(place, index, 1)
    return times[:, :-1]  # without those that the head lacks


def _columns(tokens: Ids, head: Columns) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """The columns of these tokens, and which of them the head has; the others get any column."""
    if isinstance(head, slice):
        known = (tokens >= 0) & (tokens < head.stop)
        return np.where(known, tokens, 0), known
    columns = np.searchsorted(head, tokens).clip(max=len(head) - 1)
    return columns, head[columns] == tokens


def _penalised(logits: Tensor, rules: LogitRules, times: Tensor, in_prompt: Tensor) -> Tensor:
    """times: of the tokens of these logits in the text at each place. in_prompt: whether the prompt has them."""
    if rules.repetition_penalty != 1:
        penalty, seen = rules.repetition_penalty, (times > 0) | in_prompt
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if rules.frequency_penalty or rules.presence_penalty:
        logits = logits - (rules.frequency_penalty * times + rules.presence_penalty * (times > 0))
    return logits
