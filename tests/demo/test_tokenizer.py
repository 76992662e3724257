"""The tokenizer loses nothing and keeps indentation cheap."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from demo.tokenizer import save_tokenizer, train_tokenizer

SAMPLE = "class A:\n    def f(self):\n        if self:\n            return 1\n        return 2\n" * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([SAMPLE]), folder)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "",
        " leading",
        "x = 1\n\n\n    y\t= 2  \n",
        "\tif a:\r\n\t\tb\r\n",
        "naïve \u4e2d\u6587 \U0001f600 \u0301",
        "a , b . c 's",
        "\x00\x7f",
        "trailing   ",
        "__init__ _a __ 12345 foo_bar",
    ],
)
def test_every_text_comes_back(folder: Path, text: str) -> None:
    plain, wrapped = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    assert plain.decode(plain.encode(text).ids) == text
    assert wrapped.decode(wrapped.encode(text)) == text


def test_a_line_break_and_its_indentation_are_one_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer.encode("\n            ")) == 1


def test_no_special_token_is_added(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not {0, 1, 2} & set(tokenizer("def f").input_ids)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_the_chat_template_gives_the_messages_as_lines(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "x = 1"}, {"role": "assistant", "content": "y = 2"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "x = 1\ny = 2\n"
