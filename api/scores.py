"""Logprobs as a reply shows them: what each token spells, and where in the text it stands."""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.vocabulary import Spellings
from protocol.logit_rules import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ScoredToken:
    token_id: int
    spelling: bytes = field(repr=False)  # not always whole characters
    logprob: float | None  # None: of the first token of all, which nothing stands before

    @property
    def text(self) -> str:
        r"""With \xf0 for a byte of an incomplete character, as OpenAI writes it."""
        return self.spelling.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Score:
    """A place of the text. offset: whole characters of the text before it. top: best first."""

    chosen: ScoredToken
    top: tuple[ScoredToken, ...]
    offset: int


class Scores:
    """The scores of one completion, in order."""

    def __init__(self, spellings: Spellings) -> None:
        self._spellings = spellings
        self._characters = _decoder()
        self._offset = 0

    def read(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]) -> tuple[Score, ...]:
        """Of the next tokens; nothing if there are no logprobs. More logprobs than tokens may be given.

        A prompt that is told goes before the text; its first token has None.
        """
        return tuple(map(self._score, token_ids, logprobs))

    def _score(self, token_id: int, told: TokenLogprobs | None) -> Score:
        top = tuple(self._token(other, logprob) for other, logprob in told.top) if told else ()
        chosen = self._token(token_id, told.chosen if told else None)
        score = Score(chosen, top, self._offset + self._breaks_a_character(chosen.spelling))
        if not self._spellings[token_id].special:  # the text leaves special tokens out
            self._offset += len(self._characters.decode(chosen.spelling))
        return score

    def _breaks_a_character(self, spelling: bytes) -> bool:
        """Whether it does not complete what stands before it, which so becomes a U+FFFD."""
        begun, _ = self._characters.getstate()
        return bool(begun and spelling) and _decoder().decode(begun + spelling[:1]).startswith("\ufffd")

    def _token(self, token_id: int, logprob: float | None) -> ScoredToken:
        return ScoredToken(token_id, self._spellings[token_id].spelling, logprob)


def _decoder() -> IncrementalDecoder:
    return getincrementaldecoder("utf-8")("replace")
