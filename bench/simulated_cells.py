"""What the simulator foretells of one cell, from what it is told of passes, of the link and of other prompts' texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np

from bench.acceptance import acceptance_of
from bench.cells import APART, Cell
from bench.contended import Curves
from bench.corrections import Followed, choices_of
from bench.parts import Watched
from deployments.local import depth_rule
from protocol.outcome import RoundOutcome
from router.costs import CostCurves, Curve
from router.goodput import Goodput, GoodputConfig
from router.modes import Mode
from router.policy import Fixed, Off, Policy
from router.simulate import Overlap, SimulatedPool, SimulatedTarget, TargetReport, closed_batch, simulate
from router.simulate_acceptance import Profile, always
from router.simulate_mirror import MirrorRules
from router.simulate_target import Request

BREAK_MS = 1e6  # from one group to the next, which finds the target idle
ROUTED = 4  # tokens of a draft, where the router chooses lengths
UNBROKEN = 256  # of a draft that goes on, window behind window, until it is wrong

Groups = Sequence[Sequence[int]]  # lengths of the prompts that start together


@dataclass(frozen=True, slots=True)
class Known:
    """All that the simulator is told. texts: by temperature."""

    curves: Curves
    exits: tuple[int, ...]
    texts: dict[float, list[Followed]]
    kappa: int
    fan_out: int

    def profile(self, cell: Cell) -> Profile:
        """In turn a draft begins where the last one ended, ahead behind a mistake, or it goes on."""
        stretches = [text.told() for text in self.texts[cell.temperature]]
        length = UNBROKEN if self.overlap(cell) else cell.length or ROUTED
        return always(acceptance_of(stretches, self.exits, length))

    def overlap(self, cell: Cell) -> Overlap:
        modes = APART.get(cell.mode, (Mode.SERIAL,))
        if modes == (Mode.SERIAL,):
            return None
        number = self.exits.index(depth_rule(self.exits, cell.depth).exits[-1]) if cell.length else 0
        choices = choices_of(self.texts[cell.temperature], number, self.kappa)
        return MirrorRules(self.fan_out, self.kappa, modes, choices)

    def policy(self, cell: Cell) -> Policy:
        if not cell.speculates:
            return Off()
        if cell.length:
            return Fixed(depth_rule(self.exits, cell.depth), cell.length)
        rules = tuple(depth_rule(self.exits, exit_) for exit_ in self.exits)
        return Goodput(self.curves.alone, GoodputConfig(rules, self.exits, max_rows=cell.batch, linked=True))


@dataclass(frozen=True, slots=True)
class Foretold:
    """tokens_per_second: of decoding, as bench/metrics.py counts them. hits: share of the outcomes that branches were
    asked for. hit_ms: mean wait where windows were at hand; wait_ms: median of the rounds that waited.
    """

    tokens_per_second: float
    hits: float
    hit_ms: float
    wait_ms: float


def foretold(
    known: Known, cell: Cell, token_ms: float, groups: Groups, max_tokens: int, seeds: Iterable[int], learn: int
) -> Foretold:
    """token_ms: that a drafted token takes at least. learn: runs before, of a target that chooses."""
    outcomes: list[RoundOutcome] = []
    hits: list[float] = []
    for seed in seeds:
        for run in [[*groups] * (1 + learn)] if cell.mode == "chosen" else [[group] for group in groups]:
            watched = Watched(known.policy(cell), [])
            requests = arrivals(run, max_tokens, seed)
            hits.append(sum(_played(known, cell, token_ms, watched, requests, seed).hits.values()))
            outcomes += latest(watched.outcomes, sum(map(len, groups)) * (max_tokens - 1))
    decoding = [one for one in outcomes if not one.num_prefill_tokens]
    ms = sum(one.draft_ms + one.verify_ms + one.rest_ms for one in decoding)
    waits = [one.draft_ms for one in decoding if one.draft_ms > 0]
    at_hand = [one.draft_ms for one in decoding if one.ahead]
    return Foretold(
        tokens_per_second=1e3 * sum(map(num_tokens, decoding)) / ms,
        hits=fmean(hits),
        hit_ms=fmean(at_hand) if at_hand else 0.0,
        wait_ms=median(waits) if waits else 0.0,
    )


def _played(
    known: Known, cell: Cell, token_ms: float, policy: Policy, requests: Sequence[Request], seed: int
) -> TargetReport:
    target = SimulatedTarget(
        cell.mode,
        slowed(known.curves.alone, token_ms),
        lambda: policy,
        known.profile(cell),
        requests,
        cell.batch,
        overlap=known.overlap(cell),
        beside=known.curves.target_beside,
    )
    pool = SimulatedPool(beside=known.curves.pool_beside)
    return simulate([target], pool if cell.speculates else None, seed).targets[0]


def arrivals(groups: Groups, max_tokens: int, seed: int) -> list[Request]:
    """Each group when the last has ended."""
    return [
        replace(request, at_ms=number * BREAK_MS)
        for number, group in enumerate(groups)
        for request in closed_batch(len(group), group, max_tokens, np.random.default_rng([seed, number]))
    ]


def latest(outcomes: Sequence[RoundOutcome], tokens: int) -> Sequence[RoundOutcome]:
    """The last rounds, in which so many tokens were committed; all, if they are fewer."""
    start = len(outcomes)
    while start and tokens > 0:
        start -= 1
        tokens -= num_tokens(outcomes[start])
    return outcomes[start:]


def num_tokens(outcome: RoundOutcome) -> int:
    return len(outcome.rows) + sum(row.accepted for row in outcome.rows)


def slowed(curves: CostCurves, token_ms: float) -> CostCurves:
    """A drafted token takes at least so long (bench/slowed.py)."""
    drafter = curves.drafter
    if not token_ms or drafter is None:
        return curves
    lengths, draft = drafter.draft.points[3], drafter.draft
    floors = np.tile(np.asarray(lengths) * token_ms, len(draft.ms) // len(lengths))
    ms = tuple(np.maximum(draft.ms, floors).tolist())
    return replace(curves, drafter=replace(drafter, draft=Curve(draft.axes, draft.points, ms)))
