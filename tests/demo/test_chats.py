"""Chats that a model writes with itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from demo.chats import LONGEST_PROMPT, Chats, write_chats
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


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_was_interrupted_goes_on_to_the_same_chats(checkpoint: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    write_chats(checkpoint, whole, 2, seed=1, minutes=9)
    write_chats(checkpoint, parts, 1, seed=1, minutes=9)
    first = lines(parts)
    write_chats(checkpoint, parts, 2, seed=1, minutes=9)
    assert first
    assert {chat["group"] for chat in first} == {0}
    assert lines(parts)[: len(first)] == first
    assert lines(parts) == lines(whole)
    assert {chat["group"] for chat in lines(whole)} == {0, 1}


def test_a_chat_is_a_prompt_in_the_template_and_an_answer_up_to_its_end(checkpoint: Path) -> None:
    chats = Chats(checkpoint, seed=2)
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
    group = Chats(checkpoint, seed=2).group(1, ["an earlier text"])
    shares = sum("an earlier text" in chat["text"] for chat in group) / len(group)
    assert 0 < shares < 1
