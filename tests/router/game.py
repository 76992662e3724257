"""A virtual target and its pool: drawn texts, and rounds that take what cost curves say.

Every row and position of a text has a uniform number and a mood. The mood moves the chance of every exit there, and the
token is right when the uniform number lies below the chance; so deeper exits are right wherever shallower ones are, and
all policies meet the same luck. Confidences are the chances, to a power that nobody is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from protocol.plan import BatchView, Mode, Plan, SequenceView
from protocol.record import Origin, RoundRecord, RowRecord
from router.policy import Policy
from tests.router.worlds import World

POSITIONS = 4096
PROMPT, LENGTH = 256, 200  # tokens of a text before its first round, and after
MOODS, MEMORY = 1.2, 0.5  # standard deviation in log odds, and its correlation from token to token
AT_HAND = {True: 0.9, False: 0.5}  # rows that have a proposal when drafting ahead: after a whole one, after a refusal


class Truth:
    """What rounds really take. factors: over the profile, by part of the round."""

    def __init__(self, world: World, factors: Mapping[str, float] | None = None, linked: bool = True) -> None:
        curves, self._factors, self.linked = world.curves, dict(factors or {}), linked
        self._verify = cache(lambda rows, tokens, context: curves.verify_ms(rows, tokens, context))
        self._draft = cache(lambda rows, exit_, length: curves.draft_ms(rows, exit_, length))
        self._link, self._rest = cache(curves.link_ms), cache(curves.overhead_ms)
        self._catch_up = cache(lambda rows, exit_: curves.catch_up_ms(rows, exit_, 256) / 256)

    def verify_ms(self, rows: int, tokens: int, context: float) -> float:
        part = "plain" if tokens == rows else "wide"
        return self._verify(rows, tokens, 64 * (context // 64)) * self._factors.get(part, 1.0)

    def draft_ms(self, exit_: int, lengths: Sequence[int]) -> float:
        """The link not included. At each position only the rows whose draft gets there."""
        total = 0.0
        for position in range(max(lengths)):
            rows = sum(length > position for length in lengths)
            total += self._draft(rows, exit_, position + 1) - self._draft(rows, exit_, position)
        return total * self._factors.get(f"draft {exit_}", 1.0)

    def catch_up_ms(self, rows: int, exit_: int, missing: float) -> float:
        return self._catch_up(rows, exit_) * missing if missing > 16 else 0.0

    def link_ms(self, rows: int) -> float:
        return self._link(rows) if self.linked else 0.0

    def rest_ms(self, rows: int) -> float:
        return self._rest(rows) * self._factors.get("rest", 1.0)


class Luck:
    """The texts of a game. chances(text)[exit]: [rows, POSITIONS]."""

    def __init__(self, world: World, rows: int, seed: int, moods: float = MOODS) -> None:
        rng = np.random.default_rng(seed)
        self.uniform = rng.random((rows, POSITIONS))
        self.mood = rng.standard_normal((POSITIONS, rows)) * moods
        for at in range(1, POSITIONS):
            self.mood[at] = MEMORY * self.mood[at - 1] + math.sqrt(1 - MEMORY**2) * self.mood[at]
        self.mood = self.mood.T
        self._world, self._chances, self._moods = world, dict[str, dict[int, npt.NDArray[np.float64]]](), moods

    def chances(self, text: str) -> dict[int, npt.NDArray[np.float64]]:
        if text not in self._chances:
            rates = self._world.texts[text]
            self._chances[text] = {e: 1 / (1 + np.exp(-_level(rate, self._moods) - self.mood)) for e, rate in rates.items()}
        return self._chances[text]


@cache
def _level(rate: float, moods: float) -> float:
    """The log odds around which moods spread the chance so that its mean is the rate."""
    spread = moods * np.random.default_rng(0).standard_normal(20_000)
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(-middle - spread))) < rate else (low, middle)
    return low


@dataclass(slots=True)
class Game:
    """text: of a round, by its number. power: of a chance is the confidence that the pool reports. beside: how much
    longer passes take while the pool drafts ahead.
    """

    policy: Policy
    truth: Truth
    luck: Luck
    text: Callable[[int], str]
    batch: int
    rng: np.random.Generator
    noise: float = 0.0
    power: float = 1.0
    modes: tuple[Mode, ...] = (Mode.SERIAL,)
    beside: float = 1.0
    now_ms: float = 0.0
    tokens: int = 0
    turn: int = 0
    plans: list[Plan] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    _at: list[int] = field(init=False)
    _at_hand: list[bool] = field(init=False)
    _seen: dict[int, list[int]] = field(default_factory=dict)  # by exit and row: positions that its layers have run

    def __post_init__(self) -> None:
        self._at, self._at_hand = [0] * self.batch, [False] * self.batch

    def play(self, rounds: int) -> float:
        """Committed tokens per second over these rounds."""
        tokens, now = self.tokens, self.now_ms
        for _ in range(rounds):
            self.round()
        return 1e3 * (self.tokens - tokens) / (self.now_ms - now)

    def round(self) -> None:
        view = BatchView(tuple(self._view(row) for row in range(self.batch)), modes=self.modes)
        plan = self.policy.plan(view)
        rows, verify_ms, draft_ms = self._played(plan)
        rest_ms = self.truth.rest_ms(self.batch) * self._shake()
        total, accepted = verify_ms + draft_ms + rest_ms, sum(row.num_accepted for row in rows)
        began = self.now_ms / 1e3
        planned, drafted, ended = (began + ms / 1e3 for ms in (rest_ms, rest_ms + draft_ms, total))
        context = self._context
        for row, record in enumerate(rows):
            self._at[row] = (self._at[row] + 1 + record.num_accepted) % (POSITIONS - 64)
        self.turn, self.now_ms, self.tokens = self.turn + 1, self.now_ms + total, self.tokens + self.batch + accepted
        self.plans.append(plan)
        self.ms.append(total)
        self.made.append(self.batch + accepted)
        self.policy.observe(
            RoundRecord(
                self.turn, plan, rows, context, self.batch + accepted,
                began_s=began, planned_s=planned, drafted_s=drafted, verified_s=ended, ended_s=ended,
            )
        )  # fmt: skip

    def _played(self, plan: Plan) -> tuple[tuple[RowRecord, ...], float, float]:
        ahead = plan.mode is not Mode.SERIAL
        fresh = not ahead or sum(self._at_hand) < self.batch / 2
        rows, lengths = [], [0] * self.batch
        chances = self.luck.chances(self.text(self.turn))
        for row in range(self.batch):
            hit = ahead and self._at_hand[row]
            record = self._row(row, plan, chances) if hit or fresh else None
            rows.append(record or RowRecord(row))
            if record and record.num_proposed and not hit:
                lengths[row] = record.num_proposed
            elif hit:
                rows[-1] = RowRecord(row, *_fate(rows[-1]), Origin.FULL, *_drafted(rows[-1]))
            whole = rows[-1].num_accepted == rows[-1].num_proposed
            self._at_hand[row] = ahead and bool(self.rng.random() < AT_HAND[whole])
        num_tokens = self.batch + sum(row.num_proposed for row in rows)
        context = self._context
        verify_ms = self.truth.verify_ms(self.batch, num_tokens, context) * self._shake()
        verify_ms *= self.beside if ahead and plan.depth else 1.0
        draft_ms = 0.0
        if any(lengths) and plan.depth:
            exit_ = plan.depth.exits[-1]
            draft_ms = self.truth.draft_ms(exit_, lengths) * self._shake() + self.truth.link_ms(self.batch)
            draft_ms += self._catch_up(exit_)
        return tuple(rows), verify_ms, draft_ms

    @property
    def _context(self) -> float:
        return sum(self._view(row).num_tokens for row in range(self.batch)) / self.batch

    def _view(self, row: int) -> SequenceView:
        """A row's texts follow each other, each of LENGTH tokens; rows are in different places of theirs."""
        number, at = divmod(self._at[row] + row * LENGTH // self.batch, LENGTH)
        return SequenceView(PROMPT + at, LENGTH + 16 - at, self.batch * number + row)

    def _catch_up(self, exit_: int) -> float:
        """Of layers that have not run for a while, in the texts that are under way."""
        seen = self._seen.get(exit_, [0] * self.batch)
        missing = [min(at - own, (at + row * LENGTH // self.batch) % LENGTH) for row, (at, own) in enumerate(zip(self._at, seen, strict=True))]
        for other in self.luck.chances(self.text(self.turn)):
            if other <= exit_:
                self._seen[other] = list(self._at)
        missing = sum(missing) / self.batch
        return self.truth.catch_up_ms(self.batch, exit_, missing)

    def _row(self, row: int, plan: Plan, chances: Mapping[int, npt.NDArray[np.float64]]) -> RowRecord | None:
        if not plan.lengths[row] or plan.depth is None:
            return None
        exit_, at = plan.depth.exits[-1], self._at[row]
        chance = chances[exit_][row, at : at + plan.lengths[row]]
        sure = (chance**self.power).tolist()
        product = 1.0
        for count, confidence in enumerate(sure, 1):
            product *= confidence
            if product <= plan.stop_probability:
                del sure[count:]
                break
        right = self.luck.uniform[row, at : at + len(sure)] < chance[: len(sure)]
        accepted = len(sure) if right.all() else int(right.argmin())
        return RowRecord(
            row, len(sure), accepted, Origin.FRESH, plan.depth, plan.lengths[row], (exit_,) * len(sure), tuple(sure), 1
        )

    def _shake(self) -> float:
        if not self.noise:
            return 1.0
        hiccup = 3.0 if self.rng.random() < 0.01 else 1.0
        return float(np.exp(self.noise * self.rng.standard_normal() - self.noise**2 / 2)) * hiccup / 1.02


def _fate(row: RowRecord) -> tuple[int, int]:
    return row.num_proposed, row.num_accepted


def _drafted(row: RowRecord) -> tuple[object, ...]:
    return row.rule, row.length, row.exits, row.confidences, 1
