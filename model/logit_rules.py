"""The effect of LogitRules on the logits of one position, as a pure function of the tokens before it.

The plain loop, a verified draft and a resumed sequence all call it, so they pick the same tokens. Penalties are those
of transformers (repetition) and of OpenAI's API (frequency, presence).
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.logit_rules import LogitRules


def adjusted(logits: Tensor, rules: LogitRules, prompt: Tensor, generated: Tensor) -> Tensor:
    """logits: [vocab_size] float32. prompt, generated: the tokens before the position, [n] int64."""
    logits = logits.clone()
    if rules.bias:
        tokens, bias = zip(*rules.bias, strict=True)
        logits[_tensor(tokens, logits)] += torch.tensor(bias, device=logits.device)
    if rules.repetition_penalty != 1:
        seen, penalty = _counts(torch.cat([prompt, generated]), logits) > 0, rules.repetition_penalty
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if rules.frequency_penalty or rules.presence_penalty:
        times = _counts(generated, logits)
        logits -= rules.frequency_penalty * times + rules.presence_penalty * (times > 0)
    if rules.withheld and len(generated) < rules.min_tokens:
        known = [token for token in rules.withheld if 0 <= token < len(logits)]
        logits[_tensor(known, logits)] = -float("inf")
    return logits


def _counts(tokens: Tensor, like: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs among these."""
    return tokens.bincount(minlength=len(like))


def _tensor(tokens: tuple[int, ...] | list[int], like: Tensor) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64, device=like.device)
