"""Rows: every step's are known from its number, and a target's continuations carry what it really said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drafters.training.config import Corpus
from drafters.training.data import TokenRows, cached_chunks, read_documents
from drafters.training.distil import continue_rows, load_teacher
from drafters.training.rows import Mixture
from drafters.training.stream import RowSampler
from protocol.errors import ConfigError


def rows(count: int, first: int = 0) -> TokenRows:
    return TokenRows.without_teachers(np.arange(first, first + 8 * count, dtype=np.uint32), 8)


def test_every_row_is_seen_once_an_epoch() -> None:
    mixture = Mixture(rows(6), [], parts=2, on_policy_parts=0, part_tokens=8, seed=1)
    seen = [part.tokens[0, 0].item() for step in range(3) for part in mixture.step(step)]
    assert sorted(seen) == [0, 8, 16, 24, 32, 40]


def test_parts_are_divided_between_corpus_and_every_target() -> None:
    mixture = Mixture(rows(9), [rows(9, 1000), rows(9, 2000)], parts=4, on_policy_parts=3, part_tokens=8, seed=1)
    firsts = [part.tokens[0, 0].item() // 1000 for step in range(2) for part in mixture.step(step)]
    assert sorted(firsts) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_a_stream_sampler_refuses_a_corpus_shorter_than_a_row() -> None:
    with pytest.raises(ValueError, match="fewer than one row"):
        RowSampler(size=10, length=16, batch=1, seed=0)


def test_chunks_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make(index: int) -> dict[str, Any]:
        made.append(index)
        return {"tokens": np.full((2, 3), index), "ids": np.zeros((1, 2, 3, 1)), "logp": np.zeros((1, 2, 3, 1))}

    for _ in range(2):
        joined = cached_chunks(tmp_path / "cache", "settings", 3, make, 1, None)
    assert made == [0, 1, 2]
    assert joined.tokens[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_greedy_continuation_is_the_targets_own_argmax_and_carries_its_log_probabilities(checkpoint: Path) -> None:
    teacher = load_teacher(checkpoint)
    chunk = continue_rows(teacher, torch.tensor([[5, 6, 7], [8, 9, 10]]), 10, 0.0, 3, torch.Generator())
    tokens = torch.from_numpy(chunk["tokens"].astype(np.int64))
    log_probs = teacher(input_ids=tokens).logits.float().log_softmax(-1)
    assert torch.equal(tokens[:, 3:], torch.from_numpy(chunk["ids"][0, :, 2:-1, 0]).long())
    torch.testing.assert_close(
        log_probs.gather(-1, torch.from_numpy(chunk["ids"][0]).long()),
        torch.from_numpy(chunk["logp"][0]).float(),
        atol=0.05,
        rtol=0.05,
    )


def test_a_jsonl_line_without_the_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl:2 has no field 'text'"):
        list(read_documents(Corpus(files=[str(tmp_path / "*.jsonl")])))


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing matches"):
        list(read_documents(Corpus(files=[str(tmp_path / "*.txt")])))
