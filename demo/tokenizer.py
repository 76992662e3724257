"""A byte-level BPE with 4096 entries that encodes Python's indentation in few tokens.

The pre-tokenizer keeps a line break with the indentation after it, so that "\\n        " is one token. The base
alphabet is bytes, so every text round-trips. Encoding adds no <bos>. In training, each document is <bos> text <eos>.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
PATTERN = (
    r"\r?\n[ \t]*|(?:'s|'t|'re|'ve|'m|'ll|'d)(?!\w)| ?\p{L}+|_+\p{L}*| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}_]+|[ \t]+(?=\r?\n)|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE over `texts`, with <pad>, <bos>, <eos> as ids 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, loadable with AutoTokenizer."""
    make: Callable[..., Any] = PreTrainedTokenizerFast
    fast = make(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    _settle(folder)


def _settle(folder: Path) -> None:
    """Moves the chat template into tokenizer_config.json, and sets a class name that every release knows."""
    config = folder / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values["chat_template"] = CHAT_TEMPLATE
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
