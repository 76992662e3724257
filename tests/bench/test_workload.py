"""Which cells there are, and which prompts they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cells import Cell
from bench.grid import Grid
from bench.workload import PromptText, Workload, mixed_lengths, read_texts
from protocol.errors import ConfigError
from tests.api.api_twins import tiny_tokenizer

TEXTS = tuple(PromptText(tuple(range(start, start + 60))) for start in range(0, 600, 100))


def test_mixed_prompts_run_from_32_to_512_tokens_in_every_group() -> None:
    workload = Workload(TEXTS, "mixed", 8)
    for batch, num_groups in ((8, 1), (4, 2), (16, 1)):
        groups = workload.groups(Cell("plain", batch))
        assert [len(group) for group in groups] == [batch] * num_groups
        assert max(len(prompt) for prompt in groups[-1]) == 512
        assert min(len(prompt) for prompt in groups[0]) == 32
        assert all(max(map(len, group)) > 4 * min(map(len, group)) for group in groups)
    assert mixed_lengths(16) == sorted(mixed_lengths(16))


def test_batches_of_different_size_run_the_same_prompts() -> None:
    workload = Workload(TEXTS, "mixed", 8)
    prompts = [{prompt for group in workload.groups(Cell("plain", batch)) for prompt in group} for batch in (1, 2, 8)]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(prompts[0]) == 8


def test_equal_prompts_are_equally_long_and_a_full_batch_is_one_group() -> None:
    assert {len(p) for p in Workload(TEXTS, "equal", 4).groups(Cell("plain", 4))[0]} == {128}
    assert {len(p) for p in Workload(TEXTS, "equal", 4, 512).groups(Cell("plain", 4))[0]} == {512}
    assert [len(group) for group in Workload(TEXTS, "equal", 4).groups(Cell("plain", 2, queue=6))] == [8]


def test_spec_bench_is_split_into_its_subtasks(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"category": name, "turns": [f"import {name}", "more"]} for name in ("writing", "coding", "rag")]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    workload = Workload(read_texts(file, tiny_tokenizer(chat_template=None)), "own", 2)
    assert workload.categories == ["mt_bench", "rag"]
    prompts = workload.prompts("mt_bench", 3)
    assert prompts[0] == prompts[2] == tuple(tiny_tokenizer().encode("import writing"))


def test_a_question_to_a_model_with_a_chat_template_is_asked_in_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"category": "qa", "turns": ["import os"]}) + "\n")
    said = "{{ messages[0].role }}: {{ messages[0].content }}"
    tokenizer = tiny_tokenizer(said + "{% if add_generation_prompt %} me:{% endif %}")
    (text,) = read_texts(file, tokenizer)
    assert text.token_ids == tuple(tokenizer.encode("user: import os me:", add_special_tokens=False))


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"text": "a"}', '{"turns": []}', '{"prompt": ""}', '{"prompt": 7}']
)
def test_a_line_without_a_prompt_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "import os"}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2"):
        read_texts(file, tiny_tokenizer())


def test_a_grid_leaves_out_what_an_engine_cannot_do() -> None:
    cells = Grid(("plain", "fixed", "assisted", "openvino-draft"), (1, 8), (2, 4), (1, 4)).cells()
    assert [cell.mode for cell in cells if cell.batch == 8] == ["plain", *["fixed"] * 4, *["openvino-draft"] * 2]
    assert [cell.length for cell in cells if cell.mode == "assisted"] == [1, 4]
    assert len(set(cells)) == len(cells)
    assert len(Grid(("plain",), (1, 8), (), (), kept_full=3).cells()) == 4
