"""Counts of tokens that targets wrote, as they are read for a drafter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.token_counts import read_counts
from protocol.errors import ConfigError


@pytest.fixture
def told(tmp_path: Path) -> str:
    path = tmp_path / "counts.json"
    targets = {
        "one": {"vocabulary_hash": "own", "counts": {"3": 5, "0": 1}},
        "two": {"vocabulary_hash": "own", "counts": {"3": 2}},
        "other": {"vocabulary_hash": "other", "counts": {"9": 4, "8": 1}},
        "unknown": {"vocabulary_hash": "unknown", "counts": {"7": 100}},
        "away": {"vocabulary_hash": None, "counts": {}},
    }
    path.write_text(json.dumps(targets))
    return str(path)


def test_targets_of_the_drafters_vocabulary_add_up_and_others_do_not_count(told: str) -> None:
    assert read_counts(told, 5, "own").tolist() == [1, 0, 0, 7, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ('{"a": {"counts": {}}}', "is not what /debug/tokens tells: Field required"),
        ('{"a": {"vocabulary_hash": "own", "counts": {"-1": 2}}}', "greater than or equal to 0"),
        ('{"a": {"vocabulary_hash": "own", "counts": {"5": 2}}}', "counts token 5; the drafter has 5"),
        ('{"a": {"vocabulary_hash": "own", "counts": {}}}', "no counts of the drafter's vocabulary; set count_tokens"),
        ('{"a": {"vocabulary_hash": "else", "counts": {"1": 2}}}', "no counts of the drafter's vocabulary"),
    ],
)
def test_what_is_no_count_of_this_vocabulary_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_counts(str(path), 5, "own")
