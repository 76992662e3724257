"""What a target believes of its rounds, and how a round changes that. Values and pure functions.

accept    log odds that a drafted token is accepted if all before it were: of the text, and what an exit adds
cost      by size of batch, for a profile is off by another factor at each: log of measured over profiled time, by part of
          a round
ahead     by mode that drafts ahead: the share of rows that have a proposal, and the share that is waited for of
          what the pass could hide of a draft
goes_on   how often drafts go on behind a token, and behind an accepted one: they end where the next does not pay
wait_ms   that a request queues at the pool
lags      by exit: tokens of each row that its layers have not run
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from dataclasses import dataclass

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
    exits = range(len(costs.exits))
    offsets = [PER_LAYER * (exit_ - costs.exits[0]) for exit_ in costs.exits]
    texts = begin(tuple((0, 1 + at) for at in exits), [math.log(RATE / (1 - RATE)), *offsets], [LEVEL, *repeat(OFFSET, len(exits))])
    parts = (*((0, 1 + part) for part in range(DRAFT)), *((0, 1 + DRAFT, 2 + DRAFT + at) for at in exits))
    deviations = [MACHINE, PASS, PART, PASS, *repeat(MACHINE, len(AHEAD)), POOL, *repeat(EXIT, len(exits))]
    times = begin(parts, [0.0] * len(deviations), deviations)
    ahead = begin(((0,), (1,), (2,), (3,)), [0.9, 0.4] * 2, [0.2, 0.3] * 2)
    return Belief(texts, (times,) * (1 + costs.size(len(costs.rest))), ahead, (0.0,) * len(exits))


def learn(belief: Belief, costs: Costs, record: RoundRecord) -> Belief:
    """The belief after one more round."""
    if not record.rows:
        return belief
    exit_ = _planned(record, costs)
    accept, goes_on, goes_on_right = _learn_tokens(belief, costs, record)
    cost, ahead, wait_ms = belief.cost, belief.ahead, belief.wait_ms
    if not record.num_prefill_tokens:
        at = costs.size(len(record.rows))
        times = _learn_pass(cost[at], costs, record)
        if exit_ is not None:
            wait_ms += (record.wait_ms - wait_ms) / WAITS
            if belief.lags[exit_] <= SETTLED and all([row.num_fed <= SETTLED for row in record.rows]):
                times, ahead = _learn_draft(times, ahead, costs, record, exit_)
        cost = (*cost[:at], times, *cost[at + 1 :])
    lags = _lags(belief.lags, record, exit_)
    return Belief(accept, cost, ahead, lags, goes_on, goes_on_right, wait_ms)


def _learn_tokens(belief: Belief, costs: Costs, record: RoundRecord) -> tuple[Filter, float, float]:
    """What is accepted, and how often drafts go on behind a token, and behind an accepted one."""
    right, tried = [0] * len(costs.exits), [0] * len(costs.exits)
    on = ends = on_right = ends_right = 0
    for row in record.rows:
        exit_ = _exit_of(row, costs)
        if exit_ is not None:
            drafted, accepted = row.num_drafted, row.num_right
            right[exit_] += accepted
            tried[exit_] += row.num_tried
            ended, whole = drafted < row.length, accepted == drafted
            on, ends = on + drafted - 1, ends + ended
            on_right, ends_right = on_right + accepted - whole, ends_right + (ended and whole)
    doubt = 0.0 if any(tried) else len(record.rows) ** BY_ROWS / UNSEEN
    accept = belief.accept.settled(1 / USUAL).decayed(1 / MEMORY, doubt)
    for exit_, count in enumerate(tried):
        if count:
            accept = accept.counted(exit_, right[exit_] / BURSTS, count / BURSTS)
    goes_on = (STOPS * belief.goes_on + on) / (STOPS + on + ends)
    return accept, goes_on, (STOPS * belief.goes_on_right + on_right) / (STOPS + on_right + ends_right)


def _exit_of(row: RowRecord, costs: Costs) -> int | None:
    """The number of the one exit that a row was drafted at; None where there is no such."""
    if not row.num_drafted or row.rule is None or len(row.rule.exits) > 1 or row.rule.exits[0] not in costs.exits:
        return None
    return costs.exits.index(row.rule.exits[0])


def _learn_pass(times: Filter, costs: Costs, record: RoundRecord) -> Filter:
    num_rows, proposed = len(record.rows), record.num_proposed
    part = WIDE + MODES.index(record.plan.mode) if proposed else PLAIN
    verify_ms = costs.verify_ms(num_rows, num_rows + proposed, record.context)
    times = _timed(times.decayed(1 / MEMORY), part, record.verify_ms, verify_ms)
    return _timed(times, REST, record.rest_ms, costs.rest[costs.rows(num_rows)])


def _timed(times: Filter, part: int, measured_ms: float, profiled_ms: float) -> Filter:
    if min(measured_ms, profiled_ms) <= 0:
        return times
    return times.measured(part, math.log(measured_ms / profiled_ms), ROUND**2)


def _learn_draft(
    times: Filter, ahead: Filter, costs: Costs, record: RoundRecord, exit_: int
) -> tuple[Filter, Filter]:
    """Of a round in which the pool had nothing to catch up with: times, and what drafting ahead hides."""
    waited, link = record.draft_ms - record.wait_ms, costs.link[costs.rows(len(record.rows))]
    if record.plan.mode in AHEAD:
        drafted = [row.num_drafted for row in record.rows]
        whole = link + costs.draft_ms(exit_, drafted) * math.exp(times.value(DRAFT + exit_))
        return times, _ahead(ahead, record, waited, whole)
    lengths = [row.num_drafted if row.origin is Origin.FRESH else 0 for row in record.rows]
    return _timed(times, DRAFT + exit_, waited - link, costs.draft_ms(exit_, lengths)), ahead


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


def _lags(lags: Sequence[float], record: RoundRecord, exit_: int | None) -> tuple[float, ...]:
    """Layers up to the exit have run all but what this round commits. Deeper ones lack at least what was fed to it."""
    each = record.num_committed / len(record.rows)
    if exit_ is None:
        return tuple([lag + each for lag in lags])
    fed = sum([row.num_fed for row in record.rows]) / len(record.rows)
    return tuple([each if at <= exit_ else max(lag, fed) + each for at, lag in enumerate(lags)])
