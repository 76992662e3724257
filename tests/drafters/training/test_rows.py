"""Rows: every step's are known from its number, and a target's continuations carry what it really said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from drafters.training.config import Corpus, OnPolicy, TrainingSchedule
from drafters.training.data import TokenRows, Tokens, cached_rows, read_documents, read_stream
from drafters.training.distil import continue_prompts, judge, load_teacher
from drafters.training.rows import Mixture, sample_rows
from model.tokenizer import load_tokenizer
from protocol.errors import ConfigError
from protocol.request import SamplingParams


def rows(count: int, first: int = 0) -> TokenRows:
    return TokenRows.without_teachers(np.arange(first, first + 8 * count, dtype=np.uint32), 8)


def test_every_row_is_seen_once_an_epoch() -> None:
    mixture = Mixture(rows(6), [], TrainingSchedule(steps=3, parts=2, part_tokens=8), seed=1)
    seen = [int(part.tokens[0, 0]) for step in range(3) for part in mixture.step(step)]
    assert sorted(seen) == [0, 8, 16, 24, 32, 40]


def test_parts_are_divided_between_corpus_and_every_target() -> None:
    schedule = TrainingSchedule(steps=2, parts=4, part_tokens=8, on_policy_share=0.75)
    mixture = Mixture(rows(9), [rows(9, 1000), rows(9, 2000)], schedule, seed=1)
    firsts = [int(part.tokens[0, 0]) // 1000 for step in range(2) for part in mixture.step(step)]
    assert sorted(firsts) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_a_corpus_shorter_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="10 tokens, fewer than one row of 16"):
        TokenRows.without_teachers(np.arange(10, dtype=np.uint32), 16)


def test_chunks_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make(index: int) -> TokenRows:
        made.append(index)
        teacher = np.full((1, 2, 3, 1), index)
        return TokenRows(np.full((2, 3), index, np.uint32), teacher.astype(np.int32), teacher.astype(np.float16))

    for _ in range(2):
        joined = cached_rows(tmp_path / "cache", "settings", 3, make)
    assert made == [0, 1, 2]
    assert joined.tokens[:, 0].tolist() == joined.ids[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_greedy_continuation_is_the_targets_own_argmax_and_carries_its_log_probabilities(checkpoint: Path) -> None:
    target = load_teacher(checkpoint)
    greedy = [SamplingParams(temperature=0)] * 2
    tokens = np.array(continue_prompts(target, [[5, 6, 7], [8, 9]], [10, 10], greedy), np.uint32)
    judged = judge([target], tokens, 3)
    log_probs = oracle(checkpoint, tokens).log_softmax(-1)
    assert tokens[0, :3].tolist() == [5, 6, 7]
    for row, prompt in ((0, 3), (1, 2)):
        assert tokens[row, prompt:].tolist() == judged.ids[0, row, prompt - 1 : -1, 0].tolist()
    expected = log_probs.gather(-1, torch.from_numpy(judged.ids[0]).long())
    torch.testing.assert_close(torch.from_numpy(judged.logp[0]).float(), expected, atol=0.05, rtol=0.05)


def test_sampled_rows_begin_with_corpus_text_and_differ_between_chunks(checkpoint: Path) -> None:
    stream = np.arange(3, 103, dtype=np.uint32)
    options = OnPolicy(row_length=12, prompt_lengths=(4, 6), temperatures=(0.8,), batch=3)
    target = load_teacher(checkpoint)
    chunks = [sample_rows(target, stream, options, 0, chunk) for chunk in (0, 0, 1)]
    assert chunks[0].shape == (3, 12)
    assert (np.diff(chunks[0][:, :4].astype(int)) == 1).all()
    assert (chunks[0] == chunks[1]).all()
    assert not (chunks[0] == chunks[2]).all()


def oracle(checkpoint: Path, tokens: Tokens) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).float()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits
    return logits.float()


def test_a_stream_is_the_documents_between_their_marks(tmp_path: Path, checkpoint: Path) -> None:
    for name, text in (("a", "def f"), ("b", "class A")):
        (tmp_path / f"{name}.txt").write_text(text)
    stream = read_stream(Corpus(files=[tmp_path / "*.txt"]), checkpoint)
    assert load_tokenizer(checkpoint).decode(stream.tolist()) == "<bos>def f<eos><bos>class A<eos>"


def test_a_jsonl_line_without_the_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl:2 has no field 'text'"):
        list(read_documents(Corpus(files=[tmp_path / "*.jsonl"])))


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing matches"):
        list(read_documents(Corpus(files=[tmp_path / "*.txt"])))
