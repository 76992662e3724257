"""What a target believes of its rounds, and how rounds change that. Values and pure functions.

    accept    log odds that a drafted token is accepted if all before it were: a level of the text, an offset per exit
    cost      log of measured over profiled time: a level of the machine, an offset per part of a round
    ahead     by mode that drafts ahead: the share of rows that have a proposal, and of what the pass could hide of a draft
              the share that is waited for none the less
    goes_on   how often drafts go on behind a token, and behind an accepted one: they end where the next does not pay
    wait_ms   that a request queues at the pool
    lags      by exit: tokens of each row that its layers have not run
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.plan import Mode
from protocol.record import Origin, RoundRecord, RowRecord
from router.confidence import Calibration
from router.filters import Filter, begin
from router.tables import Costs

MODES = tuple(Mode)
AHEAD = (Mode.AHEAD, Mode.AHEAD_EARLY_EXIT)
PLAIN, REST, WIDE = 0, 1, 2  # parts of a round: a pass without drafts, the rest, a pass with drafts by mode,
DRAFT = WIDE + len(MODES)  # and drafts by exit

RATE, PER_LAYER = 0.7, 0.06  # acceptance before anything is known (0.62: a first look at drafting comes late), in log odds
LEVEL, OFFSET = 1.0, 0.25  # standard deviations: texts differ by 0.6 to 0.9 at one exit, exits by 0.1 to 0.6 in one text
MACHINE, PASS, PART = 0.3, 0.04, 0.15  # likewise of times: all of them, passes of one kind, other parts
ROUND = 0.12  # standard deviation of a part's log time from round to round, as measured on two busy cores
BURSTS = 1.5  # variance of accepted counts over that of independent tokens, for text is easy or hard for a while
MEMORY = 1000.0  # rounds in which a belief decays to 1/e; with 300, lengths and exits flutter (-1 %)
UNSEEN = 400.0  # and the level of the text while nothing is drafted, over the root of the rows: when off is left for a look
STOPS = 100.0  # tokens that what is known of stops weighs
WAITS = 5.0  # rounds that what is known of the wait at the pool weighs
SETTLED = 16  # tokens; a draft that is handed more of a row is catching up


@dataclass(frozen=True, slots=True)
class Belief:
    accept: Filter
    cost: Filter
    ahead: Filter
    lags: tuple[float, ...]
    calibration: Calibration = field(default_factory=Calibration)
    goes_on: float = 1.0
    goes_on_right: float = 1.0
    wait_ms: float = 0.0


def prior(costs: Costs) -> Belief:
    num_exits = len(costs.exits)
    offsets = PER_LAYER * (np.asarray(costs.exits) - costs.exits[0])
    level = math.log(RATE / (1 - RATE))
    return Belief(
        accept=begin([level, *offsets.tolist()], [LEVEL, *[OFFSET] * num_exits]),
        cost=begin([0.0] * (1 + DRAFT + num_exits), [MACHINE, PASS, PART, *[PASS] * len(MODES), *[PART] * num_exits]),
        ahead=begin([0.0, *[0.9, 0.4] * len(AHEAD)], [1e-3, *[0.2, 0.3] * len(AHEAD)]),
        lags=(0.0,) * num_exits,
    )


def learn(belief: Belief, costs: Costs, records: Sequence[RoundRecord]) -> Belief:
    """From rounds that followed each other."""
    records = [record for record in records if record.rows]
    if not records:
        return belief
    return _learn_times(_learn_tokens(belief, costs, records), costs, records)


@dataclass(slots=True)
class _Tokens:
    """Of one exit. tried: tokens up to the first that was refused, of which so many were accepted."""

    accepted: int = 0
    tried: int = 0
    confidences: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, row: RowRecord) -> None:
        tried = min(row.num_accepted + 1, row.num_proposed)
        self.accepted += row.num_accepted
        self.tried += tried
        self.confidences += row.confidences[:tried]
        self.right += [True] * row.num_accepted + [False] * (tried - row.num_accepted)


def _learn_tokens(belief: Belief, costs: Costs, records: Sequence[RoundRecord]) -> Belief:
    tokens = [_Tokens() for _ in costs.exits]
    on = ends = right = early = 0
    for record in records:
        for row in record.rows:
            exit_ = _exit_of(row, costs)
            if exit_ is not None:
                tokens[exit_].add(row)
                ended, whole = row.num_proposed < row.length, row.num_accepted == row.num_proposed
                on, ends = on + row.num_proposed - 1, ends + ended
                right, early = right + row.num_accepted - whole, early + (ended and whole)
    drafted = any([seen.tried for seen in tokens])
    accept, calibration = belief.accept.decayed(len(records) / MEMORY, _doubt(records, drafted)), belief.calibration
    for number, seen in enumerate(tokens):
        if seen.tried:
            accept = accept.counted(number, seen.accepted / BURSTS, seen.tried / BURSTS)
            calibration = calibration.learned(costs.exits[number], seen.confidences, seen.right)
    return replace(
        belief,
        accept=accept,
        calibration=calibration,
        goes_on=(STOPS * belief.goes_on + on) / (STOPS + on + ends),
        goes_on_right=(STOPS * belief.goes_on_right + right) / (STOPS + right + early),
    )


def _doubt(records: Sequence[RoundRecord], drafted: bool) -> float:
    """How much more the level decays: the more rows, the sooner one round of drafting tells, and the more is at stake."""
    return 0.0 if drafted else len(records) * math.sqrt(len(records[-1].rows)) / UNSEEN


def _exit_of(row: RowRecord, costs: Costs) -> int | None:
    """The number of the one exit that a row was drafted at; None where there is no such."""
    if not row.num_proposed or row.rule is None or len(row.rule.exits) > 1 or row.rule.exits[0] not in costs.exits:
        return None
    return costs.exits.index(row.rule.exits[0])


@dataclass(slots=True)
class _Times:
    """Measured and profiled ms of a part in a few rounds."""

    measured: float = 0.0
    profiled: float = 0.0
    num_rounds: int = 0

    def add(self, measured: float, profiled: float) -> None:
        self.measured += measured
        self.profiled += profiled
        self.num_rounds += 1


def _learn_times(belief: Belief, costs: Costs, records: Sequence[RoundRecord]) -> Belief:
    parts: dict[int, _Times] = {}
    for record in records:
        if not record.num_prefill_tokens:
            _add_passes(parts, costs, record)
            belief = _learn_draft(belief, parts, costs, record)
        belief = replace(belief, lags=_lags(belief.lags, costs, record))
    cost = belief.cost.decayed(len(records) / MEMORY)
    for part, times in parts.items():
        if times.measured > 0 and times.profiled > 0:
            cost = cost.measured(part, math.log(times.measured / times.profiled), ROUND**2 / times.num_rounds)
    return replace(belief, cost=cost)


def _add_passes(parts: dict[int, _Times], costs: Costs, record: RoundRecord) -> None:
    num_rows, proposed = len(record.rows), record.num_proposed
    part = WIDE + MODES.index(record.plan.mode) if proposed else PLAIN
    parts.setdefault(part, _Times()).add(
        record.verify_ms, costs.verify_ms(num_rows, num_rows + proposed, record.context)
    )
    parts.setdefault(REST, _Times()).add(record.rest_ms, costs.rest[costs.rows(num_rows)])


def _learn_draft(belief: Belief, parts: dict[int, _Times], costs: Costs, record: RoundRecord) -> Belief:
    """From a round in which nothing had to be caught up with."""
    exit_ = _planned(record, costs)
    if exit_ is None:
        return belief
    wait_ms = belief.wait_ms + (record.wait_ms - belief.wait_ms) / WAITS
    belief = replace(belief, wait_ms=wait_ms)
    if belief.lags[exit_] > SETTLED or any([row.num_fed > SETTLED for row in record.rows]):
        return belief
    waited, link = record.draft_ms - record.wait_ms, costs.link[costs.rows(len(record.rows))]
    if record.plan.mode in AHEAD:
        whole = link + costs.draft_ms(exit_, record.plan.lengths) * math.exp(float(belief.cost.arms[DRAFT + exit_]))
        return replace(belief, ahead=_ahead(belief.ahead, record, waited, whole))
    lengths = [row.num_proposed if row.origin is Origin.FRESH else 0 for row in record.rows]
    if any(lengths):
        parts.setdefault(DRAFT + exit_, _Times()).add(waited - link, costs.draft_ms(exit_, lengths))
    return belief


def _ahead(ahead: Filter, record: RoundRecord, waited: float, whole: float) -> Filter:
    """whole: ms of a draft that nothing hides."""
    at = 2 * AHEAD.index(record.plan.mode)
    planned = [row for row, length in zip(record.rows, record.plan.lengths, strict=True) if length]
    served = sum(row.num_proposed > 0 for row in planned) / len(planned)
    hidden = (whole - waited) / max(min(whole, record.verify_ms), 1e-6)
    ahead = ahead.decayed(1 / MEMORY).measured(at, served, 0.1 / len(planned))
    return ahead.measured(at + 1, 1 - min(max(hidden, 0.0), 1.0), 0.2)


def _planned(record: RoundRecord, costs: Costs) -> int | None:
    """The number of the exit that all of a round was to be drafted at; None without a draft, and where rows differ."""
    depth = record.plan.depth
    if depth is None or record.plan.own or len(depth.exits) > 1 or depth.exits[0] not in costs.exits:
        return None
    return costs.exits.index(depth.exits[0]) if any(record.plan.lengths) else None


def _lags(lags: Sequence[float], costs: Costs, record: RoundRecord) -> tuple[float, ...]:
    """Layers up to the exit have run all but what this round commits."""
    exit_, each = _planned(record, costs), record.num_committed / len(record.rows)
    return tuple([each if exit_ is not None and at <= exit_ else lag + each for at, lag in enumerate(lags)])
