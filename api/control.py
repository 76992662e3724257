"""Control tokens, which only a chat template may write. In a message, the same characters stay plain text.

Before the template runs, each message is marked: MARK, a Unicode noncharacter that no message may contain, follows
every character that a control token begins with. The template may then trim, split, cut, join and delete; whatever it
makes of a message, no control token comes out without a mark in it, except where the template removes the mark itself.
In an answer of the model, which templates search for tags, only whole control tokens are marked. Where the edge of a
message could be half of a control token, it is marked too. Only what has no mark becomes a control token. If a message
spells one, the template's are replaced by spellings made of noncharacters, and a copy of the tokenizer reads these as
the tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from protocol.errors import InvalidRequest

MARK = "\ufdd0"
CUT = "\ufdd4"  # where a prompt ends that goes on with its last message
_NOTHING = "(?!)"
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
        return re.compile(f"({_any_of(self._names)})")

    @cached_property
    def _of_template(self) -> re.Pattern[str]:
        """Without a mark inside. A control token of one character has it behind itself, if it is a message's."""
        short = frozenset(name for name in self._names if len(name) == 1)
        return re.compile(f"({_any_of(self._names - short)}|(?:{_any_of(short)})(?!{MARK}))")

    @cached_property
    def _beginnings(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """The first characters of control tokens, and of whole special ones."""
        first = "|".join(sorted({re.escape(name[0]) for name in self._names})) or _NOTHING
        return re.compile(first), re.compile(f"(?={_any_of(self.special)}).", re.DOTALL)

    @cached_property
    def _parts(self) -> tuple[frozenset[str], frozenset[str]]:
        """The proper prefixes and the proper suffixes of all control tokens."""
        sizes = [(name, size) for name in self._names for size in range(1, len(name))]
        return frozenset(name[:size] for name, size in sizes), frozenset(name[size:] for name, size in sizes)

    def mark(self, text: str, *, of_model: bool = False) -> str:
        """The text with marks.

        of_model: the text is an answer of the model. Models write control tokens that are not special themselves, so
        only special ones are marked.
        """
        text = _NONCHARACTERS.sub("\ufffd", text)
        of_any, of_special = self._beginnings
        marked = (of_special if of_model else of_any).sub(f"\\g<0>{MARK}", text)
        beginnings, ends = self._parts
        bare = text.strip()
        longest = max(map(len, self._names), default=0)
        sizes = range(1, min(longest, len(bare) + 1))
        if any(bare[-size:] in beginnings for size in sizes):
            marked = f"{marked.rstrip()}{MARK}{marked[len(marked.rstrip()) :]}"
        if any(bare[:size] in ends for size in sizes):
            marked = f"{marked[: len(marked) - len(marked.lstrip())]}{MARK}{marked.lstrip()}"
        return marked

    def plain(self, rendered: str) -> str | None:
        """The text without marks, if nothing in it but the template's reads as a control token."""
        text = rendered.replace(MARK, "")
        same = [piece.replace(MARK, "") for piece in self._of_template.split(rendered)] == self._all.split(text)
        return text if same else None

    def are_of_template(self, ids: Sequence[int], text: str) -> bool:
        """Whether there are no more control tokens than a text spells: a tokenizer may normalize others to one."""
        return self._num_control(ids) <= len(self._all.findall(text))

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
        pieces = [piece.replace(MARK, "") for piece in self._of_template.split(rendered)]  # text, a token, text, ...
        pieces[1::2] = [self._spellings[name] for name in pieces[1::2]]
        copied = tokenizer.encode("".join(pieces), add_special_tokens=False).ids
        ids = tuple(original_ids.get(token, token) for token in copied)
        if self._num_control(ids) != len(pieces) // 2:
            raise InvalidRequest(
                "messages hold a control token that this tokenizer cannot write as plain text; leave it out", "messages"
            )
        return ids

    def _num_control(self, ids: Sequence[int]) -> int:
        return sum(token in self._added and self._added[token].content in self._names for token in ids)

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


def _any_of(names: Mapping[str, int] | frozenset[str]) -> str:
    """A pattern of all names, longest first, because one may be a prefix of another."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or _NOTHING
