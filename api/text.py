"""Text out of tokens as they come: whole characters only, and nothing past a stop string.

Detokenizer decodes a short window of tokens: those of the last whole piece, for context, and those since; the first
context is the end of the prompt, for some decoders drop a space that nothing goes before. The window's text is held
back from its trailing U+FFFD on, which is what a character whose last bytes are still to come decodes to. Windows
start where a character starts, so for byte-level BPE the pieces and the tail join to `decode` of all tokens, broken
bytes included. Vocabularies with byte fallback (<0x..>) do so for valid text. No token costs more than a window.

StopMatcher ends a text at the first character that completes a stop string, so what is returned depends on the
text alone and not on how it was cut into runs. It holds back only a tail that may still become a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_BROKEN = "\ufffd"
_MAX_BYTES = 4  # of a character
_MAX_STEP = 32  # tokens that are decoded at a time, beside the context
_MAX_HELD = 8  # tokens that may wait for the rest of a character
_NUM_PROMPT = 16  # tokens of a prompt that are context


class Decoder(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool, **options: bool) -> str | list[str]: ...


def decode(tokenizer: Decoder, token_ids: Sequence[int]) -> str:
    """The text of all tokens at once, which the pieces of a Detokenizer join to."""
    return str(tokenizer.decode(list(token_ids), True, clean_up_tokenization_spaces=False))


def continuation(tokenizer: Decoder, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text of tokens that go on from a prompt."""
    detokenizer = Detokenizer(tokenizer, prompt_ids)
    return detokenizer.push(token_ids) + detokenizer.finish()


class Detokenizer:
    """prompt_ids: what the tokens go on from; a character that it leaves open comes out here, whole."""

    def __init__(self, tokenizer: Decoder, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._fresh: list[int] = []
        self._sent = ""  # the window's text that is out
        self._begin(_ending(tokenizer, prompt_ids))

    def push(self, token_ids: Sequence[int]) -> str:
        steps = range(0, len(token_ids), _MAX_STEP)
        return "".join(self._step(token_ids[at : at + _MAX_STEP]) for at in steps)

    def finish(self) -> str:
        """What was held back: nothing, or the U+FFFD of characters that never came whole."""
        piece = self._unsent(self._with_context(self._fresh))
        self._begin([])
        return piece

    def _step(self, token_ids: Sequence[int]) -> str:
        self._fresh += token_ids
        text = self._with_context(self._fresh)
        if text == self._sent:
            return self._silent()
        if not text.endswith(_BROKEN):
            piece = self._unsent(text)
            self._go_on(len(self._fresh))
            return piece
        if len(self._fresh) > _MAX_HELD:
            return self._cut(text)
        whole = text.rstrip(_BROKEN)
        piece = self._unsent(whole)
        self._sent = whole if piece else self._sent
        return piece

    def _silent(self) -> str:
        """Tokens without text leave no trace; with a character open they may be bytes of it."""
        if not self._sent.endswith(_BROKEN) or len(self._fresh) > _MAX_HELD:
            self._fresh = []
        return ""

    def _cut(self, text: str) -> str:
        """More than one character waits for bytes, or none ever will: all that goes before the last one is out."""
        size, before = self._whole_head() or self._head_of(text) or (len(self._fresh), text)
        piece = self._unsent(before)
        self._go_on(size)
        return piece

    def _whole_head(self) -> tuple[int, str] | None:
        sizes = range(len(self._fresh) - 1, max(len(self._fresh) - _MAX_BYTES, 0), -1)
        texts = ((size, self._with_context(self._fresh[:size])) for size in sizes)
        return next((found for found in texts if not found[1].endswith(_BROKEN)), None)

    def _head_of(self, text: str) -> tuple[int, str] | None:
        """Cut within a character, broken text gets longer."""
        for size in range(len(self._fresh) - 1, 0, -1):
            before, behind = self._with_context(self._fresh[:size]), decode(self._tokenizer, self._fresh[size:])
            if behind and before + behind == text:
                return size, before
        return None

    def _with_context(self, token_ids: list[int]) -> str:
        return decode(self._tokenizer, self._context + token_ids)

    def _go_on(self, size: int) -> None:
        """The text of so many fresh tokens is out: they are the context. A broken one may be the head of theirs."""
        head, rest = self._fresh[:size], self._fresh[size:]
        is_open = self._sent.endswith(_BROKEN) and len(self._context) <= _NUM_PROMPT
        self._begin(self._context + head if is_open else head)
        self._fresh = rest

    def _begin(self, context: list[int]) -> None:
        self._context, self._fresh = context, []
        self._sent = decode(self._tokenizer, context)

    def _unsent(self, text: str) -> str:
        """A character that was open, and told as broken by the prompt, comes out whole."""
        sent = self._sent
        while sent.endswith(_BROKEN) and not text.startswith(sent):
            sent = sent[:-1]
        return text[len(sent) :]


def _ending(tokenizer: Decoder, prompt_ids: Sequence[int]) -> list[int]:
    """The prompt's last tokens, from where a character starts if there is such a place."""
    first = len(prompt_ids) - _NUM_PROMPT
    if first <= 0:
        return list(prompt_ids)
    endings = [list(prompt_ids[start:]) for start in range(first, first + _MAX_BYTES)]
    return next((each for each in endings if not decode(tokenizer, each).startswith(_BROKEN)), endings[0])


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

    def __init__(self, tokenizer: Decoder, stops: Sequence[str] = (), prompt_ids: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
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
