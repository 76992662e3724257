"""Which checkpoints may work on one KV: those of one model, however their matrices are stored."""

import pytest
import torch

from model.siblings import are_siblings
from tests.model.families import NAMES, change_config, make_checkpoint


@pytest.mark.parametrize("name", NAMES)
def test_a_model_rounded_to_bf16_is_a_sibling_and_another_training_is_not(name, tmp_path):
    whole = make_checkpoint(name, tmp_path / "whole", seed=1)
    assert are_siblings(whole, make_checkpoint(name, tmp_path / "rounded", seed=1, dtype=torch.bfloat16))
    assert not are_siblings(whole, make_checkpoint(name, tmp_path / "other", seed=2))


def test_a_model_of_another_shape_is_none_and_a_longer_context_makes_no_difference(tmp_path):
    one = make_checkpoint("llama", tmp_path / "one", seed=1)
    longer = make_checkpoint("llama", tmp_path / "longer", seed=1, max_positions=512)
    assert are_siblings(one, longer)
    assert not are_siblings(one, make_checkpoint("llama-linear-rope-no-gqa", tmp_path / "wide", seed=1))
    change_config(longer, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    assert not are_siblings(one, longer)
