"""Rules for requests at random, and the obvious way to apply them: token by token, with a counter."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from protocol.logit_rules import LogitRules, Ruled
from protocol.request import GenerateRequest, StopRules


def expected_logits(
    logits: Sequence[float], rules: LogitRules, prompt: Sequence[int], generated: Sequence[int]
) -> list[float]:
    counts, bias = Counter(generated), dict(rules.bias)
    out = []
    for token, logit in enumerate(logits):
        logit += bias.get(token, 0.0)
        if token in prompt or token in counts:
            logit = logit / rules.repetition_penalty if logit > 0 else logit * rules.repetition_penalty
        if token in counts:
            logit -= rules.frequency_penalty * counts[token] + rules.presence_penalty
        if token in rules.withheld and len(generated) < rules.min_tokens:
            logit = -float("inf")
        out.append(logit)
    return out


def counted_anew(logits: Tensor, text: Ruled, drafted: Sequence[int]) -> Tensor:
    """The same for one place behind a text and a draft, as tensors over the whole vocabulary."""
    rules, tokens, size = text.rules, torch.tensor([*text.tokens, *drafted]), len(logits)
    times = torch.bincount(tokens[text.num_prompt :], minlength=size)
    seen = torch.bincount(tokens, minlength=size) > 0
    for token, bias in rules.bias:
        logits = logits.index_add(0, torch.tensor([token]), torch.tensor([bias]))
    if rules.repetition_penalty != 1:
        divided = torch.where(logits < 0, logits * rules.repetition_penalty, logits / rules.repetition_penalty)
        logits = torch.where(seen, divided, logits)
    logits = logits - (rules.frequency_penalty * times + rules.presence_penalty * (times > 0))
    if text.is_held_at(len(tokens)):
        logits = logits.index_fill(0, torch.tensor(sorted(rules.withheld)), -float("inf"))
    return logits


def random_rules(rng: random.Random, vocab_size: int, withheld: frozenset[int] = frozenset()) -> LogitRules:
    """Each rule in about half of them; min_tokens up to 12."""

    def sometimes(value: float, default: float) -> float:
        return value if rng.random() < 0.5 else default

    biased = rng.sample(range(vocab_size), rng.choice([0, 1, 20]))
    return LogitRules(
        tuple((token, rng.uniform(-6, 6)) for token in sorted(biased)),
        sometimes(rng.uniform(-2, 2), 0.0),
        sometimes(rng.uniform(-2, 2), 0.0),
        sometimes(rng.uniform(0.6, 1.8), 1.0),
        rng.randint(0, 12) if withheld else 0,
        withheld,
    )


def with_rules(requests: Sequence[GenerateRequest], seed: int, vocab_size: int) -> list[GenerateRequest]:
    """Two of three with rules of their own, a third of them sampled from a part of the vocabulary; many tokens stop."""
    rng = random.Random(seed)
    ruled = []
    for index, request in enumerate(requests):
        stop_ids = frozenset(rng.sample(range(vocab_size), vocab_size // 8))
        rules = random_rules(rng, vocab_size, stop_ids) if index % 3 else request.rules
        sampling = replace(request.sampling, top_p=0.8) if rng.random() < 0.3 else request.sampling
        stop = StopRules(request.stop.max_tokens, stop_ids)
        ruled.append(replace(request, sampling=sampling, stop=stop, rules=rules))
    return ruled
