"""Acceptance counts equal picks under shared noise, and repetition counts 8-grams seen before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from demo.acceptance import Continuation, accepted, continue_prompts, groups, repeated
from tests.drafters.training.conftest import checkpoint

__all__ = ["checkpoint"]


def load(folder: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model.eval()


def text(tokens: list[int], prompt: int) -> Continuation:
    return Continuation(torch.tensor([tokens]), prompt, torch.tensor([0]), 0.0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_accepts_all_of_its_own_continuation(checkpoint: Path, temperature: float) -> None:
    model = load(checkpoint)
    tokens, seeds = torch.tensor([[5, 6, 7], [9, 8, 7]]), torch.tensor([3, 4])
    own = continue_prompts(model, tokens, seeds, 12, temperature)
    counts, asked = accepted(model, [1, 4], own, None)
    assert asked == counts[1].item() == 24
    assert counts[0] < 24


def test_tokens_after_the_end_are_not_counted(checkpoint: Path) -> None:
    model = load(checkpoint)
    own = text([5, 6, 7, 2, 9, 9], prompt=2)
    assert accepted(model, [4], own, eos=2)[1] == 2


def test_the_share_of_repeated_8_grams_counts_only_the_continuation() -> None:
    fresh = list(range(20))
    assert repeated(text(fresh, prompt=10)) == 0
    assert repeated(text(list(range(10)) * 2, prompt=10)) == pytest.approx(0.3)


def test_prompts_of_like_length_share_a_group_and_keep_their_ends() -> None:
    prompts = [list(range(30 + index)) for index in range(40)]
    found = list(groups(prompts))
    assert sorted(index for _, seeds in found for index in seeds.tolist()) == list(range(40))
    for tokens, seeds in found:
        assert [prompts[index][-1] for index in seeds.tolist()] == tokens[:, -1].tolist()
