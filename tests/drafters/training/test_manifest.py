"""A manifest comes back as it was saved, and a drafter without one has a single exit."""

import json
from pathlib import Path

import pytest

from drafters.manifest import Manifest, vocabulary_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, {"a": 0, "b": 1}, {"<eos>": 2})
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 6}')
    return tmp_path


def write_tokenizer(folder: Path, vocabulary: dict[str, int], added: dict[str, int]) -> None:
    entries = [{"content": token, "id": index} for token, index in added.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": entries}))


def test_it_comes_back_as_it_was_saved(folder: Path) -> None:
    manifest = Manifest((2, 4, 6), "abc", ("large", "small"))
    manifest.save(folder)
    assert Manifest.load(folder) == manifest


def test_a_checkpoint_without_one_has_a_single_exit_at_its_full_depth(folder: Path) -> None:
    assert Manifest.load(folder) == Manifest((6,), vocabulary_hash(folder), ())


@pytest.mark.parametrize("exits", [(), (4, 2), (2, 2), (0, 2)])
def test_exits_that_do_not_increase_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="exits must be increasing"):
        Manifest(exits, "abc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"exits": [2, 8], "vocabulary_hash": "a", "targets": []}', "exit 8 is deeper than the model's 6 layers"),
        ('{"exits": [2, "6"], "vocabulary_hash": "a"}', "exits must be a list of whole numbers"),
        ('{"exits": [2, 6]}', "vocabulary_hash must be a string"),
        ('{"exits": [2, 6], "vocabulary_hash": "a", "target": []}', "expected the keys"),
        ('{"exits": [6, 2], "vocabulary_hash": "a"}', r"draftpool\.json: exits must be increasing"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_manifest_is_refused_with_its_path_and_reason(folder: Path, text: str, message: str) -> None:
    (folder / "draftpool.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Manifest.load(folder)


def test_the_hash_of_a_vocabulary_ignores_its_order_in_the_file(folder: Path) -> None:
    before = vocabulary_hash(folder)
    write_tokenizer(folder, {"b": 1, "a": 0}, {"<eos>": 2})
    assert vocabulary_hash(folder) == before


def test_the_hash_of_a_vocabulary_covers_added_tokens_and_ids(folder: Path) -> None:
    hashes = {vocabulary_hash(folder)}
    for vocabulary, added in (({"a": 1, "b": 0}, {"<eos>": 2}), ({"a": 0, "b": 1}, {"<end>": 2})):
        write_tokenizer(folder, vocabulary, added)
        hashes.add(vocabulary_hash(folder))
    assert len(hashes) == 3


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        vocabulary_hash(tmp_path)
