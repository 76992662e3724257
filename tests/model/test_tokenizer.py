"""A checkpoint's own tokenizer file decides, whatever else lies beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from model.config import read_config
from model.tokenizer import end_token_warning, end_tokens, load_tokenizer, tokens_beyond
from protocol.errors import ConfigError
from tests.api.api_twins import CHAT_TEMPLATE
from tests.deployments.checkpoints import make_model

SMALL = Path(__file__).parents[2] / "demo" / "models" / "small"
TEXTS = ["def f(x):\n\treturn x+1\n", "  two  spaces", "grüße, 日本語 🙂", "a\r\nb\n\n\n", "I'm 12345.67 <eos> it's"]


def beside(folder: Path, **changes: object) -> Path:
    """The demo's tokenizer with other entries in its tokenizer_config.json."""
    config = json.loads((SMALL / "tokenizer_config.json").read_text()) | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((SMALL / "tokenizer.json").read_bytes())
    (folder / "config.json").write_bytes((SMALL / "config.json").read_bytes())
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "PreTrainedTokenizerFast",
        "GPT2Tokenizer",
        "Qwen2Tokenizer",
        "GemmaTokenizer",
        "LlamaTokenizerFast",
        "NoSuchClass",
    ],
)
def test_tokenizer_json_is_used_as_it_is_whatever_class_is_named(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(beside(tmp_path, tokenizer_class=name))
    plain = Tokenizer.from_file(str(SMALL / "tokenizer.json"))
    assert [tokenizer.encode(text) for text in TEXTS] == [plain.encode(text).ids for text in TEXTS]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    assert (tokenizer.eos_token, len(tokenizer)) == ("<eos>", plain.get_vocab_size())
    assert tokenizer.chat_template


def test_a_template_in_a_file_of_its_own_is_found(tmp_path: Path) -> None:
    make_model(tmp_path, 1, seed=0)
    assert (tmp_path / "chat_template.jinja").exists()
    assert load_tokenizer(tmp_path).chat_template == CHAT_TEMPLATE


def test_a_tokenizer_that_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json; save one"):
        load_tokenizer(tmp_path)
    (beside(tmp_path) / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation", "ends", "warning"),
    [
        (1, 1, (1,), None),
        (1, None, (1,), None),
        (None, 1, (1,), None),
        (5, [1, 5], (1, 5), None),
        (5, [7, 9], (7, 9, 5, 1), "7, 9 by its configs, 1 by its tokenizer; here each of 7, 9, 5, 1 does"),
        (None, None, (1,), "nothing by its configs, 1 by its tokenizer; here each of 1 does"),
        ([1, 4], 1, (1, 4), "1 by its configs, 1 by its tokenizer; here each of 1, 4 does"),
    ],
)
def test_an_answer_ends_at_what_any_file_of_the_checkpoint_names(
    tmp_path: Path, config: object, generation: object, ends: tuple[int, ...], warning: str | None
) -> None:
    make_model(tmp_path, 1, seed=0)
    values = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": config}
    if config is None:
        del values["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    tokenizer = load_tokenizer(tmp_path)
    assert end_tokens(read_config(tmp_path).eos_token_ids, tokenizer) == ends
    told = end_token_warning(tmp_path, tokenizer)
    assert told == (warning and f"{tmp_path} differs in which token ends an answer: {warning}")


def test_a_tokenizer_without_eos_adds_none(tmp_path: Path) -> None:
    assert end_tokens((7,), load_tokenizer(beside(tmp_path, eos_token=None))) == (7,)


def test_tokens_that_the_model_has_no_embedding_for_are_told_by_id(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(beside(tmp_path, extra_special_tokens=["<|one|>", "<|two|>"]))
    assert tokens_beyond(len(tokenizer) - 2, tokenizer) == ["<|one|>", "<|two|>"]
    assert tokens_beyond(len(tokenizer), tokenizer) == []
