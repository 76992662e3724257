"""The vocabulary of a GGUF file: tokens, their kinds, and the ids with a meaning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from model.gguf.header import GgufHeader
from protocol.errors import ConfigError

_PREFIX = "tokenizer.ggml."
# Names that end an answer. The first are never text; the others are where the file says so (Qwen has "</s>" as text).
_ENDS = frozenset(
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>"]
)
_CONTROL_ENDS = frozenset(["</s>", "<eos>", "<EOT>"])


class TokenKind(IntEnum):
    """llama.cpp's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """tokens, kinds: by id. Tokens that only fill up the embedding are left out of `ids`."""

    tokens: list[str]
    kinds: list[int]
    metadata: dict[str, object]

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens) if not self._fills_up(index)}

    def _fills_up(self, index: int) -> bool:
        return self.kinds[index] == TokenKind.UNUSED and self.tokens[index] == f"[PAD{index}]"

    def is_control(self, index: int) -> bool:
        """Whether a token is not text."""
        return self.kinds[index] in (TokenKind.CONTROL, TokenKind.UNKNOWN) or self.tokens[index] in _ENDS

    def is_matched_whole(self, index: int) -> bool:
        """Whether a token is found in text before the rest is cut and merged."""
        return self.is_control(index) or self.kinds[index] == TokenKind.USER_DEFINED

    def special(self, name: str, default: int | None = None) -> int | None:
        """The id of bos, eos, eot, eom, unknown or padding."""
        index = self.metadata.get(f"{_PREFIX}{name}_token_id", default)
        return index if isinstance(index, int) and 0 <= index < len(self.tokens) else None

    @property
    def ends(self) -> list[int]:
        """The ids that end an answer, EOS first."""
        named = [self.special(name) for name in ("eos", "eot", "eom")]
        controls = {
            index for index, token in enumerate(self.tokens) if token in _CONTROL_ENDS and self.is_control(index)
        }
        found = sorted(controls | {index for index, token in enumerate(self.tokens) if token in _ENDS})
        return list(dict.fromkeys(index for index in [*named, *found] if index is not None))

    def flag(self, name: str, default: bool) -> bool:
        """One of add_bos_token, add_eos_token and add_space_prefix."""
        return bool(self.metadata.get(f"{_PREFIX}{name}", default))


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """Raises ConfigError if the file holds none."""
    tokens = header.metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ConfigError(f"{header.path} holds no tokenizer; take a file with one")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    kinds = header.metadata.get(f"{_PREFIX}token_type", [TokenKind.NORMAL] * len(tokens))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ConfigError(f"the vocabulary of {header.path} is damaged: tokens and token types do not fit together")
    return Vocabulary(tokens, kinds, header.metadata)
