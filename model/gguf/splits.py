"""How llama.cpp cuts text into words before byte-pair merges, by the file's `tokenizer.ggml.pre`."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex, pre_tokenizers

from protocol.errors import UnsupportedModel

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_NOT_LOWER, _NOT_UPPER = r"((?=\p{L})[^a-z])", r"((?=\p{L})[^A-Z])"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}*{_NOT_UPPER}+|[^\r\n\p{{L}}\p{{N}}]?{_NOT_LOWER}+{_NOT_UPPER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)


@dataclass(frozen=True, slots=True)
class Splits:
    """patterns: each cuts the pieces of the one before. whole_words: a piece that is a token needs no merges.
    adds_bos: whether a prompt begins with BOS if the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, to_bytes])


_LLAMA3 = Splits((_WORDS % r"\p{N}{1,3}",), whole_words=True, adds_bos=True)
_QWEN2 = Splits((_WORDS % r"\p{N}",))
_DEFAULT = Splits((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
SPLITS = MappingProxyType(
    {
        "default": _DEFAULT,
        "gpt-2": Splits((_GPT2,)),
        "smollm": Splits((r"\p{N}", _GPT2)),
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
        "llama-bpe": _LLAMA3,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "smaug-bpe": Splits(_LLAMA3.patterns),
        "tekken": Splits((_TEKKEN,), whole_words=True, adds_bos=True),
    }
)


def splits_of(pre: str) -> Splits:
    """Raises UnsupportedModel for an unknown name."""
    if pre not in SPLITS:
        raise UnsupportedModel(
            f"the pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not supported; supported are {', '.join(SPLITS)}: "
            "give the model's HF checkpoint"
        )
    return SPLITS[pre]
