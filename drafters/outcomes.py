"""Which outcomes of a verification are worth preparing for, best first.

The proposal's tokens d[0], d[1], ... and the drafter's own next token behind them are its guesses. The outcome (r, c),
the first r guesses right and c in place of the next, has the probability

    a[0] * ... * a[r - 1] * (1 - a[r]) * share(c | r)          all guesses right: a[0] * a[1] * ... * a[-1]

a[i] is the confidence of guess i, taken as its chance to be right. share is the part of the mistakes at r that c
corrects; the drafter's second choice corrects RUNNER_UP of them, and no other token is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.branch import BranchSource

Outcome = tuple[int, int]  # how much of the proposal is accepted, and the token behind that

RUNNER_UP = 0.5
SURE, UNSURE = 0.98, 0.02


@dataclass(frozen=True, slots=True)
class Guess:
    """The drafter's pick at one position. runner_up: its second choice; None: not known."""

    token: int = field(repr=False)
    confidence: float
    runner_up: int | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An outcome: the first `accepted` tokens of the proposal, then `token`."""

    accepted: int
    token: int = field(repr=False)
    source: BranchSource
    probability: float

    @property
    def outcome(self) -> Outcome:
        return self.accepted, self.token


def candidates(guesses: Sequence[Guess]) -> list[Candidate]:
    """Best first; equal ones in the order of their positions. guesses: of the proposal's tokens and the one behind."""
    found, reached = list[Candidate](), 1.0
    for position, guess in enumerate(guesses):
        right = min(max(guess.confidence, UNSURE), SURE)
        if guess.runner_up is not None:
            share = reached * (1 - right) * RUNNER_UP
            found.append(Candidate(position, guess.runner_up, BranchSource.RUNNER_UP, share))
        reached *= right
    found.append(Candidate(len(guesses) - 1, guesses[-1].token, BranchSource.FULL, reached))
    return sorted(found, key=lambda one: -one.probability)
