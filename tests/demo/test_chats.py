"""Chats that a model writes with itself."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.chats import LONGEST_PROMPT, Chats, last_end, read_chats, read_prompts, write_chats
from demo.tokenizer import save_tokenizer, train_tokenizer
from model.tokenizer import load_tokenizer

TEXT = "def add(first, second):\n    return first + second\n"
SAID = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATE = SAID + "{% if add_generation_prompt %}me:{% endif %}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that often ends what it writes."""
    folder = tmp_path_factory.mktemp("chatting")
    save_tokenizer(train_tokenizer([TEXT]), folder)
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids, tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 30
    model.save_pretrained(folder)
    return folder


def written(
    checkpoint: Path, path: Path, num_groups: int, prompts: Sequence[Sequence[str]] = ()
) -> list[dict[str, Any]]:
    write_chats(Chats(checkpoint, seed=1, answer_tokens=24), path, num_groups, math.inf, prompts)
    return read_chats(path)


def test_a_run_that_was_interrupted_goes_on_to_the_same_chats(checkpoint: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    first = written(checkpoint, parts, 1)
    both = written(checkpoint, parts, 2)
    assert {chat["group"] for chat in first} == {0}
    assert both[: len(first)] == first
    assert both == written(checkpoint, whole, 2)
    assert {chat["group"] for chat in both} == {0, 1}


def test_a_second_target_answers_the_prompts_of_the_first(checkpoint: Path, tmp_path: Path) -> None:
    own = written(checkpoint, tmp_path / "own.jsonl", 2)
    prompts = read_prompts(tmp_path / "own.jsonl")
    others = written(checkpoint, tmp_path / "others.jsonl", 2, prompts)
    assert [chat["prompt"] for chat in others] == [chat["prompt"] for chat in own]
    assert [len(group) for group in prompts] == [sum(chat["group"] == number for chat in own) for number in (0, 1)]


@pytest.mark.parametrize(
    ("text", "kept"),
    [("One. Two thr", "One."), ("a = 1\nb =", "a = 1\n"), ("nothing ends", ""), ("3.5 is it? Ye", "3.5 is it?")],
)
def test_a_turn_that_did_not_end_ends_with_its_last_full_sentence(text: str, kept: str) -> None:
    assert text[: last_end(text)] == kept


def test_a_chat_is_a_prompt_in_the_template_and_an_answer_up_to_its_end(checkpoint: Path) -> None:
    chats = Chats(checkpoint, seed=2, answer_tokens=288)
    group = chats.group(0, ())
    ends = chats.tokenizer.eos_token
    assert group
    for chat in group:
        assert chat["text"].startswith("user: ")
        asked, answer = chat["text"].split("\nme:", 1)
        assert ends not in asked
        assert ends not in answer[: -len(ends)]
        assert len(chats.tokenizer.encode(asked)) <= LONGEST_PROMPT


def test_some_prompts_are_tasks_on_earlier_texts(checkpoint: Path) -> None:
    group = Chats(checkpoint, seed=2, answer_tokens=288).group(1, ["an earlier text"])
    shares = sum("an earlier text" in chat["text"] for chat in group) / len(group)
    assert 0 < shares < 1
