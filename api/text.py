"""Turns a stream of tokens into text: whole characters only, and nothing past a stop string.

Detokenizer decodes a short window of tokens: the tokens of the last complete piece, as context, and the new ones. The
first context is the end of the prompt, because some decoders drop a leading space. An incomplete character decodes to
U+FFFD, so a trailing U+FFFD is held back. A window starts where a character starts, so for byte-level BPE the pieces
join to `decode` of all tokens, broken bytes included. For vocabularies with byte fallback (<0x..>) this holds for valid
text. The cost per token is bounded by the window.

A text ends before the stop string that is completed first. That depends on the text alone, not on how it was cut into
runs. Only a tail that may still become a stop string is held back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_BROKEN = "\ufffd"
_MAX_BYTES = 4  # bytes of a character
_MAX_STEP = 32  # new tokens decoded at a time
_MAX_HELD = 8  # tokens that may wait for the rest of a character
_NUM_PROMPT = 16  # tokens of the prompt used as context


class TokenDecoder(Protocol):
    """The part of a transformers tokenizer that this module uses."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool, **options: bool) -> str | list[str]: ...


def decode(tokenizer: TokenDecoder, token_ids: Sequence[int]) -> str:
    """The text of all tokens at once. The pieces of a Detokenizer join to the same text."""
    return str(tokenizer.decode(list(token_ids), True, clean_up_tokenization_spaces=False))


def continuation(tokenizer: TokenDecoder, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text that the tokens add to a prompt."""
    detokenizer = Detokenizer(tokenizer, prompt_ids)
    return detokenizer.push(token_ids) + detokenizer.finish()


class Shown:
    """A tokenizer whose texts show special tokens too, all but the hidden ones."""

    def __init__(self, tokenizer: TokenDecoder, hidden: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden

    def decode(self, token_ids: list[int], skip_special_tokens: bool, **options: bool) -> str | list[str]:
        return self._tokenizer.decode([token for token in token_ids if token not in self._hidden], False, **options)


class Detokenizer:
    """Decodes tokens piece by piece.

    prompt_ids: the prompt that the tokens continue. If it ends within a character, the whole character comes out here.
    """

    def __init__(self, tokenizer: TokenDecoder, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._fresh: list[int] = []
        self._sent = ""  # the part of the window's text that was returned
        self._begin(_ending(tokenizer, prompt_ids))

    def push(self, token_ids: Sequence[int]) -> str:
        steps = range(0, len(token_ids), _MAX_STEP)
        return "".join(self._step(token_ids[at : at + _MAX_STEP]) for at in steps)

    def finish(self) -> str:
        """The text that was held back: empty, or U+FFFD for an incomplete character."""
        piece = self._unsent(self._with_context(self._fresh))
        self._begin([])
        return piece

    def _step(self, token_ids: Sequence[int]) -> str:
        self._fresh += token_ids
        text = self._with_context(self._fresh)
        if text == self._sent:
            return self._skip()
        if not text.endswith(_BROKEN):
            piece = self._unsent(text)
            self._advance(len(self._fresh))
            return piece
        if len(self._fresh) > _MAX_HELD:
            return self._cut(text)
        whole = text.rstrip(_BROKEN)
        piece = self._unsent(whole)
        self._sent = whole if piece else self._sent
        return piece

    def _skip(self) -> str:
        """Drops new tokens that add no text, unless they may be bytes of an incomplete character."""
        if not self._sent.endswith(_BROKEN) or len(self._fresh) > _MAX_HELD:
            self._fresh = []
        return ""

    def _cut(self, text: str) -> str:
        """Returns the text before the last character if too many tokens are held back."""
        size, before = self._whole_head() or self._head_of(text) or (len(self._fresh), text)
        piece = self._unsent(before)
        self._advance(size)
        return piece

    def _whole_head(self) -> tuple[int, str] | None:
        sizes = range(len(self._fresh) - 1, max(len(self._fresh) - _MAX_BYTES, 0), -1)
        texts = ((size, self._with_context(self._fresh[:size])) for size in sizes)
        return next((head for head in texts if not head[1].endswith(_BROKEN)), None)

    def _head_of(self, text: str) -> tuple[int, str] | None:
        """The longest head whose text and the rest's join to `text`. A cut within a character makes the text longer."""
        for size in range(len(self._fresh) - 1, 0, -1):
            before, behind = self._with_context(self._fresh[:size]), decode(self._tokenizer, self._fresh[size:])
            if behind and before + behind == text:
                return size, before
        return None

    def _with_context(self, token_ids: list[int]) -> str:
        return decode(self._tokenizer, self._context + token_ids)

    def _advance(self, size: int) -> None:
        """Makes the first `size` new tokens the context. Keeps the prompt if they complete a character of it."""
        head, rest = self._fresh[:size], self._fresh[size:]
        is_open = self._sent.endswith(_BROKEN) and len(self._context) <= _NUM_PROMPT
        self._begin(self._context + head if is_open else head)
        self._fresh = rest

    def _begin(self, context: list[int]) -> None:
        self._context, self._fresh = context, []
        self._sent = decode(self._tokenizer, context)

    def _unsent(self, text: str) -> str:
        """The part of `text` that was not returned yet, including a character that the prompt left incomplete."""
        sent = self._sent
        while sent.endswith(_BROKEN) and not text.startswith(sent):
            sent = sent[:-1]
        return text[len(sent) :]


def _ending(tokenizer: TokenDecoder, prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of the prompt, starting at the start of a character if there is one."""
    first = len(prompt_ids) - _NUM_PROMPT
    if first <= 0:
        return list(prompt_ids)
    endings = [list(prompt_ids[start:]) for start in range(first, first + _MAX_BYTES)]
    return next((ending for ending in endings if not decode(tokenizer, ending).startswith(_BROKEN)), endings[0])


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """Splits a text into what can be returned and the tail that may still become a stop string.

    The third value is whether a stop string ended the text; then the second is that string, and the rest is dropped.
    """
    ends = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if ends:
        end, start = min(ends)
        return text[:start], text[start:end], True
    at = len(text) - max((_overlap(text, stop) for stop in stops), default=0)
    return text[:at], text[at:], False


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text from one push. num_tokens: pushed tokens up to the stop string, or all. stop: the string that ended it."""

    text: str
    num_tokens: int
    stop: str = ""

    @property
    def stopped(self) -> bool:
        return bool(self.stop)


class TextStream:
    """The text of one completion up to a stop string. Text and token count do not depend on how runs are cut."""

    def __init__(self, tokenizer: TokenDecoder, stops: Sequence[str] = (), prompt_ids: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        self._stops = stops
        self._held = ""

    def echo(self, prompt_ids: Sequence[int]) -> str:
        """The text of a prompt, before the first push. A character that it leaves incomplete comes with the tokens."""
        return self._detokenizer.push(prompt_ids)

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> Piece:
        """The text of new tokens. last: no tokens follow, so held-back text is returned too. Not after a stop."""
        if not self._stops:
            text = self._detokenizer.push(token_ids)
            return Piece(text + self._detokenizer.finish() if last else text, len(token_ids))
        text, stopped = "", False
        for count, token_id in enumerate(token_ids, start=1):
            ready, self._held, stopped = until_stop(self._held + self._detokenizer.push((token_id,)), self._stops)
            text += ready
            if stopped:
                return Piece(text, count, self._held)
        if not last:
            return Piece(text, len(token_ids))
        ready, rest, stopped = until_stop(self._held + self._detokenizer.finish(), self._stops)
        return Piece(text + ready, len(token_ids), rest) if stopped else Piece(text + ready + rest, len(token_ids))
