"""What a target believes of its rounds, and how rounds change that. Values and pure functions.

accept    log odds that a drafted token is accepted if all before it were: a level of the text, an offset per exit
cost      by size of batch, for a profile is off by another factor at each: log of measured over profiled time, a level
          and an offset per part of a round
ahead     by mode that drafts ahead: the share of rows that have a proposal, and the share that is waited for of
          what the pass could hide of a draft
goes_on   how often drafts go on behind a token, and behind an accepted one: they end where the next does not pay
wait_ms   that a request queues at the pool
lags      by exit: tokens of each row that its layers have not run
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from protocol.plan import Mode
from protocol.record import Origin, RoundRecord, RowRecord
from router.filters import Filter, begin
from router.tables import Costs

MODES = tuple(Mode)
AHEAD = (Mode.AHEAD, Mode.AHEAD_EARLY_EXIT)
PLAIN, REST, WIDE = 0, 1, 2  # parts of a round: a pass without drafts, the rest, a pass with drafts by mode,
DRAFT = WIDE + len(MODES)  # and drafts by exit

RATE = 0.7  # acceptance rate of the first exit before anything is known; with 0.62 the first look at drafting is late
PER_LAYER = 0.06  # log odds that a layer adds: of the demo's exits 0.01 to 0.1
LEVEL, OFFSET = 1.0, 0.25  # deviations in log odds: texts differ by 1 to 3, exits by 0.1 to 0.6
MACHINE, PASS, PART = 0.3, 0.04, 0.15  # of log times: all, passes, other parts; beside a draft passes vary as all do
POOL, EXIT = 0.16, 0.05  # of log times of drafts: at all exits, for one pool makes them, and at each
ROUND = 0.12  # standard deviation of a part's log time from round to round, as measured on two busy cores
BURSTS = 1.5  # variance of accepted counts over that of independent tokens, for text is easy or hard for a while
MEMORY = 1000.0  # rounds in which a belief decays to 1/e; 300 was worse (changed with RATE), 2000 no better
# And the text's level while off, where nothing is seen, over rows ** BY_ROWS: a larger batch learns more of a trial, so
# it looks sooner. At 8 rows a switch takes 16 rounds with this and 27 with twice as much; 130 costs one row 3 % of off.
UNSEEN, BY_ROWS = 300.0, 0.75
USUAL = 500.0  # rounds by which texts of this target become what is expected of the next: off loses 1.1 % for 1.9 %
STOPS = 100.0  # tokens that what is known of stops weighs; 50 follows a change of text ten rounds later
WAITS = 5.0  # rounds that what is known of the wait at the pool weighs
MOST = 3.0  # of a draft that is waited for ahead, by what a pass could hide of it
SETTLED = 16  # tokens; a draft that is handed more of a row is catching up


@dataclass(frozen=True, slots=True)
class Belief:
    accept: Filter
    cost: tuple[Filter, ...]
    ahead: Filter
    lags: tuple[float, ...]
    goes_on: float = 1.0
    goes_on_right: float = 1.0
    wait_ms: float = 0.0


def prior(costs: Costs) -> Belief:
    num_exits = len(costs.exits)
    offsets = [PER_LAYER * (exit_ - costs.exits[0]) for exit_ in costs.exits]
    level = math.log(RATE / (1 - RATE))
    times = [MACHINE, PASS, PART, PASS, *[MACHINE] * len(AHEAD), *[EXIT] * num_exits]
    return Belief(
        accept=begin([level, *offsets], [LEVEL, *[OFFSET] * num_exits]),
        cost=(begin([0.0] * len(times), times, range(DRAFT, DRAFT + num_exits), POOL),)
        * (1 + costs.size(len(costs.rest))),
        ahead=begin([0.0, *[0.9, 0.4] * len(AHEAD)], [1e-3, *[0.2, 0.3] * len(AHEAD)]),
        lags=(0.0,) * num_exits,
    )


def learn(belief: Belief, costs: Costs, records: Sequence[RoundRecord]) -> Belief:
    """The belief after these rounds, which followed each other."""
    records = [record for record in records if record.rows]
    if not records:
        return belief
    return _learn_times(_learn_tokens(belief, costs, records), costs, records)


def _learn_tokens(belief: Belief, costs: Costs, records: Sequence[RoundRecord]) -> Belief:
    accepted, tried = [0] * len(costs.exits), [0] * len(costs.exits)
    on = ends = right = early = 0
    for record in records:
        for row in record.rows:
            exit_ = _exit_of(row, costs)
            if exit_ is not None:
                accepted[exit_] += row.num_right
                tried[exit_] += row.num_tried
                ended, whole = row.num_drafted < row.length, row.num_right == row.num_drafted
                on, ends = on + row.num_drafted - 1, ends + ended
                right, early = right + row.num_right - whole, early + (ended and whole)
    num_rounds = len(records)
    accept = belief.accept.settled(num_rounds / USUAL).decayed(num_rounds / MEMORY, _doubt(records, any(tried)))
    for exit_, count in enumerate(tried):
        if count:
            accept = accept.counted(exit_, accepted[exit_] / BURSTS, count / BURSTS)
    return replace(
        belief,
        accept=accept,
        goes_on=(STOPS * belief.goes_on + on) / (STOPS + on + ends),
        goes_on_right=(STOPS * belief.goes_on_right + right) / (STOPS + right + early),
    )


def _doubt(records: Sequence[RoundRecord], drafted: bool) -> float:
    """How much more the level decays while off: sooner in large batches, where a round of drafting tells more."""
    return 0.0 if drafted else len(records) * len(records[-1].rows) ** BY_ROWS / UNSEEN


def _exit_of(row: RowRecord, costs: Costs) -> int | None:
    """The number of the one exit that a row was drafted at; None where there is no such."""
    if not row.num_drafted or row.rule is None or len(row.rule.exits) > 1 or row.rule.exits[0] not in costs.exits:
        return None
    return costs.exits.index(row.rule.exits[0])


@dataclass(slots=True)
class _Times:
    """A part in a few rounds of as many rows: sums of ms, and of what their profile is looked up by."""

    measured: float = 0.0
    profiled: float = 0.0
    num_rounds: int = 0
    num_tokens: int = 0
    context: float = 0.0

    def profile(self, part: int, num_rows: int, costs: Costs) -> float:
        if part >= DRAFT:
            return self.profiled
        if part == REST:
            return self.num_rounds * costs.rest[costs.rows(num_rows)]
        tokens, context = self.num_tokens / self.num_rounds, self.context / self.num_rounds
        return self.num_rounds * costs.verify_ms(num_rows, tokens, context)


Parts = dict[tuple[int, int], _Times]  # by part and number of rows


def _learn_times(belief: Belief, costs: Costs, records: Sequence[RoundRecord]) -> Belief:
    parts: Parts = {}
    wait_ms, lags, ahead = belief.wait_ms, belief.lags, belief.ahead
    for record in records:
        if not record.num_prefill_tokens:
            _add_passes(parts, record)
            exit_ = _planned(record, costs)
            if exit_ is not None:
                wait_ms += (record.wait_ms - wait_ms) / WAITS
                if lags[exit_] <= SETTLED and all(row.num_fed <= SETTLED for row in record.rows):
                    ahead = _learn_draft(parts, ahead, belief.cost, costs, record, exit_)
        lags = _lags(lags, costs, record)
    return replace(belief, cost=_learn_parts(belief.cost, costs, parts), ahead=ahead, wait_ms=wait_ms, lags=lags)


def _learn_parts(cost: tuple[Filter, ...], costs: Costs, parts: Parts) -> tuple[Filter, ...]:
    known = list(cost)
    for (part, num_rows), times in parts.items():
        at, profiled = costs.size(num_rows), times.profile(part, num_rows, costs)
        if part == REST:  # of every round
            known[at] = known[at].decayed(times.num_rounds / MEMORY)
        if times.measured > 0 and profiled > 0:
            known[at] = known[at].measured(part, math.log(times.measured / profiled), ROUND**2 / times.num_rounds)
    return tuple(known)


def _add_passes(parts: Parts, record: RoundRecord) -> None:
    num_rows, proposed = len(record.rows), record.num_proposed
    passed = parts.setdefault((WIDE + MODES.index(record.plan.mode) if proposed else PLAIN, num_rows), _Times())
    passed.measured += record.verify_ms
    passed.num_tokens += num_rows + proposed
    passed.context += record.context
    passed.num_rounds += 1
    rest = parts.setdefault((REST, num_rows), _Times())
    rest.measured += record.rest_ms
    rest.num_rounds += 1


def _learn_draft(
    parts: Parts, ahead: Filter, cost: tuple[Filter, ...], costs: Costs, record: RoundRecord, exit_: int
) -> Filter:
    """Learns from a round in which the pool had nothing to catch up with. Returns the belief about drafting ahead."""
    waited, num_rows = record.draft_ms - record.wait_ms, len(record.rows)
    link = costs.link[costs.rows(num_rows)]
    if record.plan.mode in AHEAD:
        drafted = [row.num_drafted for row in record.rows]
        factor = math.exp(cost[costs.size(num_rows)].arm(DRAFT + exit_))
        return _ahead(ahead, record, waited, link + costs.draft_ms(exit_, drafted) * factor)
    lengths = [row.num_drafted if row.origin is Origin.FRESH else 0 for row in record.rows]
    if any(lengths):
        times = parts.setdefault((DRAFT + exit_, num_rows), _Times())
        times.measured += waited - link
        times.profiled += costs.draft_ms(exit_, lengths)
        times.num_rounds += 1
    return ahead


def _ahead(ahead: Filter, record: RoundRecord, waited: float, whole: float) -> Filter:
    """whole: ms of these drafts where nothing hides them. They take longer beside branches that nobody wants."""
    at = 2 * AHEAD.index(record.plan.mode)
    planned = [row for row, length in zip(record.rows, record.plan.lengths, strict=True) if length]
    served = sum(row.num_drafted > 0 for row in planned) / len(planned)
    hidden = (whole - waited) / max(min(whole, record.verify_ms), 1e-6)
    ahead = ahead.decayed(1 / MEMORY).measured(at, served, 0.1 / len(planned))
    return ahead.measured(at + 1, 1 - min(max(hidden, 1 - MOST), 1.0), 0.2)


def _planned(record: RoundRecord, costs: Costs) -> int | None:
    """The number of the exit that all of a round was to be drafted at; None without a draft, and where rows differ."""
    depth = record.plan.depth
    if depth is None or record.plan.own or len(depth.exits) > 1 or depth.exits[0] not in costs.exits:
        return None
    return costs.exits.index(depth.exits[0]) if any(record.plan.lengths) else None


def _lags(lags: Sequence[float], costs: Costs, record: RoundRecord) -> tuple[float, ...]:
    """Layers up to the exit have run all but what this round commits. Deeper ones lack at least what was fed to it."""
    exit_, each = _planned(record, costs), record.num_committed / len(record.rows)
    if exit_ is None:
        return tuple([lag + each for lag in lags])
    fed = sum([row.num_fed for row in record.rows]) / len(record.rows)
    return tuple([each if at <= exit_ else max(lag, fed) + each for at, lag in enumerate(lags)])
