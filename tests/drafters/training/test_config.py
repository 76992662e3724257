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


def test_an_unknown_key_of_a_checkpoint_base_is_named_without_the_other_form(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["base"] = {"checkpoint": "somewhere", "layers": 2, "exit": 1}
    with pytest.raises(ConfigError) as caught:
        parse(values, tmp_path)
    assert "unknown key base.exit" in str(caught.value)
    assert "hidden_size" not in str(caught.value)


def test_exits_end_with_the_full_depth(values: dict[str, Any], tmp_path: Path) -> None:
    values["exits"] = [1]
    with pytest.raises(ConfigError, match="end exits with the full depth"):
        parse(values, tmp_path)


def test_sampling_needs_targets(values: dict[str, Any], tmp_path: Path) -> None:
    values["on_policy"] = {}
    with pytest.raises(ConfigError, match="list targets"):
        parse(values, tmp_path)


def test_paths_belong_to_the_folder_of_the_file(values: dict[str, Any], tmp_path: Path) -> None:
    config = parse(values, tmp_path)
    assert config.output == tmp_path / "drafter"
    assert config.corpus.files == [str(tmp_path / "*.txt")]


def test_the_demo_recipe_is_valid() -> None:
    config = load_config(Path(__file__).parents[3] / "demo" / "drafter.yaml")
    assert config.exits == (2, 4, 6)
