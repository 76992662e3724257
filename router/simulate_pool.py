"""Simulated time, and the pool in it: a heap of things to happen, devices that do one after another, replicas.

A replica imitates drafters/worker.py. It runs one ragged pass at a time, with the rows of every round that is there
when the pass begins; a row drafts up to `ahead` tokens in it and leaves when its draft is done, contexts go along in
chunks within a budget, and a probe has a pass of its own, never two in a row. What a draft says was decided with the
text; here it only takes time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from router.simulate_acceptance import Draft
from router.simulate_costs import PoolTables

Call = Callable[[], None]
Jitter = Callable[[], float]  # a factor on the time of one pass


class Loop:
    """Simulated milliseconds. What falls on one instant happens in the order in which it was asked for."""

    __slots__ = ("_count", "_heap", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._heap: list[tuple[float, int, Call]] = []

    def at(self, ms: float, call: Call) -> None:
        self._count += 1
        heappush(self._heap, (ms, self._count, call))

    def run(self) -> None:
        """Until nothing is left to happen."""
        heap = self._heap
        while heap:
            self.now, _, call = heappop(heap)
            call()


class Device:
    """Does one thing at a time, in the order of asking. `begin` says how long it takes, when its turn comes."""

    __slots__ = ("_busy", "_loop", "_queue", "busy_ms")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._queue: deque[tuple[Callable[[], float], Call]] = deque()
        self._busy = False
        self.busy_ms = 0.0

    def ask(self, begin: Callable[[], float], done: Call) -> None:
        self._queue.append((begin, done))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = True
        begin, done = self._queue.popleft()
        ms = begin()
        self.busy_ms += ms
        self._loop.at(self._loop.now + ms, lambda: self._end(done))

    def _end(self, done: Call) -> None:
        done()
        self._busy = False
        if self._queue:
            self._next()


@dataclass(frozen=True, slots=True)
class PoolRules:
    """As drafters.residents.PoolLimits, which says what they mean; there is memory for every sequence here."""

    prefill_tokens: int = 256
    max_ride: int = 32
    ahead: int = 8
    probe_tokens: int = 64


class Resident:
    """What a replica holds of one sequence. settled: positions that have left each exit. draft: the last one, behind
    `base` tokens. probed: the position from which on no probe has told.
    """

    __slots__ = ("base", "draft", "probed", "settled")

    def __init__(self, num_exits: int, base: int) -> None:
        self.settled = [0] * num_exits
        self.base = base
        self.probed = base
        self.draft: Draft | None = None

    def take_over(self, base: int, draft: Draft | None) -> None:
        """The sequence has `base` committed tokens now, of which the last one is not settled; `draft` comes next."""
        right = base if self.draft is None else self.base + self.draft.run
        kept = min(right, base - 1)
        self.settled = [min(each, kept) for each in self.settled]
        self.base, self.draft = base, draft

    def untold(self, limit: int) -> range:
        """The committed positions that a probe tells of."""
        return range(min(max(self.probed, self.base - limit), self.base), self.base)


class Job:
    """One row of a round. goal: the last exit of its rule, by number. told: the last committed positions, of which its
    probe tells; None: no probe.
    """

    __slots__ = ("done", "draft", "goal", "is_told", "resident", "round", "told")

    def __init__(self, round_: Round, resident: Resident, goal: int, draft: Draft, told: range | None) -> None:
        self.round = round_
        self.resident = resident
        self.goal = goal
        self.draft = draft
        self.told = told
        self.is_told = not told
        self.done = 0

    @property
    def missing(self) -> int:
        """Positions of its context that have not left the last exit it needs."""
        if self.told and not self.is_told:
            return self.told.start - 1 - self.resident.settled[-1]
        return self.resident.base + self.done - 1 - self.resident.settled[self.goal]

    @property
    def is_done(self) -> bool:
        if not self.draft.exits and self.told is None:
            return self.missing <= 0  # it only hands over context
        return self.is_told and self.done >= len(self.draft.exits)


class Round:
    """Times in ms; began: its first pass. answered: called once, when every row is."""

    __slots__ = ("_answered", "began", "finished", "num_missing", "submitted")

    def __init__(self, answered: Call | None) -> None:
        """answered None: contexts are handed over and nobody waits."""
        self._answered = answered
        self.submitted = 0.0
        self.began: float | None = None
        self.num_missing = 0
        self.finished: set[int] = set()

    @property
    def is_awaited(self) -> bool:
        return self._answered is not None

    @property
    def wait_ms(self) -> float:
        return 0.0 if self.began is None else self.began - self.submitted

    def finish(self, key: int) -> None:
        self.finished.add(key)
        self.num_missing -= 1
        if self._answered is not None and self.num_missing == 0:
            self._answered()

    def give_up(self) -> None:
        """Nobody waits for the rest."""
        self._answered = None


Rows = list[list[int]]  # by token of the pass, then by group of layers


class Replica:
    """One drafter. eager: it works as soon as there is something, not only while a target waits (one that shares its
    target's process).
    """

    def __init__(
        self, loop: Loop, device: Device, tables: PoolTables, num_exits: int, rules: PoolRules, jitter: Jitter
    ) -> None:
        self.eager = True
        self.device = device
        self.tables = tables
        self.busy_ms = 0.0
        self.num_passes = 0
        self.num_rows = 0
        self._loop = loop
        self._num_exits = num_exits
        self.rules = rules
        self._jitter = jitter
        self._jobs: dict[int, Job] = {}  # by sequence, longest waiting first
        self._in_pass: list[tuple[int, Job, int]] = []  # key, job, tokens that it drafts
        self._probing: list[tuple[int, Job]] = []
        self._probed = False
        self._running = False

    def submit(self, round_: Round, jobs: Sequence[tuple[int, Job]]) -> None:
        """jobs: by the sequence's key, which is unique over all targets."""
        round_.submitted = self._loop.now
        round_.num_missing = len(jobs)
        done = []
        for key, job in jobs:
            self._jobs.pop(key, None)  # what was asked before is not awaited any more
            if job.is_done:
                done.append(key)
                job = Job(Round(None), job.resident, job.goal, job.draft, None)  # its context stays to be settled
            if not job.is_done:
                self._jobs[key] = job
        for key in done:
            round_.finish(key)
        self._wake()

    def close(self, key: int) -> None:
        self._jobs.pop(key, None)

    def _wake(self) -> None:
        if self._running or not self._jobs:
            return
        if self.eager or any(job.round.is_awaited for job in self._jobs.values()):
            self._running = True
            self.device.ask(self._begin, self._end)

    def _begin(self) -> float:
        """Chooses the rows of a pass, as the worker does; its milliseconds."""
        probing = self._due()
        rows, positions = self._choose() if self._probed or not probing else ([], [])
        self._probed = bool(probing) and not self._in_pass
        if self._in_pass:
            ms = sum(self.tables.step_ms(not j, *step) for j, step in enumerate(zip(rows, positions, strict=True)))
        elif probing:
            ms = self._probe(probing)
        else:
            return 0.0  # all that was asked for was withdrawn while the device was busy
        ms *= self._jitter()
        self.busy_ms += ms
        self.num_passes += 1
        self.num_rows += len(self._in_pass) or len(self._probing)
        for job in (*(job for _, job, _ in self._in_pass), *(job for _, job in self._probing)):
            if job.round.began is None:
                job.round.began = self._loop.now
        return ms

    def _end(self) -> None:
        for key, job, num_drafted in self._in_pass:
            job.done += num_drafted
            if job.is_done:
                self._finish(key, job)
        for key, job in self._probing:
            job.is_told = True
            if job.is_done:
                self._finish(key, job)
        self._in_pass, self._probing = [], []
        self._running = False
        self._wake()

    def _finish(self, key: int, job: Job) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
            job.round.finish(key)

    def _due(self) -> list[tuple[int, Job]]:
        budget, due = self.rules.prefill_tokens, []
        for key, job in self._jobs.items():
            if job.told and not job.is_told and len(job.told) <= budget and job.missing <= 0:
                budget -= len(job.told)
                due.append((key, job))
        return due

    def _choose(self) -> tuple[Rows, Rows]:
        """Rows and positions of every step of the pass, by group."""
        rows: Rows = []
        positions: Rows = []
        budget = self.rules.prefill_tokens
        for key, job in self._jobs.items():
            missing, may_draft = job.missing, bool(job.draft.exits) and job.is_told
            rides = may_draft and missing <= self.rules.max_ride
            chunk = 0 if rides else min(missing, budget)
            if not rides and chunk <= 0:
                continue  # its probe is due, or the budget spent
            budget -= chunk
            drafts = rides or (may_draft and chunk == missing)
            self._in_pass.append((key, job, self._advance(job, chunk, drafts, rows, positions)))
        return rows, positions

    def _advance(self, job: Job, chunk: int, drafts: bool, rows: Rows, positions: Rows) -> int:
        """Adds its part to the pass; how many tokens it drafts there."""
        settled = job.resident.settled
        goal = job.goal if job.is_told else self._num_exits - 1
        if not drafts:
            self._run(0, goal, settled, settled[goal] + chunk, rows, positions)
            return 0
        num = min(len(job.draft.exits) - job.done, self.rules.ahead)
        for step in range(num):
            exit_ = job.draft.exits[job.done + step]
            self._run(step, exit_, settled, job.resident.base + job.done + step, rows, positions)
        if chunk:  # the context goes to the last exit, wherever the first token left
            self._run(0, goal, settled, job.resident.base + job.done - 1, rows, positions)
        return num

    def _run(self, step: int, exit_: int, settled: list[int], stop: int, rows: Rows, positions: Rows) -> None:
        """The positions before `stop` leave an exit, those that did not before."""
        if step == len(rows):
            rows.append([0] * self._num_exits)
            positions.append([0] * self._num_exits)
        for group in range(exit_ + 1):
            num = stop - settled[group]
            if num > 0:
                rows[step][group] += 1
                positions[step][group] += num
                settled[group] = stop

    def _probe(self, probing: list[tuple[int, Job]]) -> float:
        """All layers over the positions told of, whatever had left which exit before."""
        self._probing = probing
        for _, job in probing:
            resident = job.resident
            resident.probed = resident.base
            resident.settled = [max(each, resident.base - 1) for each in resident.settled]
        return self.tables.probe_ms(len(probing), sum(len(job.told or ()) for _, job in probing))
