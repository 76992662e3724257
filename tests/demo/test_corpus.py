"""The split depends on paths alone, and the wrong Python is refused."""

import json
import sys
from pathlib import Path

import pytest

from demo.corpus import PYTHON, corpus_hash, is_held_out, is_included, read_corpus, split

PROMPTS = Path(__file__).parents[2] / "demo" / "prompts" / "heldout.jsonl"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for index in range(300):
        (tmp_path / f"module{index}.py").write_text(f"x = {index}\n")
    for name in ("test/test_one.py", "site-packages/other.py", "__pycache__/old.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("y = 1\n")
    return tmp_path


def test_the_same_files_are_split_in_the_same_way(library: Path) -> None:
    training, held_out = split(read_corpus(library))
    assert (training, held_out) == split(read_corpus(library))
    assert {file.path for file in training}.isdisjoint(file.path for file in held_out)
    assert 2 <= len(held_out) <= 30


def test_a_new_file_moves_no_other_one(library: Path) -> None:
    before = split(read_corpus(library))
    (library / "a_new_one.py").write_text("z = 1\n")
    after = split(read_corpus(library))
    assert all(set(side) <= set(new_side) for side, new_side in zip(before, after, strict=True))


def test_tests_and_installed_packages_are_left_out(library: Path) -> None:
    assert all("/" not in file.path for file in read_corpus(library))
    assert not is_included("idlelib/idle_test/test_config.py")


def test_the_hash_names_path_and_content(library: Path) -> None:
    before = corpus_hash(read_corpus(library))
    assert before == corpus_hash(read_corpus(library))
    (library / "module1.py").write_text("x = 2\n")
    assert before != corpus_hash(read_corpus(library))


def test_another_python_is_refused_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    with pytest.raises(RuntimeError, match=rf"CPython {PYTHON}, but this is 3\.99\.0"):
        read_corpus()


def test_the_committed_prompts_are_many_held_out_and_long_enough() -> None:
    prompts = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert len(prompts) >= 160
    assert len({prompt["prompt"] for prompt in prompts}) == len({prompt["id"] for prompt in prompts}) == len(prompts)
    assert all(is_held_out(prompt["source"].split(":")[0]) for prompt in prompts)
    assert all(64 <= prompt["tokens"] <= 400 for prompt in prompts)
    assert sum(prompt["tokens"] >= 256 for prompt in prompts) >= 64
