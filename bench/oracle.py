"""Stand-in: a drafter that knows the plain loop's text and errs as often as it is told.

At each position of each text one uniform number u decides, whatever the rounds that ask: the oracle proposes the right
token iff u is below the acceptance of the depth asked for. So what a shallow exit gets right a deeper one gets right
too, positions are independent, and the share of verified tokens that are accepted is exactly binomial. When it errs, a
second number decides whether its second choice is the right one, which is what mirror branches live on. Its confidence
is the acceptance itself, and a probe tells of the same numbers u.

For measurements only: results carry its label, and nothing that is served imports it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from operator import mul

from drafters.nested import leaves
from drafters.outcomes import Guess
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.errors import ConfigError
from protocol.plan import DepthRule
from protocol.request import SamplingParams

UNIT = 2.0**-53


@dataclass(frozen=True, slots=True)
class KnownText:
    """What the plain loop makes of a prompt under these parameters."""

    prompt_ids: tuple[int, ...] = field(repr=False)
    sampling: SamplingParams
    token_ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ranking:
    """acceptance: by depth. runner_up: how probably the second choice is right, given that the first is not."""

    acceptance: Mapping[int, float]
    runner_up: float
    vocab_size: int
    seed: int = 0

    @property
    def label(self) -> str:
        rates = ", ".join(f"{rate:g} at depth {depth}" for depth, rate in self.acceptance.items())
        return f"acceptance {rates}; runner-up {self.runner_up:g}; seed {self.seed}"

    def __post_init__(self) -> None:
        if not self.acceptance or not all(0 <= p <= 1 for p in (*self.acceptance.values(), self.runner_up)):
            raise ConfigError(f"acceptance {dict(self.acceptance)}, runner_up {self.runner_up}: give values in [0, 1]")
        if self.vocab_size < 3:
            raise ConfigError(f"a vocabulary of {self.vocab_size} has no room for two wrong tokens")

    def best_two(self, text: int, position: int, depth: int, right: int) -> tuple[int, int]:
        """First and second choice at an absolute position of a text, of which `right` is the token there."""
        first, second, shift = self._uniforms(text, position)
        wrong = (right + 1 + int(shift * (self.vocab_size - 2))) % self.vocab_size
        other = (wrong + 1) % self.vocab_size  # never `right`, which `wrong` stays two below
        if first < self.acceptance[depth]:
            return right, wrong
        return wrong, right if second < self.runner_up else other

    def _uniforms(self, text: int, position: int) -> tuple[float, float, float]:
        """Three numbers in [0, 1)."""
        digest = hashlib.blake2b(struct.pack("<3Q", self.seed, text, position), digest_size=24).digest()
        first, second, third = (UNIT * (number >> 11) for number in struct.unpack("<3Q", digest))
        return first, second, third


@dataclass(slots=True)
class _Open:
    """A sequence that is open: its committed tokens, and the known text that they begin."""

    tokens: list[int] = field(default_factory=list, repr=False)
    text: int | None = None


class OracleDrafter:
    """A protocol.draft.DraftClient that answers at once. Tokens that begin no known text get no draft."""

    def __init__(self, texts: Sequence[KnownText], ranking: Ranking, max_rows: int = 1024) -> None:
        """max_rows: sequences open at a time; those beyond are BUSY."""
        self._texts = [(known.sampling, (*known.prompt_ids, *known.token_ids)) for known in texts]
        self._ranking = ranking
        self._max_rows = max_rows
        self._open: dict[int, _Open] = {}
        self.num_lost = 0  # drafts that were asked for and not known: 0 in a sound run

    @property
    def label(self) -> str:
        """Stands in every result."""
        return f"oracle drafter, {self._ranking.label}"

    @property
    def exits(self) -> tuple[int, ...]:
        """In order of depth, as a probe tells of them."""
        return tuple(sorted(self._ranking.acceptance))

    @property
    def num_open(self) -> int:
        return len(self._open)

    def open(self, request: DraftRequest) -> None:
        self.draft(request)

    def draft(self, request: DraftRequest) -> DraftReply:
        blocks = tuple(self._block(row, row.depth or request.depth) for row in request.rows)
        return DraftReply(request.incarnation, request.round_id, blocks)

    def close(self, sequence_ids: Sequence[int]) -> None:
        for sequence_id in sequence_ids:
            self._open.pop(sequence_id, None)

    def runner_up(self, sequence_id: int, position: int, depth: int) -> int | None:
        """The second choice at an absolute position of an open sequence; None where its text is not known."""
        sequence = self._open.get(sequence_id)
        ranked = self._best_two(sequence, position, depth) if sequence else None
        return ranked[1] if ranked else None

    def tokens(self, sequence_id: int) -> Sequence[int]:
        """Committed tokens of an open sequence, as far as they were handed over; none of any other."""
        sequence = self._open.get(sequence_id)
        return sequence.tokens if sequence else ()

    def guesses(self, sequence_id: int, start: int, count: int, depth: DepthRule) -> list[Guess]:
        """What it would say of `count` absolute positions from `start` on; of those alone that its text has."""
        sequence, exit_ = self._open.get(sequence_id), self._exit(depth)
        if sequence is None or exit_ is None:
            return []
        ranked = (self._best_two(sequence, position, exit_) for position in range(start, start + count))
        return [Guess(pair[0], self._ranking.acceptance[exit_], pair[1]) for pair in ranked if pair]

    def _block(self, row: DraftRow, depth: DepthRule) -> DraftBlock:
        status = self._take(row)
        if status is not DraftStatus.OK:
            return DraftBlock(row.sequence_id, row.base_length, status)
        sequence = self._open[row.sequence_id]
        exit_ = self._exit(depth)
        tokens = () if exit_ is None else self._tokens(sequence, row, exit_)
        self.num_lost += row.length > 0 and not tokens
        if exit_ is None or not tokens:
            return DraftBlock(row.sequence_id, row.base_length, status)
        sure = (self._ranking.acceptance[exit_],) * len(tokens)
        return DraftBlock(row.sequence_id, row.base_length, status, tokens, (exit_,) * len(tokens), sure)

    def _tokens(self, sequence: _Open, row: DraftRow, exit_: int) -> tuple[int, ...]:
        """First choices, as many as the row's length and floor allow."""
        length = drafted_length(row.length, self._ranking.acceptance[exit_], row.stop_probability)
        positions = range(row.base_length, row.base_length + length)
        ranked = (self._best_two(sequence, position, exit_) for position in positions)
        return tuple(pair[0] for pair in ranked if pair)

    def _take(self, row: DraftRow) -> DraftStatus:
        sequence = self._open.get(row.sequence_id)
        if row.start > (len(sequence.tokens) if sequence else 0):
            return DraftStatus.NEED_CONTEXT
        if sequence is None:
            if len(self._open) >= self._max_rows:
                return DraftStatus.BUSY
            sequence = self._open[row.sequence_id] = _Open()
        sequence.tokens[row.start :] = row.tokens
        if not self._begins(sequence.text, row.start, row.tokens):
            sequence.text = self._find(row.sampling, sequence.tokens)
        return DraftStatus.OK

    def _begins(self, text: int | None, start: int, tokens: Sequence[int]) -> bool:
        return text is not None and self._texts[text][1][start : start + len(tokens)] == tuple(tokens)

    def _find(self, sampling: SamplingParams, tokens: Sequence[int]) -> int | None:
        fitting = (text for text, (own, _) in enumerate(self._texts) if own == sampling)
        return next((text for text in fitting if self._begins(text, 0, tokens)), None)

    def _exit(self, rule: DepthRule) -> int | None:
        """Where every token leaves: the acceptance of an exit is the confidence there. None for an unknown depth."""
        if not set(rule.exits) <= set(self._ranking.acceptance):
            return None
        return next(exit_ for exit_ in rule.exits if leaves(rule, exit_, self._ranking.acceptance[exit_]))

    def _best_two(self, sequence: _Open, position: int, depth: int) -> tuple[int, int] | None:
        if sequence.text is None or position >= len(self._texts[sequence.text][1]):
            return None
        return self._ranking.best_two(sequence.text, position, depth, self._texts[sequence.text][1][position])


def drafted_length(length: int, confidence: float, floor: float) -> int:
    """How long a draft of at most `length` tokens gets when each has this confidence; a floor of 0 never ends it."""
    survival = accumulate(repeat(confidence, length), mul)
    return next((count for count, product in enumerate(survival, 1) if floor > 0 and product <= floor), length)
