"""Text out of tokens as they come: whole characters only, and nothing past a stop string.

Detokenizer decodes a short window of tokens: those of the last whole piece, for context, and those since. The
window's text is held back from its trailing U+FFFD on, which is what a character whose last bytes are still
to come decodes to. Windows start where a character starts, so for byte-level BPE the pieces and the tail
join to `decode` of all tokens, broken bytes included. Vocabularies with byte fallback (<0x..>) do so for valid text.

StopMatcher ends a text at the first character that completes a stop string, so what is returned depends on the
text alone and not on how it was cut into runs. It holds back only a tail that may still become a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_BROKEN = "\ufffd"


class Decoder(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool, **options: bool) -> str | list[str]: ...


def decode(tokenizer: Decoder, token_ids: Sequence[int]) -> str:
    """The text of all tokens at once, which the pieces of a Detokenizer join to."""
    return str(tokenizer.decode(list(token_ids), True, clean_up_tokenization_spaces=False))


class Detokenizer:
    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_context = 0  # tokens at the window's start whose text is out
        self._num_sent = 0  # characters of the window's text that are out

    def push(self, token_ids: Sequence[int]) -> str:
        self._window += token_ids
        text = decode(self._tokenizer, self._window)
        whole = text.rstrip(_BROKEN)
        piece = whole[self._num_sent :]
        self._num_sent = max(self._num_sent, len(whole))
        if whole == text and piece:
            self._window = self._window[self._num_context :]
            self._num_context = len(self._window)
            self._num_sent = len(decode(self._tokenizer, self._window))
        return piece

    def finish(self) -> str:
        """What was held back: nothing, or the U+FFFD of characters that never came whole."""
        piece = decode(self._tokenizer, self._window)[self._num_sent :]
        self._window, self._num_context, self._num_sent = [], 0, 0
        return piece


class StopMatcher:
    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is free to go; nothing more once `stopped`."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """num_tokens: how many of the pushed tokens count; fewer than all when a stop string ends before the last."""

    text: str
    num_tokens: int
    stopped: bool = False


class TextStream:
    """Both of the above for one completion. Text and token count do not depend on how tokens come in runs."""

    def __init__(self, tokenizer: Decoder, stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops) if stops else None

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> Piece:
        """last: no more tokens come, so what was held back goes out too."""
        if self._matcher is None:
            text = self._detokenizer.push(token_ids)
            return Piece(text + self._detokenizer.finish() if last else text, len(token_ids))
        text = ""
        for count, token_id in enumerate(token_ids, start=1):
            text += self._matcher.push(self._detokenizer.push((token_id,)))
            if self._matcher.stopped:
                return Piece(text, count, stopped=True)
        if last:
            text += self._matcher.push(self._detokenizer.finish())
            text += self._matcher.finish()
        return Piece(text, len(token_ids), self._matcher.stopped)
