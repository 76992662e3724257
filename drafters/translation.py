"""A drafter of another tokenizer: token-level intersection (TLI, Timor et al. 2025).

The drafter reads each of the target's tokens as its own tokens with the same spelling, so committed text never changes
for it. Its draft is handed back up to the first token that the target's vocabulary lacks. A draft is only advice: the
text is exact whatever the tables say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from drafters.manifest import vocabulary_hash
from model.tokenizer import load_tokenizer
from model.vocabulary import Piece, pieces


@dataclass(frozen=True, slots=True)
class Translation:
    """to_drafter: by the target's token, the drafter's tokens of the same spelling. to_target: by the drafter's token,
    the target's, for the intersection of the vocabularies.
    """

    to_drafter: Mapping[int, tuple[int, ...]] = field(repr=False)
    to_target: Mapping[int, int] = field(repr=False)

    def read(self, tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The drafter's tokens for each of the target's; none for text that its vocabulary cannot spell."""
        return (self.to_drafter.get(token, ()) for token in tokens)

    def write(self, drafted: Sequence[int]) -> tuple[int, ...]:
        """The target's tokens for a draft, up to the first that it lacks."""
        return tuple(self.to_target[token] for token in takewhile(self.to_target.__contains__, drafted))

    def shares(self, token: int) -> bool:
        """Whether the target's token lies in the intersection."""
        own = self.to_drafter.get(token, ())
        return len(own) == 1 and own[0] in self.to_target


def translation_between(target: Path, drafter: Path) -> Translation | None:
    """The translation between two checkpoints; None if they have one vocabulary. Raises ConfigError for an unreadable
    tokenizer.
    """
    if vocabulary_hash(target) == vocabulary_hash(drafter):
        return None
    return translation(pieces(load_tokenizer(target)), pieces(load_tokenizer(drafter)))


def translation(target: Mapping[int, Piece], drafter: Mapping[int, Piece]) -> Translation:
    """Tables for two vocabularies, by token id. Special tokens are matched by name only; one that the drafter lacks is
    read as plain text.
    """
    known = {piece: index for index, piece in sorted(drafter.items(), reverse=True) if piece.spelling}
    plain = {piece.spelling: index for piece, index in known.items() if not piece.special}
    longest = max(map(len, plain), default=0)
    shared = {index: known[piece] for index, piece in target.items() if piece in known}
    to_drafter = {
        index: (shared[index],) if index in shared else tuple(spell(piece.spelling, plain, longest))
        for index, piece in target.items()
    }
    return Translation(to_drafter, {own: index for index, own in sorted(shared.items(), reverse=True)})


def spell(text: bytes, known: Mapping[bytes, int], longest: int) -> Iterator[int]:
    """The text as known pieces, each the longest that fits. Bytes without a piece are left out."""
    start = 0
    while start < len(text):
        ends = range(min(len(text), start + longest), start, -1)
        end = next((end for end in ends if text[start:end] in known), None)
        if end is not None:
            yield known[text[start:end]]
        start = start + 1 if end is None else end
