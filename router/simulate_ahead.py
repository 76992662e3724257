"""Drafting ahead in a simulated replica: what drafters/branches.py does, in time.

A window is being verified. One pass drafts the lead behind it, what goes on from there, and branches behind the best
outcomes within the window; then come those of the `fan_out` outcomes that drafters/outcomes.py ranks best which are
missing. A hint ranks them anew half way. Every branch is told of pass by pass, in part where it is not done; the next
message of its sequence ends it.

Tokens are RIGHT or WRONG here, which is all that ranking and resolving need: a candidate is the outcome if it names
where the window ends, and the right token behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drafters.outcomes import Candidate, Guess, candidates
from protocol.branch import BranchSource
from protocol.errors import ConfigError
from router.pipeline import Source
from router.simulate_acceptance import Draft
from router.simulate_jobs import RIGHT, WRONG, Branch, Flight, Job, Lead, Outcome, Resident, Round, Window
from router.simulate_pool import Replica

UNKNOWN = -1  # no token
SECOND = 2  # a second choice that is not right; early picks that are not right go on from there
SALT = 1  # of a request's seed, so that these draws are none of its text's


@dataclass(frozen=True, slots=True)
class Choices:
    """What is right where the drafter's first choice is not. runner_up: share of its mistakes that its second choice
    corrects. early: of those that are left, the share that the target's first, second, ... early pick corrects; agrees:
    share of the drafter's right tokens that the first early pick names too.
    """

    runner_up: float = 0.5
    early: tuple[float, ...] = (0.3, 0.1)
    agrees: float = 0.6

    def __post_init__(self) -> None:
        shares = (self.runner_up, *self.early, sum(self.early), self.agrees)
        if not all(0 <= share <= 1 for share in shares):
            raise ConfigError(f"{self}: give shares between 0 and 1, those of early picks adding up to 1 at most")


class Luck:
    """One sequence's, by position of its output."""

    __slots__ = ("early", "second")

    def __init__(self, num_tokens: int, seed: int) -> None:
        rng = np.random.default_rng([seed, SALT])
        self.second: list[float] = rng.random(num_tokens).tolist()
        self.early: list[float] = rng.random(num_tokens).tolist()


def guess_of(choices: Choices, luck: Luck, position: int, confidence: float, is_right: bool) -> Guess:
    if is_right:
        return Guess(RIGHT, confidence, SECOND)
    return Guess(WRONG, confidence, RIGHT if luck.second[position] < choices.runner_up else SECOND)


def early_picks(choices: Choices, luck: Luck, position: int, is_right: bool, number: int) -> tuple[int, ...]:
    """The target's, best first."""
    shares = (choices.agrees, *(0.0 for _ in choices.early[1:])) if is_right else choices.early
    reached, chance = 0.0, luck.early[position]
    picks = []
    for rank, share in enumerate(shares[:number]):
        picks.append(RIGHT if reached <= chance < reached + share else SECOND + 1 + rank)
        reached += share
    return tuple(picks)


class AheadRound(Round):
    """An AheadRequest's rows at the replica, and what is drafted for them."""

    __slots__ = ("_arrived", "_exits", "_flights", "_keys", "_replica", "_rows")
    is_ahead = True

    def __init__(
        self,
        replica: Replica,
        exits: Sequence[int],
        flights: Sequence[Flight],
        keys: Iterator[int],
        arrived: Callable[[Flight, Outcome, Window], None],
    ) -> None:
        """keys: names of sequences and forks, unique over all targets. arrived: is told of a branch as it is done."""
        super().__init__(None)
        self._replica = replica
        self._exits = exits
        self._flights = flights
        self._keys = keys
        self._arrived = arrived
        self._rows: dict[int, tuple[Flight, Outcome | None]] = {}

    def begin(self) -> None:
        """The message is taken: leads, and what rides with them."""
        jobs = []
        for flight in self._flights:
            if flight.sequence.remaining:
                jobs += self._begin(flight)
        self._replica.submit(self, jobs)

    def hint(self) -> None:
        """Of rows whose round is over it is nothing."""
        for flight in self._flights:
            if flight.sequence.ahead is flight:
                flight.early = flight.hint
                if flight.num_behind is not None:
                    self._spread(flight)

    def advance(self, key: int, job: Job) -> None:
        flight, outcome = self._rows[key]
        if outcome is not None:
            self._tell(flight, outcome)
            return
        self._replica.close(key)
        flight.num_behind = job.done - 1
        self._spread(flight)

    def _begin(self, flight: Flight) -> list[tuple[int, Job]]:
        sequence, window = flight.sequence, flight.window
        known = sequence.end_ahead(self._replica.close)
        flight.held = known.job.done if known is not None and known.window.rule == window.rule else 0
        sequence.ahead = flight
        resident = sequence.held(len(self._exits), flight.base)
        resident.take_over(flight.base, None, flight.num_verified if window.in_place else 0)
        resident.base = flight.base + flight.num_verified
        resident.right = flight.base + flight.num_right
        if flight.num_right == flight.num_verified and flight.lead.run:
            resident.right += 1 + flight.behind.run
        lead = self._lead(flight, resident)
        self._rows[sequence.key] = flight, None
        rides = lead.missing <= self._replica.rules.max_ride
        return [(sequence.key, lead), *(self._riding(flight, lead.goal) if rides else ())]

    def _lead(self, flight: Flight, resident: Resident) -> Lead:
        """Alone where more is known of what goes on from it than is asked for."""
        is_known = flight.num_before >= len(flight.behind.exits)
        behind = flight.behind.first(0 if is_known else len(flight.behind.exits))
        exits = [*flight.lead.exits, *behind.exits]
        draft = Draft(exits, [*flight.lead.confidences, *behind.confidences], 0)
        return Lead(self, resident, self._exits.index(flight.window.rule.exits[-1]), draft, None)

    def _riding(self, flight: Flight, goal: int) -> list[tuple[int, Job]]:
        """What is likely before the lead is known: branches within the window, one place left for the lead's."""
        guesses = [*flight.guesses[: flight.num_verified], Guess(UNKNOWN, 0.5)]
        inside = [one for one in candidates(guesses) if one.accepted < flight.num_verified]
        jobs = [job for one in inside[: flight.fan_out - 1] if (job := self._start(flight, one)) is not None]
        for _, fork in jobs:  # the lead's row runs what is missing before them
            fork.resident.settled[: goal + 1] = [fork.resident.base - 1] * (goal + 1)
        return jobs

    def _spread(self, flight: Flight) -> None:
        """Over the outcomes that are the best as things are known now."""
        best = candidates(flight.guesses, flight.early)[: flight.fan_out]
        wanted = {(one.accepted, one.token): one for one in best}
        for outcome, branch in flight.begun.items():
            if outcome not in wanted and not branch.job.is_done:
                self._replica.close(branch.key)
        fresh = [one for outcome, one in wanted.items() if outcome not in flight.begun]
        jobs = [job for one in fresh if (job := self._start(flight, one)) is not None]
        self._replica.submit(self, [(key, job) for key, job in jobs if not job.is_done])

    def _start(self, flight: Flight, candidate: Candidate) -> tuple[int, Job] | None:
        """None where the text ends before it."""
        sequence, rule = flight.sequence, flight.window.rule
        is_full = candidate.source is BranchSource.FULL
        offset = flight.window.offset + flight.num_verified + 1 if is_full else 0
        start = flight.start + candidate.accepted + 1
        length = min(flight.length, sequence.max_tokens - start)
        if length <= 0:
            return None
        draft = sequence.text.draft(flight.table.later(offset), rule, start, length, flight.floor)
        window = Window(draft, rule, flight.length, offset, is_full, Source(candidate.source.value))
        key = sequence.key if is_full else next(self._keys)
        resident = self._trunk(flight) if is_full else self._fork(flight, candidate.accepted)
        job = Job(self, resident, self._exits.index(rule.exits[-1]), draft, None)
        outcome = candidate.accepted, candidate.token
        flight.begun[outcome] = Branch(key, window, job)
        self._rows[key] = flight, outcome
        if is_full:
            job.done = min(max(flight.num_before, flight.num_behind or 0), len(draft.exits))
            if job.done:
                self._tell(flight, outcome)
        return key, job

    def _tell(self, flight: Flight, outcome: Outcome) -> None:
        """What there is of a branch."""
        branch = flight.begun[outcome]
        self._arrived(flight, outcome, branch.window.part(branch.job.done))

    def _trunk(self, flight: Flight) -> Resident:
        """It goes on behind its lead."""
        resident = flight.sequence.held(len(self._exits), flight.base)
        resident.base += 1
        return resident

    def _fork(self, flight: Flight, accepted: int) -> Resident:
        """It reads its sequence in place, and owns what comes behind."""
        base, trunk = flight.base + accepted, flight.sequence.held(len(self._exits), flight.base)
        fork = Resident(len(self._exits), base + 1)
        fork.settled = [min(each, base) for each in trunk.settled]
        return fork
