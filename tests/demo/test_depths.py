"""A nested drafter beside drafters of one depth that cost as much to train."""

from pathlib import Path

import pytest

from demo.depths import Answer, acceptance, of_one_depth, weights_trained
from drafters.training.config import TrainDrafterConfig
from drafters.training.distil import continue_prompts, load_teacher
from protocol.request import SamplingParams
from tests.drafters.training.conftest import checkpoint

__all__ = ["checkpoint"]


@pytest.fixture
def recipe(checkpoint: Path, tmp_path: Path) -> TrainDrafterConfig:
    return TrainDrafterConfig.model_validate(
        {
            "output": tmp_path / "drafter",
            "work": tmp_path / "work",
            "base": {"checkpoint": checkpoint, "layers": 4, "head_size": 8},
            "exits": [1, 2, 4],
            "corpus": {"files": [tmp_path / "text"]},
            "schedule": {"steps": 1000},
        }
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_drafter_of_one_depth_costs_as_much_to_train_as_the_nested_one(
    recipe: TrainDrafterConfig, depth: int
) -> None:
    single = of_one_depth(recipe, depth)
    cost = weights_trained(single) * single.schedule.steps
    assert cost == pytest.approx(weights_trained(recipe) * recipe.schedule.steps, rel=0.002)
    assert (single.exits, single.base.layers) == ((depth,), depth)
    assert single.output != recipe.output
    assert single.work != recipe.work


def test_a_target_accepts_its_own_picks_and_not_those_of_its_first_layer(checkpoint: Path) -> None:
    model, prompts = load_teacher(checkpoint), [[5, 6, 7], [9, 8, 7, 6]]
    written = []
    for temperature in (0.0, 0.7):
        sampling = [SamplingParams(temperature=temperature, seed=seed) for seed in range(2)]
        texts = continue_prompts(model, prompts, [16, 16], sampling)
        written += [
            Answer(category, text, len(prompt), how)
            for category, text, prompt, how in zip("ab", texts, prompts, sampling, strict=True)
        ]
    figures = acceptance(model, [1, 4], written, eos=None)
    for rows in figures.values():
        assert set(rows) == {"a", "b", "all"}
        assert rows["all"]["1"] < rows["all"]["4"] == 1
