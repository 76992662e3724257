"""What a target believes of its rounds, and how a round changes that. Values and pure functions.

accept    log odds that a drafted token is accepted if all before it were: of the text, and what an exit adds
cost      log of measured over profiled time, by part of a round and by size of batch: a profile is off by another
          factor at each
ahead     of rounds ahead: the share of rows that have a proposal, and of the drafting time that a pass could hide the
          share that is waited for all the same; it fades in any mode, so that a bad minute is not kept for good
goes_on   how often drafts go on behind a token, and behind an accepted one: they end where the next does not pay
wait_ms   time of a request in the pool's queue
lags      by exit: tokens of each row that its layers have not run, without those that the pool was not handed
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.plan import Mode
from router.filters import Filter, begin
from router.seen import SETTLED, Seen
from router.tables import Costs

MODES = tuple(Mode)
PLAIN, REST, WIDE = 0, 1, 2  # parts of a round: a pass without drafts, the rest, a pass with drafts by mode,
DRAFT = WIDE + len(MODES)  # and drafts, at all exits, for one pool makes them

RATE = 0.7  # acceptance rate of the first exit before anything is known; with 0.62 the first look at drafting is late
PER_LAYER = 0.06  # log odds that a layer adds: of the demo's exits 0.01 to 0.1; with 0 all exits are tried
LEVEL, OFFSET = 1.0, 0.25  # deviations in log odds: texts differ by 1 to 3, exits by 0.1 to 0.6
# Deviations of log times: of all but the rest, of drafts, of passes; beside a draft passes vary as all do. The rest is
# Python, which slows down where passes do not (0010).
MACHINE, PART, PASS = 0.3, 0.16, 0.04
ROUND = 0.12  # standard deviation of a part's log time from round to round, as measured on two busy cores
MEMORY = 1000.0  # rounds in which a belief about times decays to 1/e
TEXTS = 300.0  # and what is known of a text, for texts change sooner than machines
# While off, nothing is seen of a text, so the belief about it fades, in UNSEEN rounds over rows ** BY_ROWS: faster in
# larger batches, where one trial tells more. With one rate for all a switch at 8 rows takes 29 rounds, or one row loses
# 3 % of off.
UNSEEN, BY_ROWS = 300.0, 0.75
USUAL = 300.0  # rounds by which texts of this target become what is expected of the next: without, off loses 1.5 % more
STOPS = 100.0  # tokens that what is known of stops weighs; 50 follows a change of text ten rounds later
WAITS = 5.0  # rounds that what is known of the wait at the pool weighs
MOST = 3.0  # of a draft that is waited for ahead, by what a pass could hide of it


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
    exits = costs.exits
    odds = [math.log(RATE / (1 - RATE)), *[PER_LAYER * (exit_ - exits[0]) for exit_ in exits]]
    texts = begin(odds, [LEVEL, *[OFFSET] * len(exits)], tuple((0, 1 + at) for at in range(len(exits))))
    deviations = [MACHINE, PASS, MACHINE, PASS, MACHINE, PART]
    parts = tuple((1 + part,) if part == REST else (0, 1 + part) for part in range(DRAFT + 1))
    times = begin([0.0] * len(deviations), deviations, parts)
    sizes = 1 + costs.size(len(costs.rest))
    return Belief(texts, (times,) * sizes, begin([0.9, 0.4], [0.2, 0.3]), (0.0,) * len(exits))


def learn(belief: Belief, costs: Costs, seen: Seen) -> Belief:
    """The belief after these rounds."""
    at, exit_, rounds = costs.size(seen.num_rows), seen.exit, seen.timed
    goes_on, goes_on_right, wait_ms = belief.goes_on, belief.goes_on_right, belief.wait_ms
    times, ahead = _passes(belief.cost[at], costs, seen), belief.ahead.decayed(seen.num_rounds / MEMORY)
    if exit_ is not None:
        goes_on = (STOPS * goes_on + seen.on) / (STOPS + seen.on + seen.ended)
        goes_on_right = (STOPS * goes_on_right + seen.on_right) / (STOPS + seen.on_right + seen.ended_right)
        wait_ms += (seen.queued_ms / max(rounds, 1) - wait_ms) * (1 - (1 - 1 / WAITS) ** rounds)
        if (seen.num_drafts or seen.planned) and belief.lags[exit_] <= SETTLED:
            link_ms = seen.num_drafts * costs.link[costs.rows(seen.num_rows)]
            if seen.mode is Mode.AHEAD:
                factor = math.exp(belief.cost[at].value(DRAFT))
                ahead = _ahead(ahead, seen, link_ms + seen.drafted_ms * factor)
            else:
                times = _timed(times, DRAFT, seen.waited_ms - link_ms, seen.drafted_ms, seen.num_drafts)
    cost = (*belief.cost[:at], times, *belief.cost[at + 1 :])
    accept, lags = _accepted(belief.accept, seen), _lags(belief.lags, seen)
    return Belief(accept, cost, ahead, lags, goes_on, goes_on_right, wait_ms)


def _accepted(accept: Filter, seen: Seen) -> Filter:
    rounds = seen.num_rounds
    doubt = 0.0 if seen.tried else rounds * seen.num_rows**BY_ROWS / UNSEEN
    accept = accept.decayed(rounds / TEXTS, doubt, rounds / USUAL)
    if not seen.tried or seen.exit is None:
        return accept
    return accept.counted(seen.exit, seen.right, seen.tried)


def _passes(times: Filter, costs: Costs, seen: Seen) -> Filter:
    if not seen.timed:
        return times
    times = times.decayed(seen.timed / MEMORY)
    for part, passes in ((PLAIN, seen.plain), (WIDE + MODES.index(seen.mode), seen.wide)):
        if passes.num_rounds:
            profiled_ms = passes.profiled_ms(costs, seen.num_rows)
            times = _timed(times, part, passes.ms, profiled_ms, passes.num_rounds)
    return _timed(times, REST, seen.rest_ms, seen.timed * costs.rest[costs.rows(seen.num_rows)], seen.timed)


def _timed(times: Filter, part: int, measured_ms: float, profiled_ms: float, num_rounds: int) -> Filter:
    if min(measured_ms, profiled_ms) <= 0:
        return times
    return times.measured(part, math.log(measured_ms / profiled_ms), ROUND**2 / num_rounds)


def _ahead(ahead: Filter, seen: Seen, whole_ms: float) -> Filter:
    """whole_ms: what these drafts take where nothing hides them. They take longer beside useless branches."""
    if seen.planned:
        ahead = ahead.measured(0, seen.served / seen.planned, 0.1 / seen.planned)
    if not seen.num_drafts:
        return ahead
    hidden = (whole_ms - seen.waited_ms) / max(min(whole_ms, seen.plain.ms + seen.wide.ms), 1e-6)
    return ahead.measured(1, 1 - min(max(hidden, 1 - MOST), 1.0), 0.2 / seen.num_drafts)


def _lags(lags: Sequence[float], seen: Seen) -> tuple[float, ...]:
    """Layers up to the exit lack what the last round committed, deeper ones also what the exit was fed. Rounds off do
    not count for the first exit: what it lacks since is what the pool was not handed, and a view tells that.
    """
    if seen.exit is None:
        return (lags[0], *[lag + seen.committed for lag in lags[1:]])
    return tuple([seen.last if at <= seen.exit else max(lag, seen.fed) + seen.committed for at, lag in enumerate(lags)])
