"""Tokenizers of GGUF files give llama.cpp's ids, which `record` wrote down.

    python -m tests.model.gguf.test_tokenizer

records them again. On real files and thousands of lines: python -m bench.peers.token_ids.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.peers.llamacpp import llama_cpp
from drafters.manifest import vocabulary_hash
from model.config import read_config
from model.files import resolve
from model.gguf.splits import SPLITS
from model.tokenizer import end_token_warning, load_tokenizer, tokens_beyond
from protocol.errors import ConfigError, UnsupportedModel
from tests.model.gguf.files import write_gguf
from tests.model.gguf.vocabularies import byte_level, demo_tokens, sentencepiece

RECORDED = Path(__file__).parent / "llama_cpp_ids.json"
REAL_FILES = "DRAFTPOOL_GGUF"  # a folder with /work/shared/models' files
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE = "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
TEXTS = (
    "",
    "Hello world",
    " leading and trailing ",
    "I'm, you'RE, we'll, it'S, they'd've",
    "1234567 3.14159 1,000,000 ½ ²³ Ⅻ ①",
    "def f(x):\n\treturn x ** 2  # 42\n\n\n",
    "a\r\nb\r\n\r\n   c\u00a0d\u3000e",
    'if (a<=b && c!=d) { return "$x"; } // ^~|`@',
    "中文字 日本語 ひらがな 한국어",
    "😀 👩‍👩‍👧 🇩🇪 ❤️",
    "éàü e\u0301 русский עברית हिन्दी",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>",
    "text<tool>more <tool> text",
    "<s>twice</s>",
    "CamelCaseWords HTTPServer iPhone ÀÉÎ",
    "\n\n\n\n\n   \n      x",
    "a" * 50,
)


def cases() -> dict[str, dict[str, Any]]:
    """A vocabulary for each pre-tokenizer, and both kinds of sentencepiece."""
    tokens, merges = demo_tokens()
    by_pre = {pre: byte_level(pre, tokens, merges) for pre in SPLITS}
    silent = byte_level("llama-bpe", tokens, merges)
    del silent["add_bos_token"]
    return by_pre | {
        "llama-bpe that does not say whether it has BOS": silent,
        "smollm with BOS and EOS": byte_level("smollm", tokens, merges, add_bos_token=True, add_eos_token=True),
        "sentencepiece": sentencepiece(tokens),
        "sentencepiece without a space in front": sentencepiece(tokens, add_space_prefix=False),
        "sentencepiece without BOS": sentencepiece(tokens, add_bos_token=False),
    }


CASES: Mapping[str, dict[str, Any]] = MappingProxyType(cases())


def write_model(folder: Path, vocabulary: dict[str, Any], num_rows: int | None = None) -> Path:
    """A GGUF file with the smallest of models."""
    config = LlamaConfig(
        vocab_size=num_rows or len(vocabulary["tokens"]),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "hf")
    return write_gguf(folder / "hf", folder / "model.Q.gguf", vocabulary)


def tokenizer_of(folder: Path, vocabulary: dict[str, Any]) -> PreTrainedTokenizerFast:
    return load_tokenizer(resolve(str(write_model(folder, vocabulary))))


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    tokenizer, recorded = tokenizer_of(tmp_path, CASES[name]), json.loads(RECORDED.read_text("utf-8"))
    assert {text: tokenizer.encode(text) for text in TEXTS} == dict(zip(TEXTS, recorded[name], strict=True))


@pytest.mark.parametrize(
    ("name", "texts"),
    # With a space in front, there is one behind every token that is matched whole too, as in llama.cpp.
    [("smollm", TEXTS), ("sentencepiece without a space in front", TEXTS), ("sentencepiece", TEXTS[:5])],
)
def test_ids_decode_to_their_text(tmp_path: Path, name: str, texts: tuple[str, ...]) -> None:
    tokenizer = tokenizer_of(tmp_path, CASES[name])
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_special_tokens_template_and_ends_come_from_the_file(tmp_path: Path) -> None:
    vocabulary = CASES["smollm"] | {"tokenizer.chat_template": TEMPLATE}
    directory = resolve(str(write_model(tmp_path, vocabulary)))
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "<|im_end|>", "<|endoftext|>")
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s><|im_start|>hi<|im_end|>"
    assert read_config(directory).eos_token_ids == (2, 0)
    assert end_token_warning(directory, tokenizer) is None
    assert tokenizer.decode([2, 4], skip_special_tokens=True) == "<tool>"
    assert AutoTokenizer.from_pretrained(directory).encode("a 12") == tokenizer.encode("a 12")


def test_rows_that_fill_up_the_embedding_are_no_tokens(tmp_path: Path) -> None:
    """So that a drafter with the model's own HF tokenizer has the same vocabulary."""
    plain = CASES["qwen2"]
    count = len(plain["tokens"])
    filled = plain | {
        "tokens": [*plain["tokens"], f"[PAD{count}]", f"[PAD{count + 1}]"],
        "token_type": [*plain["token_type"], 5, 5],
    }
    directories = [resolve(str(write_model(tmp_path / name, case))) for name, case in (("a", plain), ("b", filled))]
    assert len({vocabulary_hash(directory) for directory in directories}) == 1
    assert tokens_beyond(count, load_tokenizer(directories[1])) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"pre": "klingon"},
            UnsupportedModel,
            r"pre-tokenizer 'klingon' .* supported are default.*give the model's HF",
        ),
        ({"model": "bert"}, UnsupportedModel, r"of the kind 'bert' .* supported are gpt2 and llama"),
        ({"merges": "none"}, ConfigError, "holds no merges"),
        ({"model": "llama"}, ConfigError, "holds no scores"),
        ({"token_type": [1, 2]}, ConfigError, "is damaged: tokens and token types do not fit together"),
        ({"add_bos_token": True, "bos_token_id": 10**6}, ConfigError, "says that prompts have bos, but names no such"),
        ({"tokens": "none"}, ConfigError, "holds no tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = write_model(tmp_path, CASES["smollm"] | changes, num_rows=300)
    with pytest.raises(error, match=message):
        resolve(str(path))


@pytest.mark.skipif(
    not (Path(os.environ.get(REAL_FILES, "/nowhere")) / SMOLLM2).exists(), reason=f"{REAL_FILES} names no {SMOLLM2}"
)
def test_smollm2_cuts_numbers_into_digits() -> None:
    tokenizer = load_tokenizer(resolve(str(Path(os.environ[REAL_FILES]) / SMOLLM2)))
    text = "<|im_start|>user\nhello 12345 world<|im_end|>"
    assert tokenizer.encode(text) == [1, 4093, 198, 28120, 216, 33, 34, 35, 36, 37, 905, 2]
    assert tokenizer.eos_token_id == 2


def record() -> None:
    """Writes down llama.cpp's ids of all texts."""
    found = {}
    for name, vocabulary in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = resolve(str(write_model(Path(folder), vocabulary)))
            with llama_cpp(directory) as peer:
                found[name] = [peer.token_ids(text) for text in TEXTS]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(ids)}" for name, ids in found.items())
    RECORDED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
