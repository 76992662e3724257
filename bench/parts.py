"""How well profiles foretell the parts of a round: what a curve says of each against what rounds took.

Rounds are those of measured cells. A profile is made before them, by itself. Corrections are what the router learns
while it serves: here from the first half of every cell's rounds, a dozen of each in turn; all is judged on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

from bench.cells import Cell, Subject
from bench.ours import DraftPoolEngine
from protocol.draft import DraftBlock
from protocol.outcome import RoundOutcome
from protocol.plan import BatchView, DepthRule, Plan
from router.costs import CostCurves
from router.goodput import GoodputConfig
from router.policy import Policy
from router.predict import Cost, Predictor, catches_up
from router.tables import tables

AT_A_TIME = 12  # rounds


@dataclass(frozen=True, slots=True)
class Watched:
    """Any policy, with what came of its rounds."""

    policy: Policy
    outcomes: list[RoundOutcome]

    def opening(self) -> DepthRule | None:
        return self.policy.opening()

    def plan(self, view: BatchView) -> Plan:
        return self.policy.plan(view)

    def prune(self, plan: Plan, drafts: Sequence[DraftBlock | None]) -> Sequence[int]:
        return self.policy.prune(plan, drafts)

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)
        self.policy.observe(outcome)


class WatchedEngine(DraftPoolEngine):
    """Ours, with the rounds of each cell kept."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.rounds: dict[Cell, list[RoundOutcome]] = {}

    def _policy(self, cell: Cell) -> Policy:
        return Watched(super()._policy(cell), self.rounds.setdefault(cell, []))


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one cell: what was foretold over what rounds took, medians. draft: None where nothing is drafted.

    error: of a whole round by the profile alone, relative, median; corrected: with what was learned online.
    """

    target: str
    cell: str
    batch: int
    num_rounds: int
    draft: float | None
    verify: float
    rest: float
    total: float
    error: float
    corrected: float


def parts_of(
    target: str, curves: CostCurves, choices: GoodputConfig, rounds: Mapping[Cell, Sequence[RoundOutcome]]
) -> list[Parts]:
    steady = {cell: [one for one in own if _is_steady(one, cell.batch)] for cell, own in rounds.items()}
    known = tables(curves, choices.rules, choices.length, choices.max_rows)
    profile, learned = Predictor(known), Predictor(known)
    firsts = [own[: len(own) // 2] for own in steady.values()]
    for turn in zip_longest(*map(_dozens, firsts), fillvalue=()):
        for outcomes in turn:
            learned.observe([(one, _rule(one, choices)) for one in outcomes])
    later = {cell: own[len(own) // 2 :] for cell, own in steady.items()}
    return [_compared(target, cell, own, profile, learned, choices) for cell, own in later.items() if own]


def _compared(
    target: str,
    cell: Cell,
    rounds: Sequence[RoundOutcome],
    profile: Predictor,
    learned: Predictor,
    choices: GoodputConfig,
) -> Parts:
    foretold = [_foretold(profile, one, choices) for one in rounds]
    corrected = [_foretold(learned, one, choices) for one in rounds]
    drafts = [(cost.draft_ms, one.draft_ms) for cost, one in zip(foretold, rounds, strict=True) if cost.draft_ms]
    return Parts(
        target=target,
        cell=setting(cell),
        batch=cell.batch,
        num_rounds=len(rounds),
        draft=median(ours / real for ours, real in drafts) if drafts else None,
        verify=median(cost.verify_ms / one.verify_ms for cost, one in zip(foretold, rounds, strict=True)),
        rest=median(cost.other_ms / one.rest_ms for cost, one in zip(foretold, rounds, strict=True)),
        total=median(cost.total_ms / _total(one) for cost, one in zip(foretold, rounds, strict=True)),
        error=_error(foretold, rounds),
        corrected=_error(corrected, rounds),
    )


def _dozens(rounds: Sequence[RoundOutcome]) -> list[Sequence[RoundOutcome]]:
    return [rounds[at : at + AT_A_TIME] for at in range(0, len(rounds), AT_A_TIME)]


def setting(cell: Cell) -> str:
    return f"{cell.depth}/{cell.length}" if cell.mode == "fixed" else cell.mode


def _foretold(predictor: Predictor, outcome: RoundOutcome, choices: GoodputConfig) -> Cost:
    """Of the tokens that were drafted and of those that were verified."""
    drafted = [len(row.exits) for row in outcome.rows]
    rule, num_rows = _rule(outcome, choices), len(drafted)
    return Cost(
        predictor.draft_ms(rule, drafted) if rule is not None else 0.0,
        predictor.verify_ms(num_rows, num_rows + sum(row.num_verified for row in outcome.rows), outcome.context),
        predictor.other_ms(num_rows, rule is not None),
    )


def _rule(outcome: RoundOutcome, choices: GoodputConfig) -> int | None:
    drafted = any(row.exits for row in outcome.rows)
    return choices.rules.index(outcome.plan.depth) if drafted and outcome.plan.depth is not None else None


def _is_steady(outcome: RoundOutcome, batch: int) -> bool:
    """Whole batches only: as sequences end a cell is another one."""
    return len(outcome.rows) == batch and not outcome.num_prefill_tokens and not catches_up(outcome)


def _error(foretold: Sequence[Cost], rounds: Sequence[RoundOutcome]) -> float:
    return median(abs(cost.total_ms / _total(one) - 1) for cost, one in zip(foretold, rounds, strict=True))


def _total(outcome: RoundOutcome) -> float:
    return outcome.draft_ms + outcome.verify_ms + outcome.rest_ms
