"""What the simulated replica drafts ahead against what a real one does, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cells import PAGE
from drafters.limits import PoolLimits
from drafters.nested import load_nested
from drafters.outcomes import Guess
from drafters.picks import PassRow
from drafters.worker import DraftWorker
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, BranchSource
from protocol.draft import DraftReply, DraftRequest, DraftRow
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from router.pipeline import Source
from router.simulate_acceptance import Draft, Text, acceptance_table
from router.simulate_ahead import SECOND, AheadRound
from router.simulate_costs import PoolTables
from router.simulate_jobs import RIGHT, WRONG, Decoding, Flight, Outcome, Window
from router.simulate_pool import Device, Loop, PoolRules, Replica
from tests.deployments.checkpoints import make_family
from tests.router.curves import curves

EXITS, RULE = (2, 4, 6), DepthRule((2,))
TEXT = (3, 7, 5, 9, 11, 2, 8, 4, 6, 10)
TABLE = acceptance_table(dict.fromkeys(EXITS, (1.0,)))
NAME = -1  # of a sequence of the tests' own
GREEDY = SamplingParams(0.0)
LONG = 1e6  # ms that passes may take: they are as long as tokens say, on any machine
MANY = 32  # branches: all there are


@dataclass(frozen=True, slots=True)
class Course:
    """A window of so many tokens, branches of such a length; `num_passes` later the next message, whose window is what
    came behind the outcome by then, or the first `taken` tokens of it; `again`: how long
    branches are wanted then.
    """

    window: int
    length: int
    branch_ahead: int
    num_passes: int
    accepted: int
    taken: int
    again: int

    @property
    def is_full(self) -> bool:
        return self.accepted == self.window


@dataclass(slots=True)
class Pass:
    """told: where the window is left, whether for the drafter's own token, and how many tokens there are behind."""

    num_rows: int
    num_drafted: int
    told: list[tuple[int, bool, int]] = field(default_factory=list)


class RealPool:
    def __init__(self, family: Path, branch_ahead: int) -> None:
        self._drafter = load_nested(family / "drafter", dtype=torch.float32, num_positions=64 * PAGE, page_size=PAGE)
        self.worker = DraftWorker(self._drafter, PoolLimits(branch_ahead=branch_ahead, branch_ms=LONG))
        self.rule, self.text, self.sent = DepthRule((self._drafter.exits[0],)), [*TEXT], 0
        self.replies: list[BranchReply] = []
        self.latest: dict[tuple[int, bool], tuple[int, ...]] = {}

    def context(self, length: int = 0) -> DraftRow:
        start, self.sent = self.sent, len(self.text)
        return DraftRow(1, start, tuple(self.text[start:]), length, GREEDY)

    def draft(self, length: int) -> tuple[int, ...]:
        answers: list[DraftReply] = []
        self.worker.submit(DraftRequest("one", 0, self.rule, (self.context(length),)), answers.append)
        self.run(100)
        return answers[0].blocks[0].tokens

    def ahead(self, window: Sequence[int], length: int) -> None:
        row = AheadRow(self.context(), tuple(window), length, MANY)
        self.worker.ahead(AheadRequest("one", 1, self.rule, (row,)), self.replies.append)

    def run(self, num_passes: int) -> list[Pass]:
        passes = []
        while len(passes) < num_passes and (stats := self.worker.step()) is not None:
            branches = [branch for reply in self.replies for branch in reply.branches]
            self.replies.clear()
            passes.append(Pass(stats.num_rows, sum(stats.num_exited), sorted(map(self._told, branches))))
        return passes

    def second_choice(self, tokens: Sequence[int]) -> int:
        """Of the drafter behind these."""
        drafter = self._drafter
        drafter.open(NAME)
        assert drafter.ledger.reserve(NAME, len(tokens))
        row = PassRow(NAME, list(tokens), len(tokens), len(tokens) - 1, self.rule, GREEDY)
        (pick,) = drafter.run([row])[0]
        drafter.free(NAME)
        return pick.runner_up

    def _told(self, branch: Branch) -> tuple[int, bool, int]:
        accepted, is_full = branch.base_length - len(self.text) - 1, branch.source is BranchSource.FULL
        self.latest[accepted, is_full] = branch.tokens
        return accepted, is_full, len(branch.tokens)


def real(family: Path, course: Course) -> tuple[list[Pass], list[Pass]]:
    pool = RealPool(family, course.branch_ahead)
    guesses, right = pool.draft(course.window + 1), course.accepted
    pool.ahead(guesses[: course.window], course.length)
    before = pool.run(course.num_passes)
    second = pool.second_choice([*TEXT, *guesses[:right]])
    pool.text += [*guesses[:right], guesses[right] if course.is_full else second]
    pool.ahead(pool.latest[right, course.is_full][: course.taken], course.again)
    return before, pool.run(100)


class Watched(Replica):
    """After so many passes a message comes."""

    def __init__(self, loop: Loop, branch_ahead: int, num_passes: int) -> None:
        priced = PoolTables(curves(layer=1.0, row=0.0), EXITS)
        super().__init__(
            loop, Device(loop), priced, len(EXITS), PoolRules(branch_ahead=branch_ahead, branch_ms=LONG), lambda: 1.0
        )
        self.passes: list[Pass] = []
        self.num_before = num_passes
        self.message: Callable[[], None] = lambda: None

    def _begin(self) -> float:
        ms = super()._begin()
        self.passes.append(Pass(len(self._in_pass), sum(number for _, _, number in self._in_pass)))
        if len(self.passes) == self.num_before:
            self.tell(self.message)
        return ms


def simulated(course: Course) -> tuple[list[Pass], list[Pass]]:
    loop, keys = Loop(), count(1)
    pool = Watched(loop, course.branch_ahead, course.num_passes)
    base = len(TEXT)
    sequence = Decoding(0, base - 1, 100, Text(100, np.random.default_rng(0)), seed=0)
    sequence.generated = 1
    resident = sequence.held(len(EXITS), base)
    resident.settled = [base + course.window] * len(EXITS)
    first = _flight(sequence, course.length, course.window, course.accepted)

    def arrived(flight: Flight, outcome: Outcome, window: Window) -> None:
        is_full = window.source is Source.FULL
        pool.passes[-1].told.append((outcome[0], is_full, len(window.draft.exits)))
        flight.take(outcome, window)

    def next_message() -> None:
        came = first.came[course.accepted, RIGHT].first(course.taken)
        sequence.generated += course.accepted + 1
        second = _flight(sequence, course.again, len(came.draft.exits), len(came.draft.exits), came)
        AheadRound(pool, EXITS, [second], keys, arrived).begin()

    pool.message = next_message
    AheadRound(pool, EXITS, [first], keys, arrived).begin()
    loop.run()
    made = [Pass(one.num_rows, one.num_drafted, sorted(one.told)) for one in pool.passes]
    return made[: course.num_passes], made[course.num_passes :]


def _flight(sequence: Decoding, length: int, window: int, num_right: int, came: Window | None = None) -> Flight:
    right = [at < num_right for at in range(window)] + [num_right == window]
    guesses = [Guess(RIGHT if own else WRONG, 0.6, SECOND if own else RIGHT) for own in right]
    fresh = Window(Draft([0] * window, [0.6] * window, num_right), RULE, window, 0, in_place=True)
    behind = Draft([0] * length, [1.0] * length, length)
    return Flight(
        sequence,
        sequence.num_tokens,
        sequence.generated,
        came or fresh,
        window,
        length,
        0.0,
        MANY,
        TABLE,
        guesses,
        Draft([0], [0.6], 1),
        behind,
    )


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


COURSES = [
    Course(window, length, branch_ahead, num_passes, accepted, taken, min(again, length))
    for window, length, branch_ahead, num_passes, accepted in (
        (3, 5, 2, 1, 3),
        (3, 5, 2, 2, 3),
        (3, 5, 2, 2, 1),
        (3, 3, 4, 2, 3),
        (2, 6, 1, 3, 0),
        (2, 6, 1, 4, 2),
        (4, 4, 4, 1, 4),
        (4, 6, 4, 1, 2),
        (1, 6, 4, 2, 1),
    )
    for taken, again in ((1, 1), (1, 8), (8, 8))
]


@pytest.mark.parametrize("course", COURSES, ids=str)
def test_a_simulated_pool_runs_the_passes_of_a_real_one_and_hands_over_the_same_parts(
    family: Path, course: Course
) -> None:
    assert simulated(course) == real(family, course)
