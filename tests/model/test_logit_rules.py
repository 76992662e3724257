"""Rules change logits as a counter would, token by token, and as transformers does where it has the same rule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from model.logit_rules import Columns, adjust, count
from protocol.logit_rules import NO_RULES, LogitRules, Ruled
from tests.reference.logit_rules import counted_anew, expected_logits, random_rules

VOCAB = 40
SEEDS = range(40)


def random_tokens(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(rng.randint(0, longest))]


def random_logits(seed: int) -> torch.Tensor:
    logits = 4 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[seed % VOCAB] = 0.0
    return logits


def apply(logits: torch.Tensor, rules: LogitRules, prompt: list[int], generated: list[int]) -> torch.Tensor:
    """At the place behind a text."""
    (changed,) = applied(logits[None], Ruled(rules, len(prompt), [*prompt, *generated]), [], [0])
    return changed


def applied(
    logits: torch.Tensor, text: Ruled, drafted: list[int], before: list[int], head: Columns | None = None
) -> torch.Tensor:
    changed = logits.clone()
    adjust(changed, count(text, slice(logits.shape[-1]) if head is None else head), drafted, before)
    return changed


@pytest.mark.parametrize("seed", SEEDS)
def test_rules_do_what_a_counter_says(seed: int) -> None:
    rng = random.Random(seed)
    rules = random_rules(rng, VOCAB, frozenset(random_tokens(rng, 5)))
    prompt, generated, logits = random_tokens(rng, 30), random_tokens(rng, 30), random_logits(seed)
    expected = expected_logits(logits.tolist(), rules, prompt, generated)
    torch.testing.assert_close(apply(logits, rules, prompt, generated), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_places_together_are_the_places_one_by_one_bit_for_bit(seed: int) -> None:
    """Also where tokens are withheld at some of them only, and where the head lacks tokens that a rule touches."""
    rng = random.Random(seed)
    rules = random_rules(rng, VOCAB, frozenset(random_tokens(rng, 5)))
    prompt, generated, drafted = random_tokens(rng, 30), random_tokens(rng, 30), random_tokens(rng, 9)
    text = Ruled(rules, len(prompt), [*prompt, *generated])
    before = sorted(rng.randint(0, len(drafted)) for _ in range(5))
    logits = torch.stack([random_logits(seed + place) for place in range(5)])
    alone = [apply(own, rules, prompt, [*generated, *drafted[:end]]) for own, end in zip(logits, before, strict=True)]
    assert torch.equal(applied(logits, text, drafted, before), torch.stack(alone))
    head = sorted(rng.sample(range(VOCAB), rng.randint(1, VOCAB)))
    assert torch.equal(applied(logits[:, head], text, drafted, before, np.array(head)), torch.stack(alone)[:, head])


@pytest.mark.parametrize("seed", range(200))
def test_what_is_counted_once_and_added_to_is_bit_for_bit_what_is_counted_anew_at_each_place(seed: int) -> None:
    """Over a whole vocabulary or a head that lacks many tokens, with drafts that the text has and has not."""
    rng = random.Random(seed)
    vocab = rng.choice([VOCAB, 1000])
    rules = random_rules(rng, vocab, frozenset(rng.sample(range(vocab), 9)))
    prompt, generated, drafted = ([rng.randrange(vocab) for _ in range(rng.randint(1, most))] for most in (90, 60, 8))
    text, before = Ruled(rules, len(prompt), [*prompt, *generated]), list(range(len(drafted) + 1))
    logits = 4 * torch.randn(len(before), vocab, generator=torch.Generator().manual_seed(seed))
    anew = torch.stack([counted_anew(own, text, drafted[:end]) for own, end in zip(logits, before, strict=True)])
    assert torch.equal(applied(logits, text, drafted, before), anew)
    head = sorted(rng.sample(range(vocab), rng.randint(1, vocab)))
    assert torch.equal(applied(logits[:, head], text, drafted, before, np.array(head)), anew[:, head])


class Watched(Sequence[int]):
    """A text that counts how often one of its tokens is looked at."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.num_looked_at = tokens, 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, at: Any) -> Any:
        self.num_looked_at += 1
        return self.tokens[at]


@pytest.mark.parametrize("length", [10, 1000, 30_000])
def test_a_drafted_token_is_counted_without_a_look_at_the_text(length: int) -> None:
    rng = random.Random(length)
    text, drafted = Watched([rng.randrange(VOCAB) for _ in range(length)]), [rng.randrange(VOCAB) for _ in range(8)]
    counted = count(Ruled(LogitRules((), 0.5, 0.5, 1.2), length // 2, text), slice(VOCAB))
    assert text.num_looked_at <= length + 1, "once, and the end"
    text.num_looked_at = 0
    for place in range(len(drafted) + 1):
        adjust(random_logits(place)[None], counted, drafted[:place], [place])
    assert text.num_looked_at == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_bias_repetition_and_min_tokens_are_those_of_transformers_bit_for_bit(seed: int) -> None:
    rng = random.Random(seed)
    prompt, generated, logits = [*random_tokens(rng, 20), 3], random_tokens(rng, 12), random_logits(seed)
    rules = LogitRules(((3, 2.5), (7, -1.25)), 0.0, 0.0, rng.choice([0.8, 1.1, 1.7]), 6, frozenset({2, 9}))
    processors = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor([[[token], bias] for token, bias in rules.bias]),
            RepetitionPenaltyLogitsProcessor(rules.repetition_penalty),
            MinNewTokensLengthLogitsProcessor(len(prompt), 6, [2, 9]),
        ]
    )
    theirs = processors(torch.tensor([[*prompt, *generated]]), logits[None])
    assert torch.equal(apply(logits, rules, prompt, generated), theirs[0])


def test_frequency_counts_the_text_and_not_the_prompt() -> None:
    logits = torch.zeros(4)
    changed = apply(logits, LogitRules(frequency_penalty=0.5, presence_penalty=0.25), [0, 0, 1], [1, 2, 2])
    assert changed.tolist() == [0.0, -0.75, -1.25, 0.0]


def test_a_logit_that_is_not_a_number_stays_one() -> None:
    logits = torch.tensor([float("nan"), 1.0])
    assert apply(logits, LogitRules(((0, 5.0),), 1.0, 1.0, 1.5), [0], [0]).isnan().tolist() == [True, False]


def test_rules_act_until_the_last_place_that_they_can_change() -> None:
    held = LogitRules(min_tokens=3, withheld=frozenset({2}))
    assert [held.acts_behind(count) for count in range(5)] == [True, True, True, False, False]
    assert not NO_RULES.acts_behind(0)
    assert not LogitRules(min_tokens=3).acts_behind(0), "without a stop token there is nothing to withhold"
    for rules in (LogitRules(((1, 1.0),)), LogitRules(frequency_penalty=0.1), LogitRules(repetition_penalty=1.1)):
        assert rules.acts_behind(1000)
