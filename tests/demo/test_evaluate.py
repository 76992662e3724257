"""Acceptance counts equal picks under shared noise, and repetition counts 8-grams seen before."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from demo.evaluate import TEMPERATURES, accepted, on_continuations, on_held_out, repeated_share
from drafters.training.distil import load_teacher
from protocol.request import GREEDY
from tests.drafters.training.conftest import checkpoint

__all__ = ["checkpoint"]

PROMPTS = [[5, 6, 7], [9, 8, 7, 6]]


def test_a_model_accepts_all_of_its_own_continuation_and_its_first_layer_does_not(checkpoint: Path) -> None:
    model = load_teacher(checkpoint)
    figures = on_continuations(model, [1, 4], model, PROMPTS, new=12, eos=None)
    for temperature in TEMPERATURES:
        row = figures[str(temperature)]
        assert row["tokens"] == 24
        assert row["accepted"]["1"] < row["accepted"]["4"] == 1


def test_tokens_after_the_end_are_not_counted(checkpoint: Path) -> None:
    assert accepted(load_teacher(checkpoint), [4], [5, 6, 7, 2, 9, 9], 2, GREEDY, eos=2)[1] == 2


def test_held_out_figures_are_those_of_transformers(checkpoint: Path) -> None:
    model, row = load_teacher(checkpoint), [5, 6, 7, 2, 9, 9]
    figures = on_held_out(model, [1, 4], {"itself": model}, [row])
    with torch.inference_mode():
        tokens = torch.tensor([row])
        loss = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)(tokens, labels=tokens).loss
    assert figures["loss"]["4"] == pytest.approx(loss.item(), rel=0.02)
    assert figures["greedy_agreement"]["itself"]["1"] < figures["greedy_agreement"]["itself"]["4"] == 1


def test_the_share_of_repeated_8_grams_counts_only_the_continuation() -> None:
    assert repeated_share(list(range(20)), 10) == 0
    assert repeated_share(list(range(10)) * 2, 10) == pytest.approx(0.3)
