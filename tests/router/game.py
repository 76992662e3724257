"""A virtual target and its pool: drawn texts, and rounds that take what cost curves say.

Every row and position of a text has a uniform number and a mood. The mood moves the chance of every exit there, and the
token is right when the uniform number lies below the chance; so deeper exits are right wherever shallower ones are, and
all policies meet the same luck. A confidence is the chance, to a power that nobody is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from protocol.plan import BatchView, Mode, Plan, SequenceView
from protocol.record import Origin, RoundRecord, RowRecord
from router.policy import Policy
from targets.rounds import Rounds
from tests.router.worlds import World

Floats = npt.NDArray[np.float64]

POSITIONS = 4096
PROMPT, LENGTH = 256, 200  # tokens of a text before its first round, and after
MOODS, MEMORY = 1.2, 0.5  # standard deviation in log odds, and its correlation from token to token
AT_HAND = {True: 0.9, False: 0.5}  # rows that have a proposal when drafting ahead: after a whole one, after a refusal
HICCUPS, HICCUP = 0.01, 3.0  # share of passes that take so many times as long


class Truth:
    """What rounds really take. factors: over the profile, by part of the round."""

    def __init__(self, world: World, factors: Mapping[str, float] | None = None) -> None:
        curves, self._factors = world.curves, dict(factors or {})
        self._verify, self._draft = cache(curves.verify_ms), cache(curves.draft_ms)
        self.link_ms, self._rest = cache(curves.link_ms), cache(curves.overhead_ms)
        self._catch_up = cache(curves.catch_up_ms)

    def verify_ms(self, rows: int, tokens: int, context: float) -> float:
        part = "plain" if tokens == rows else "wide"
        return self._verify(rows, tokens, 16 * (context // 16)) * self._factors.get(part, 1.0)

    def draft_ms(self, exit_: int, lengths: Sequence[int]) -> float:
        """The link not included. At each place only the rows whose draft gets there."""
        total = 0.0
        for place in range(max(lengths)):
            rows = sum(length > place for length in lengths)
            total += self._draft(rows, exit_, place + 1) - self._draft(rows, exit_, place)
        return total * self._factors.get(f"draft {exit_}", 1.0)

    def catch_up_ms(self, rows: int, exit_: int, missing: float) -> float:
        return self._catch_up(rows, exit_, 256) / 256 * missing if missing > 16 else 0.0

    def rest_ms(self, rows: int) -> float:
        return self._rest(rows) * self._factors.get("rest", 1.0)


class Luck:
    """The texts of a game."""

    def __init__(self, world: World, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.uniform = rng.random((rows, POSITIONS))
        moods = rng.standard_normal((POSITIONS, rows)) * MOODS
        for at in range(1, POSITIONS):
            moods[at] = MEMORY * moods[at - 1] + math.sqrt(1 - MEMORY**2) * moods[at]
        self._moods, self._rates = moods.T, world.texts
        self._chances: dict[str, dict[int, Floats]] = {}

    def chances(self, text: str) -> dict[int, Floats]:
        """By exit: [rows, POSITIONS]."""
        if text not in self._chances:
            levels = {exit_: _level(rate) for exit_, rate in self._rates[text].items()}
            self._chances[text] = {exit_: sigmoid(level + self._moods) for exit_, level in levels.items()}
        return self._chances[text]


def sigmoid(odds: Floats) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-odds))
    return shares


@cache
def _level(rate: float) -> float:
    """The log odds around which moods spread the chance so that its mean is the rate."""
    moods = MOODS * np.random.default_rng(0).standard_normal(20_000)
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(middle + moods).mean() < rate else (low, middle)
    return low


@dataclass(slots=True)
class Game:
    """text: of a round, by its number. noise: of times, in logs. power: of a chance is the confidence that the pool
    reports. beside: how much longer passes take while the pool drafts ahead.
    """

    policy: Policy
    truth: Truth
    luck: Luck
    text: Callable[[int], str]
    batch: int
    rng: np.random.Generator
    noise: float = 0.0
    power: float = 1.0
    modes: tuple[Mode, ...] = (Mode.IN_TURN,)
    beside: float = 1.0
    now_ms: float = 0.0
    tokens: int = 0
    records: list[RoundRecord] = field(default_factory=list)
    rounds: Rounds = field(default_factory=Rounds)
    _at: list[int] = field(init=False)
    _at_hand: list[bool] = field(init=False)
    _pass_ms: float = 0.0  # of the round before
    _seen: dict[int, list[int]] = field(default_factory=dict)  # by exit and row: positions that its layers have run

    def __post_init__(self) -> None:
        self._at, self._at_hand = [0] * self.batch, [False] * self.batch

    @property
    def plans(self) -> list[Plan]:
        return [record.plan for record in self.records]

    def play(self, rounds: int) -> float:
        """Committed tokens per ms over these rounds."""
        tokens, now = self.tokens, self.now_ms
        for _ in range(rounds):
            self.round()
        return (self.tokens - tokens) / (self.now_ms - now)

    def view(self) -> BatchView:
        rows, exponents = tuple(self._view(row) for row in range(self.batch)), self.rounds.calibration.powers
        return BatchView(rows, modes=self.modes, exponents=exponents)

    def round(self) -> None:
        view = self.view()
        plan, context = self.policy.plan(view), sum(row.num_tokens for row in view.sequences) / self.batch
        rows = self._rows(plan)
        draft_ms = self._draft_ms(plan, rows)
        proposed = sum(row.num_proposed for row in rows)
        verify_ms = self.truth.verify_ms(self.batch, self.batch + proposed, context) * self._shake()
        verify_ms *= self.beside if plan.mode is not Mode.IN_TURN and proposed else 1.0
        rest_ms = self.truth.rest_ms(self.batch) * self._shake()
        self._pass_ms = verify_ms
        began, committed = self.now_ms, self.batch + sum(row.num_accepted for row in rows)
        self.now_ms += rest_ms + draft_ms + verify_ms
        self.tokens += committed
        for row, record in enumerate(rows):
            self._at[row] = (self._at[row] + 1 + record.num_accepted) % (POSITIONS - 64)
        moments = [began, began + rest_ms, began + rest_ms + draft_ms, self.now_ms, self.now_ms]
        names = ("began_s", "planned_s", "drafted_s", "verified_s", "ended_s")
        times = {name: moment / 1e3 for name, moment in zip(names, moments, strict=True)}
        self.records.append(RoundRecord(len(self.records), plan, rows, context, committed, **times))
        self.policy.observe(self.records[-1])
        self.rounds.add(self.records[-1])

    def _view(self, row: int) -> SequenceView:
        """A row's texts follow each other; rows are in different places of theirs."""
        at = (self._at[row] + row * LENGTH // self.batch) % LENGTH
        seen = max((own[row] for own in self._seen.values()), default=0)
        return SequenceView(PROMPT + at, LENGTH + 16 - at, 1 + min(self._at[row] - seen, at))

    def _rows(self, plan: Plan) -> tuple[RowRecord, ...]:
        ahead = plan.mode is not Mode.IN_TURN
        waits = not ahead or 2 * sum(self._at_hand) < self.batch
        rows = []
        for row, at_hand in enumerate(self._at_hand):
            found = self._row(row, plan) if waits or at_hand else RowRecord(row)
            rows.append(replace(found, origin=Origin.AHEAD) if ahead and at_hand and found.num_proposed else found)
            whole = found.num_accepted == found.num_proposed
            self._at_hand[row] = ahead and bool(self.rng.random() < AT_HAND[whole])
        return tuple(rows)

    def _row(self, row: int, plan: Plan) -> RowRecord:
        if not plan.lengths[row] or plan.depth is None:
            return RowRecord(row)
        at, length = self._at[row], plan.lengths[row]
        chance = self.luck.chances(self.text(len(self.records)))[plan.depth][row, at : at + length]
        sure = chance**self.power
        ends = np.cumprod(sure) <= plan.stop_probability
        drafted = int(ends.argmax()) + 1 if ends.any() else length
        wrong = self.luck.uniform[row, at : at + drafted] >= chance[:drafted]
        accepted = int(wrong.argmax()) if wrong.any() else drafted
        confidences = tuple(sure[:drafted].tolist())
        return RowRecord(row, drafted, accepted, Origin.FRESH, plan.depth, length, confidences, num_fed=1)

    def _draft_ms(self, plan: Plan, rows: Sequence[RowRecord]) -> float:
        """What is waited for: fresh drafts, and of those made ahead what was not done when the pass ended."""
        lengths = [row.num_proposed if row.origin is Origin.FRESH else 0 for row in rows]
        if plan.depth is None or not any(row.num_proposed for row in rows):
            return 0.0
        exit_ = plan.depth
        if not any(lengths):
            ahead_ms = self.truth.draft_ms(exit_, [row.num_proposed for row in rows])
            return max(ahead_ms + self.truth.link_ms(self.batch) - self._pass_ms, 0.0)
        took = self.truth.draft_ms(exit_, lengths) * self._shake() + self.truth.link_ms(self.batch)
        return took + self._catch_up_ms(exit_)

    def _catch_up_ms(self, exit_: int) -> float:
        """Of layers that have not run for a while, in the texts that are under way."""
        seen = self._seen.get(exit_, [0] * self.batch)
        places = [(at + row * LENGTH // self.batch) % LENGTH for row, at in enumerate(self._at)]
        missing = [min(at - own, place) for at, own, place in zip(self._at, seen, places, strict=True)]
        for other in self.luck.chances(self.text(len(self.records))):
            if other <= exit_:
                self._seen[other] = list(self._at)
        return self.truth.catch_up_ms(self.batch, exit_, sum(missing) / self.batch)

    def _shake(self) -> float:
        """A factor of mean 1."""
        if not self.noise:
            return 1.0
        hiccup = HICCUP if self.rng.random() < HICCUPS else 1.0
        mean = 1 + HICCUPS * (HICCUP - 1)
        return float(np.exp(self.noise * self.rng.standard_normal() - self.noise**2 / 2)) * hiccup / mean
