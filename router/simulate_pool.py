"""Simulated time, and the pool in it: a heap of things to happen, devices that do one after another, replicas.

A replica imitates drafters/worker.py. It runs one ragged pass at a time, with the rows of every round that is there
when the pass begins; a row drafts up to `ahead` tokens in it and leaves when its draft is done, contexts go along in
chunks within a budget, and a probe has a pass of its own, never two in a row. What nobody waits for yet (drafting
ahead) rides in the passes of what somebody does, if it is of that depth. Messages are taken between passes. What a
draft says was decided with the text; here it only takes time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

from router.simulate_acceptance import NOTHING
from router.simulate_costs import PoolTables
from router.simulate_jobs import Call, Job, Lead, Round

Jitter = Callable[[], float]  # a factor on the time of one pass

PACE = 0.2  # of a new pass in the mean time of a token


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
    """Does one thing at a time, in the order of asking. `begin` says how long it takes, when its turn comes; it takes
    `beside` times as long while one of the neighbours is busy: cores share caches and memory.
    """

    __slots__ = (
        "_began",
        "_beside",
        "_busy",
        "_done",
        "_left",
        "_loop",
        "_number",
        "_pace",
        "_queue",
        "_since",
        "busy_ms",
        "neighbours",
    )

    def __init__(self, loop: Loop, beside: float = 1.0) -> None:
        self.neighbours: list[Device] = []
        self.busy_ms = 0.0
        self._beside = beside
        self._loop = loop
        self._queue: deque[tuple[Callable[[], float], Call]] = deque()
        self._busy = False
        self._began = 0.0
        self._done: Call = lambda: None
        self._left = 0.0  # of what is running, in ms by itself
        self._since = 0.0  # it runs at this pace, and so much was left
        self._pace = 1.0
        self._number = 0  # of the latest forecast of its end

    def ask(self, begin: Callable[[], float], done: Call) -> None:
        self._queue.append((begin, done))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        begin, self._done = self._queue.popleft()
        self._busy, self._began, self._left, self._pace = True, self._loop.now, begin(), self._own_pace
        self._run_on()
        self._tell()

    @property
    def _own_pace(self) -> float:
        return self._beside if any(one._busy for one in self.neighbours) else 1.0

    def _run_on(self) -> None:
        """As fast as the neighbours let it, from now on."""
        self._since = self._loop.now
        self._number += 1
        self._loop.at(self._since + self._left * self._pace, partial(self._end, self._number))

    def _tell(self) -> None:
        for one in self.neighbours:
            if one._busy and one._pace != one._own_pace:
                one._left -= (self._loop.now - one._since) / one._pace
                one._pace = one._own_pace
                one._run_on()

    def _end(self, number: int) -> None:
        if number != self._number:
            return
        self.busy_ms += self._loop.now - self._began
        self._done()
        self._busy = False
        if self._queue:
            self._next()
        else:
            self._tell()


@dataclass(frozen=True, slots=True)
class PoolRules:
    """As drafters.limits.PoolLimits, which says what they mean; there is memory for every sequence here."""

    prefill_tokens: int = 256
    max_ride: int = 32
    ahead: int = 8
    branch_ahead: int = 4
    branch_ms: float = 0.5
    probe_tokens: int = 64


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
        self._branch_ahead = rules.branch_ahead  # tokens of a row that nobody waits for, in the pass that is running
        self._token_ms = 0.0  # of a pass, for each token that it makes of a row: a running mean
        self._began = 0.0  # the pass that is running
        self._num_prefill = 0  # positions of the pass that is running, from its budget
        self._running = False
        self._inbox: list[Call] = []  # came during a pass

    def tell(self, message: Call) -> None:
        """A message is taken at once, or when the pass that is running has ended."""
        if self._in_pass or self._probing:
            self._inbox.append(message)
        else:
            message()

    def submit(self, round_: Round, jobs: Sequence[tuple[int, Job]]) -> None:
        """jobs: by the sequence's key, which is unique over all targets."""
        round_.arrive(self._loop.now)
        round_.num_missing = len(jobs)
        done = []
        for key, job in jobs:
            self._jobs.pop(key, None)  # what was asked before is not awaited any more
            if job.is_done:
                done.append(key)
                job = Job(Round(None), job.resident, job.goal, NOTHING, None)  # its context stays to be settled
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
        self._began = self._loop.now
        self.num_passes += 1
        self.num_rows += len(self._in_pass) or len(self._probing)
        for job in (*(job for _, job, _ in self._in_pass), *(job for _, job in self._probing)):
            if job.round.began is None:
                job.round.began = self._loop.now
        return ms * self._jitter()

    def _end(self) -> None:
        pass_ms = self._loop.now - self._began
        self.busy_ms += pass_ms
        num_tokens = max((num_drafted for _, _, num_drafted in self._in_pass), default=0)
        if num_tokens and not self._num_prefill:
            self._token_ms += PACE * (pass_ms / num_tokens - self._token_ms)
        for key, job, num_drafted in self._in_pass:
            job.done += num_drafted
            self._advanced(key, job, num_drafted)
        for key, job in self._probing:
            job.is_told = True
            self._advanced(key, job, 0)
        self._in_pass, self._probing = [], []
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            message()
        self._running = False
        self._wake()

    def _advanced(self, key: int, job: Job, num_drafted: int) -> None:
        """Unless it was withdrawn with another row of the pass."""
        if self._jobs.get(key) is not job:
            return
        if job.is_done:
            del self._jobs[key]
        if num_drafted or job.is_done:
            job.round.advance(key, job)

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
        self._num_prefill = 0
        for key, job in self._in_order():
            missing, may_draft = job.missing, bool(job.draft.exits) and job.is_told
            rides = may_draft and missing <= self.rules.max_ride
            chunk = 0 if rides else min(missing, budget)
            if not rides and chunk <= 0:
                continue  # its probe is due, or the budget spent
            budget -= chunk
            self._num_prefill += chunk
            drafts = rides or (may_draft and chunk == missing)
            self._in_pass.append((key, job, self._advance(job, chunk, drafts, rows, positions)))
        return rows, positions

    def _in_order(self) -> list[tuple[int, Job]]:
        """Who is waited for comes first, and only what is of their depth rides along."""
        waiting = [(key, job) for key, job in self._jobs.items() if not job.round.is_ahead]
        drafting = [job for _, job in waiting if job.draft.exits]
        goals = {job.goal for job in drafting}
        left = max((job.num_left for job in drafting), default=self._unasked())
        self._branch_ahead = max(min(self.rules.branch_ahead, left), 1)
        if len(waiting) == len(self._jobs):
            return waiting
        ahead = [(key, job) for key, job in self._jobs.items() if job.round.is_ahead]
        return waiting + [(key, job) for key, job in ahead if not goals or job.goal in goals]

    def _unasked(self) -> int:
        """Tokens of branches where nobody waits: few where their leads are there, for better may soon be asked for."""
        if not self._token_ms or any(isinstance(job, Lead) for job in self._jobs.values()):
            return self.rules.branch_ahead
        return int(self.rules.branch_ms / self._token_ms)

    def _advance(self, job: Job, chunk: int, drafts: bool, rows: Rows, positions: Rows) -> int:
        """Adds its part to the pass; how many tokens it drafts there."""
        settled = job.resident.settled
        goal = job.goal if job.is_told else self._num_exits - 1
        if not drafts:
            self._run(0, goal, settled, settled[goal] + chunk, rows, positions)
            return 0
        most = self._branch_ahead + isinstance(job, Lead) if job.round.is_ahead else self.rules.ahead
        num = min(job.num_left, most)
        for step in range(num):
            exit_ = job.draft.exits[job.done + step]
            self._run(step, exit_, settled, job.resident.base + job.done + step, rows, positions)
        if chunk or isinstance(job, Lead):  # what others read goes to the last exit, wherever the first token left
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
