"""A configuration is refused by the name of the key that is wrong."""

from pathlib import Path
from typing import Any

import pytest

from drafters.training.config import load_config
from protocol.errors import ConfigError
from tests.drafters.training.conftest import parse


def test_an_unknown_key_is_refused_by_name(values: dict[str, Any], tmp_path: Path) -> None:
    values["schedule"]["stepz"] = 3
    with pytest.raises(ConfigError, match=r"unknown key schedule\.stepz: remove it"):
        parse(values, tmp_path)


def test_a_missing_key_is_named(values: dict[str, Any], tmp_path: Path) -> None:
    del values["corpus"]
    with pytest.raises(ConfigError, match="corpus is missing"):
        parse(values, tmp_path)


def test_exits_end_with_the_full_depth(values: dict[str, Any], tmp_path: Path) -> None:
    values["exits"] = [1]
    with pytest.raises(ConfigError, match="end exits with the full depth"):
        parse(values, tmp_path)


def test_sampling_needs_targets(values: dict[str, Any], tmp_path: Path) -> None:
    values["on_policy"] = {}
    with pytest.raises(ConfigError, match="list targets"):
        parse(values, tmp_path)


def test_every_exit_has_a_weight(values: dict[str, Any], tmp_path: Path) -> None:
    values["exit_weights"] = [0.1]
    with pytest.raises(ConfigError, match="1 entries for 2 exits"):
        parse(values, tmp_path)


def test_a_prompt_leaves_room_for_a_continuation(values: dict[str, Any], tmp_path: Path) -> None:
    values["on_policy"] = {"row_length": 16, "prompt_lengths": [4, 16]}
    with pytest.raises(ConfigError, match="must stay below row_length, 16"):
        parse(values, tmp_path)


def test_paths_belong_to_the_folder_of_the_file(values: dict[str, Any], tmp_path: Path) -> None:
    config = parse(values, tmp_path)
    assert config.output == tmp_path / "drafter"
    assert config.corpus.files == [tmp_path / "*.txt"]


def test_the_demo_recipes_are_valid() -> None:
    demo = Path(__file__).parents[3] / "demo"
    exits = {name: load_config(demo / f"{name}.yaml").exits for name in ("large", "small", "drafter")}
    assert exits == {"large": (6, 12), "small": (4, 8), "drafter": (2, 4, 6)}
