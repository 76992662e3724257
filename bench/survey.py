"""What any plan would be worth on a text: the text is decoded once with every row probed in every round, which tells of
each exit at each position whether it picks the target's token and how sure it is. A draft of any depth and length, with
any stop, is then a matter of looking it up, so plans are judged without the noise of clocks and of luck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan
from router.policy import Steadfast, uniform
from router.predict import Predictor

Floats = npt.NDArray[np.float64]
FLOORS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # stops that the oracle tries: products of confidences
Told = tuple[tuple[bool, float], ...]  # of one position, by exit: whether it is right, how sure it is


class Surveyor(Steadfast):
    """Drafts a short fixed plan and probes every row. told: by sequence and position; sequences of a new engine begin
    anew with `next_run`.
    """

    def __init__(self, exits: tuple[int, ...]) -> None:
        self.exits = exits
        self.told: dict[tuple[int, int], dict[int, Told]] = {}
        self._run = 0

    def next_run(self) -> None:
        self._run += 1

    def opening(self) -> DepthRule:
        return DepthRule(self.exits[-1:])

    def plan(self, view: BatchView) -> Plan:
        deepest = self.opening()
        return Plan(deepest, uniform(view, deepest, 1).lengths, probes=tuple(range(len(view.sequences))))

    def observe(self, outcome: RoundOutcome) -> None:
        for row in outcome.rows:
            if row.probe is not None and row.probe.matches[0]:
                own = self.told.setdefault((self._run, row.id), {})
                by_exit = [
                    zip(*both, strict=True) for both in zip(row.probe.matches, row.probe.confidences, strict=True)
                ]
                own.update(enumerate(zip(*by_exit, strict=True), row.probe.start))

    def runs(self) -> list[list[Told]]:
        """Stretches without a gap."""
        stretches: list[list[Told]] = []
        for own in self.told.values():
            before = None
            for at in sorted(own):
                if before is None or at != before + 1:
                    stretches.append([])
                stretches[-1].append(own[at])
                before = at
        return stretches


@dataclass(frozen=True, slots=True)
class Stop:
    """Where drafts end: behind the token at which the product of confidences is at most `floor`; and what of them is
    verified: while it is at least `least`.
    """

    floor: float = 0.0
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Yield:
    """Of a draft, on average. reach: [length], share of drafts that get as far as each position."""

    reach: Floats
    verified: float
    accepted: float


class Survey:
    """Every position of the surveyed texts as the start of a draft. length: of the longest."""

    def __init__(self, stretches: Iterable[Sequence[Told]], num_exits: int, length: int) -> None:
        windows = [own[at : at + length] for own in stretches for at in range(len(own) - length + 1)]
        told = np.asarray(windows, np.float64).reshape(-1, length, num_exits, 2)
        self.length = length
        self._right = np.cumprod(told[..., 0], axis=1)  # [windows, length, exits]: all so far are right
        self._sure = np.cumprod(self._behind_wrong(told), axis=1)
        self._known: dict[tuple[int, int, Stop], Yield] = {}

    def __len__(self) -> int:
        return len(self._right)

    def hazard(self, exit_number: int) -> float:
        return float(self._right[:, 0, exit_number].mean())

    def of(self, exit_number: int, length: int, stop: Stop) -> Yield:
        key = (exit_number, length, stop)
        if key not in self._known:
            self._known[key] = self._of(*key)
        return self._known[key]

    def _of(self, exit_number: int, length: int, stop: Stop) -> Yield:
        right, sure = self._right[:, :length, exit_number], self._sure[:, :length, exit_number]
        drafted = np.ones_like(sure, bool)
        drafted[:, 1:] = sure[:, :-1] > stop.floor
        verified = drafted & (sure >= stop.least)
        reach = drafted.mean(axis=0)
        return Yield(reach, float(verified.sum(axis=1).mean()), float((right * verified).sum(axis=1).mean()))

    def _behind_wrong(self, told: Floats) -> Floats:
        """Confidences; what a drafter would have said behind a wrong token nobody knows: as sure as of that one."""
        sure = told[..., 1].copy()
        for at in range(1, self.length):
            wrong = self._right[:, at - 1] == 0
            sure[:, at][wrong] = sure[:, at - 1][wrong]
        return sure


@dataclass(frozen=True)
class Judge:
    """What plans are worth on a surveyed text at a batch, in committed tokens per second, by profiled costs."""

    predictor: Predictor
    survey: Survey
    context: float = 256.0
    _best: dict[int, float] = field(default_factory=dict)

    @cached_property
    def _rules(self) -> range:
        return range(len(self.predictor.tables.rules))

    def best(self, batch: int) -> float:
        if batch not in self._best:
            plans = [(None, 0, Stop())] + [
                (rule, length, Stop(floor, floor))
                for rule in self._rules
                for length in range(1, self.survey.length + 1)
                for floor in FLOORS
            ]
            self._best[batch] = max(self.worth(rule, [length] * batch, stop) for rule, length, stop in plans)
        return self._best[batch]

    def worth(self, rule: int | None, lengths: Sequence[int], stop: Stop) -> float:
        """rule: of a single exit, by its number."""
        batch = len(lengths)
        if rule is None or not any(lengths):
            return 1e3 * batch / self._ms(batch, batch, 0.0, drafts=False)
        yields = [self.survey.of(rule, length, stop) for length in lengths if length]
        steps = self.predictor.draft_steps(rule, batch)
        rows = np.zeros(steps.shape[1])
        for own in yields:
            rows[: len(own.reach)] += own.reach
        draft = sum(float(np.interp(num, np.arange(batch + 1), steps[:, at])) for at, num in enumerate(rows.tolist()))
        verified = batch + sum(own.verified for own in yields)
        return 1e3 * (batch + sum(own.accepted for own in yields)) / self._ms(batch, verified, draft, drafts=True)

    def _ms(self, batch: int, tokens: float, draft_ms: float, *, drafts: bool) -> float:
        known, ms = self.predictor.verify_line(batch, self.context, wide=drafts)
        return float(np.interp(tokens, known, ms)) + draft_ms + self.predictor.other_ms(batch, drafts)
