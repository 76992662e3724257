"""Rules change logits as a counter would, token by token, and as transformers does where it has the same rule."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from model.logit_rules import adjusted
from protocol.logit_rules import NO_RULES, LogitRules
from tests.reference.logit_rules import expected_logits, random_rules

VOCAB = 40
SEEDS = range(40)


def random_tokens(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(rng.randint(0, longest))]


def random_logits(seed: int) -> torch.Tensor:
    logits = 4 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[seed % VOCAB] = 0.0
    return logits


def apply(logits: torch.Tensor, rules: LogitRules, prompt: list[int], generated: list[int]) -> torch.Tensor:
    before = [torch.tensor(tokens, dtype=torch.int64) for tokens in (prompt, generated)]
    return adjusted(logits, rules, *before)


@pytest.mark.parametrize("seed", SEEDS)
def test_rules_do_what_a_counter_says_and_leave_the_logits_themselves_alone(seed: int) -> None:
    rng = random.Random(seed)
    rules = random_rules(rng, VOCAB, frozenset(random_tokens(rng, 5)))
    prompt, generated, logits = random_tokens(rng, 30), random_tokens(rng, 30), random_logits(seed)
    kept = logits.clone()
    expected = expected_logits(logits.tolist(), rules, prompt, generated)
    torch.testing.assert_close(apply(logits, rules, prompt, generated), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, kept)


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
