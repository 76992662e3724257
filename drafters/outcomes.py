"""Which outcomes of a verification are worth preparing for, best first.

The proposal's tokens d[0], d[1], ... and the drafter's own next token behind them are its guesses. The outcome (r, c),
the first r guesses right and c in place of the next, has the probability

    a[0] * ... * a[r - 1] * (1 - a[r]) * share(c | r)          all guesses right: a[0] * a[1] * ... * a[-1]

a[i] is the confidence of guess i, taken as its chance to be right. share is the part of the mistakes at r that c
corrects; the drafter's second choice corrects RUNNER_UP of them. The target's early picks at r (Mirror-SD section 3.1)
change both. If the first of them is the guess, the odds of a[r] rise by AGREES, otherwise they fall by DIFFERS. Each
other early pick corrects half of the mistakes that the picks before it left; this counts as much as the second choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.branch import BranchSource

Outcome = tuple[int, int]  # how much of the proposal is accepted, and the token behind that

RUNNER_UP = 0.5
AGREES = 3.0  # an early pick names the right token in 60 % of all cases, and a wrong guess in 20 % of those
DIFFERS = 0.5  # (1 - 0.6) / (1 - 0.2)
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


def candidates(guesses: Sequence[Guess], early: Sequence[Sequence[int]] = ()) -> list[Candidate]:
    """Best first; equal ones in the order of their positions.

    guesses: of the proposal's tokens and of the one behind it. early: the target's early picks for each, best first;
    none beyond its end.
    """
    found = []
    reached = 1.0
    for position, guess in enumerate(guesses):
        picks = early[position] if position < len(early) else ()
        right = acceptance(guess, picks)
        for token, share in corrections(guess, picks).items():
            source = BranchSource.RUNNER_UP if token == guess.runner_up else BranchSource.EARLY_EXIT
            found.append(Candidate(position, token, source, reached * (1 - right) * share))
        reached *= right
    found.append(Candidate(len(guesses) - 1, guesses[-1].token, BranchSource.FULL, reached))
    return sorted(found, key=lambda one: -one.probability)


def acceptance(guess: Guess, picks: Sequence[int]) -> float:
    """The probability that the guess is right."""
    right = min(max(guess.confidence, UNSURE), SURE)
    if not picks:
        return right
    odds = right / (1 - right) * (AGREES if picks[0] == guess.token else DIFFERS)
    return odds / (1 + odds)


def corrections(guess: Guess, picks: Sequence[int]) -> dict[int, float]:
    """Tokens in place of a wrong guess, and the share of its mistakes that each corrects; at most 1 in all."""
    weight = 0.5 if picks else 1.0
    shares = {} if guess.runner_up is None else {guess.runner_up: weight * RUNNER_UP}
    others = [token for token in dict.fromkeys(picks) if token != guess.token]
    for rank, token in enumerate(others):
        shares[token] = shares.get(token, 0.0) + weight * 0.5 ** (rank + 1)
    return shares
