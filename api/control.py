"""Control tokens, which only a chat template may write. In a message, the same characters stay plain text.

Before the template runs, each message is marked with Unicode noncharacters, which no message may contain: START and END
around the spelling of a control token, and one of the two where the edge of a message could be half of a control token.
The template may then trim, split and join. In the rendered text, a spelling between marks came from the caller; every
other one came from the template. Only the template's become control tokens: each is replaced by a spelling made of
noncharacters, and a copy of the tokenizer reads that spelling as the token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from protocol.errors import InvalidRequest

START, END = "\ufdd0", "\ufdd1"
CUT = "\ufdd4"  # where a prompt ends that goes on with its last message
_SPELLING = "\ufdd2{}\ufdd3"
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_LOOKS_LIKE_CONTROL = re.compile(r"<\|.*\|>")


class ControlTokens:
    """The control tokens of one tokenizer. special: ids of the special tokens, by spelling."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added: Mapping[int, AddedToken] = tokenizer.added_tokens_decoder
        self.special = {token.content: number for number, token in self._added.items() if token.special}

    @cached_property
    def _names(self) -> frozenset[str]:
        """Special tokens, and added tokens that look like <|...|> or occur in the template. Others are words."""
        template = self._tokenizer.get_chat_template() if self._tokenizer.chat_template else ""
        ordinary = [token.content for token in self._added.values() if not token.special]
        control = (name for name in ordinary if _LOOKS_LIKE_CONTROL.fullmatch(name) or name in template)
        return frozenset(self.special) | {name for name in control if not name.isspace()}

    @cached_property
    def _all(self) -> re.Pattern[str]:
        return _any_of(self._names)

    @cached_property
    def _parts(self) -> tuple[frozenset[str], frozenset[str]]:
        """The proper prefixes and the proper suffixes of all control tokens."""
        sizes = [(name, size) for name in self._names for size in range(1, len(name))]
        return frozenset(name[:size] for name, size in sizes), frozenset(name[size:] for name, size in sizes)

    def mark(self, text: str, *, of_model: bool = False) -> str:
        """The text with START and END around control tokens.

        of_model: the text is an answer of the model. Models write control tokens that are not special themselves, so
        only special ones are marked.
        """
        pattern = _any_of(self.special) if of_model else self._all
        text = pattern.sub(f"{START}\\g<0>{END}", _NONCHARACTERS.sub("\ufffd", text))
        beginnings, ends = self._parts
        bare = text.strip()
        longest = max(map(len, self._names), default=0)
        sizes = range(1, min(longest, len(bare) + 1))
        if any(bare[-size:] in beginnings for size in sizes):
            text = f"{text.rstrip()}{END}{text[len(text.rstrip()) :]}"
        if any(bare[:size] in ends for size in sizes):
            text = f"{text[: -len(text.lstrip())]}{START}{text.lstrip()}"
        return text

    def mark_all(self, value: Any) -> Any:
        """A JSON value with every text in it marked, keys too."""
        if isinstance(value, str):
            return self.mark(value)
        if isinstance(value, dict):
            return {self.mark(key): self.mark_all(each) for key, each in value.items()}
        return [self.mark_all(each) for each in value] if isinstance(value, list) else value

    def encode(self, rendered: str) -> tuple[int, ...]:
        """Token ids of a text rendered from marked messages.

        Raises InvalidRequest if the tokenizer cannot write a caller's control token as plain text.
        """
        tokenizer, original_ids = self._copy
        pieces = re.split(
            f"{START}({self._all.pattern}){END}|[{START}{END}]", rendered
        )  # text, a marked token or None, ...
        count = 0
        for place in range(0, len(pieces), 2):
            pieces[place], num_replaced = self._all.subn(lambda match: self._spellings[match[0]], pieces[place])
            count += num_replaced
        copied = tokenizer.encode("".join(piece or "" for piece in pieces), add_special_tokens=False).ids
        ids = tuple(original_ids.get(token, token) for token in copied)
        if sum(token in self._added and self._added[token].content in self._names for token in ids) != count:
            raise InvalidRequest(
                "messages hold a control token that this tokenizer cannot write as plain text; leave it out", "messages"
            )
        return ids

    @cached_property
    def _spellings(self) -> Mapping[str, str]:
        return {name: _SPELLING.format(index) for index, name in enumerate(sorted(self._names))}

    @cached_property
    def _copy(self) -> tuple[Tokenizer, Mapping[int, int]]:
        """A copy of the tokenizer with other spellings of the control tokens, and its added ids to the original's.

        Built on first use; takes a second.
        """
        fields = json.loads(self._tokenizer.backend_tokenizer.to_str())
        fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] not in self._names]
        copy = Tokenizer.from_str(json.dumps(fields | dict.fromkeys(("post_processor", "truncation", "padding"))))
        control = [token for token in self._added.values() if token.content in self._names]
        copy.add_special_tokens([self._respelled(token) for token in control])
        ids = {self._spellings.get(token.content, token.content): number for number, token in self._added.items()}
        return copy, {number: ids[token.content] for number, token in copy.get_added_tokens_decoder().items()}

    def _respelled(self, token: AddedToken) -> AddedToken:
        spelling = self._spellings[token.content]
        edges = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
        return AddedToken(spelling, **edges, normalized=False)


def _any_of(names: Mapping[str, int] | frozenset[str]) -> re.Pattern[str]:
    """A pattern of all names, longest first, because one may be a prefix of another."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
