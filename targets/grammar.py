"""Grammars: which tokens a text may go on with, as masks over the vocabulary, by llguidance.

A mask is a pure function of a grammar and of the tokens generated before a place. A matcher that has read other tokens
goes back to where they part and reads on, so a draft, its rejection and a preempted sequence all find the same masks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from protocol.errors import InvalidRequest

Mask = npt.NDArray[np.int32]  # [vocab_size / 32], a bit for each token that may come
Masks = npt.NDArray[np.int32]  # the same by place

KEPT = 128  # compiled grammars
QUIET = 0


class Grammars:
    """Compiled grammars of one vocabulary. Several threads may ask."""

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """tokenizer: the text of its tokenizer.json."""
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        self.num_words = -(-vocab_size // 32)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, grammar: str) -> Constraint:
        """For one text. Raises InvalidRequest for a grammar that is none, or too large."""
        with self._lock:
            matcher = self._compiled.pop(grammar, None)
        if matcher is None:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=QUIET)
        if matcher.is_error():
            raise InvalidRequest(f"the grammar does not compile: {matcher.get_error()[:300]}")
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Constraint(matcher.deep_copy(), self.num_words)


class Constraint:
    """A grammar on its way through one text. It keeps the masks of a round, from draft to pass."""

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher, self._num_words = matcher, num_words
        self._read: list[int] = []
        self._num_generated = 0  # in this round
        self._masks: dict[tuple[int, ...], Mask] = {}  # by the drafted tokens before them

    def masks(self, generated: Sequence[int], draft: Sequence[int] = ()) -> Masks:
        """What may come behind the generated tokens, and behind each token of the draft. Behind a token of the draft
        that the grammar refuses all may come: that place is never reached. Nothing may come behind a text that it
        refuses, so that this text ends and no other.
        """
        masks = np.full((1 + len(draft), self._num_words), -1, np.int32)
        if not self._go_to(generated):
            return np.zeros_like(masks)
        for place in range(1 + len(draft)):
            if place and not self._consume(draft[place - 1]):
                break
            masks[place] = self._mask(draft[:place])
        return masks

    def refusal(self, generated: Sequence[int], draft: Sequence[int], pick: int) -> Mask | None:
        """What may come behind both in place of a pick that may not; None where it may, which takes no mask to see."""
        if not self._go_to(generated, draft):
            return np.zeros(self._num_words, np.int32)
        return None if self._takes(pick) else self._mask(draft)

    def mended(self, generated: Sequence[int], draft: Sequence[int], room: int) -> tuple[tuple[int, ...], int]:
        """The draft as far as the grammar allows it, and what it leaves no choice about behind that, `room` tokens at
        most; and how many of them are the draft's.
        """
        if not self._go_to(generated):
            return (), 0
        kept = tuple(takewhile(self._consume, draft[:room]))
        forced = self._matcher.compute_ff_tokens() if len(kept) < room else ()
        return (*kept, *forced[: room - len(kept)]), len(kept)

    def _mask(self, draft: Sequence[int]) -> Mask:
        """What may come behind what was read, which ends with this draft."""
        found = self._masks.get(tuple(draft))
        if found is None:
            found = self._masks[tuple(draft)] = np.empty(self._num_words, np.int32)
            self._matcher.unsafe_compute_mask_ptr(found.ctypes.data, 4 * self._num_words)
        return found

    def _takes(self, token: int) -> bool:
        """Whether the mask has this token. Where some are forced it has only the first of them, which others may spell
        in part.
        """
        forced = self._matcher.compute_ff_tokens()
        return token == forced[0] if forced else token >= 0 and self._matcher.validate_tokens([token]) == 1

    def _go_to(self, generated: Sequence[int], draft: Sequence[int] = ()) -> bool:
        """Whether the grammar allows these tokens."""
        text, shared = [*generated, *draft], min(len(self._read), len(generated))
        while self._read[:shared] != text[:shared]:
            shared -= 1
        if shared < len(generated) or len(generated) != self._num_generated:
            self._num_generated = len(generated)
            self._masks.clear()
        while shared < min(len(self._read), len(text)) and self._read[shared] == text[shared]:
            shared += 1
        if len(self._read) > shared:
            self._matcher.rollback(len(self._read) - shared)
            del self._read[shared:]
        return all(map(self._consume, text[shared:]))

    def _consume(self, token: int) -> bool:
        if self._matcher.try_consume_tokens([token]) != 1:
            return False
        self._read.append(token)
        return True
