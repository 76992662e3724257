"""What a simulated replica works on: sequences that it holds, rows to be drafted, rounds that rows belong to, and the
windows in verification that it drafts ahead for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from drafters.outcomes import Guess
from protocol.plan import DepthRule, SequenceView
from router.pipeline import Source
from router.simulate_acceptance import NOTHING, AcceptanceTable, Draft, Fate

RIGHT, WRONG = 0, 1  # in place of token ids: the target's own token, and any other that the drafter may pick

Call = Callable[[], None]
Outcome = tuple[int, int]  # how much of the window is accepted, and the token behind that


class Resident:
    """What a replica holds of one sequence. settled: positions that have left each exit. base: tokens before what it
    drafts next; right: those that are the target's. probed: the position from which on no probe has told.
    """

    __slots__ = ("base", "probed", "right", "settled")

    def __init__(self, num_exits: int, base: int) -> None:
        self.settled = [0] * num_exits
        self.base = base
        self.probed = base
        self.right: float = math.inf

    def take_over(self, base: int, draft: Draft | None, num_held: int = 0) -> None:
        """The sequence has `base` committed tokens now, of which the last one is not settled; `draft` comes next.

        num_held: tokens of it that were drafted here before, behind these very tokens.
        """
        kept = base + num_held - 1 if num_held else min(self.right, base - 1)
        self.settled = [int(min(each, kept)) for each in self.settled]
        self.base, self.right = base, base + draft.run if draft else base

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
    def num_left(self) -> int:
        return len(self.draft.exits) - self.done

    @property
    def is_done(self) -> bool:
        if not self.draft.exits and self.told is None:
            return self.missing <= 0  # it only hands over context
        return self.is_told and self.done >= len(self.draft.exits)


class Lead(Job):
    """The token behind a window in verification, and as much of what goes on from there as one pass drafts."""

    __slots__ = ()


class Decoding:
    """One admitted sequence. sent: committed tokens that the pool was handed. resident: what the pool holds of it.
    ahead: what the pool drafts ahead for it.
    """

    __slots__ = (
        "ahead",
        "computed",
        "first_ms",
        "generated",
        "key",
        "known",
        "max_tokens",
        "prompt_tokens",
        "resident",
        "seed",
        "sent",
        "text",
    )

    def __init__(self, key: int, prompt_tokens: int, max_tokens: int, text: Fate, seed: int) -> None:
        """key: unique over all targets."""
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.text = text
        self.seed = seed
        self.computed = 0
        self.generated = 0
        self.sent = 0
        self.known = False
        self.first_ms = 0.0
        self.resident: Resident | None = None
        self.ahead: Flight | None = None

    def held(self, num_exits: int, base: int) -> Resident:
        """base: tokens, should the pool hold nothing yet."""
        if self.resident is None:
            self.resident = Resident(num_exits, base)
        return self.resident

    def end_ahead(self, close: Callable[[int], None]) -> Branch | None:
        """Nothing more is drafted ahead; the branch behind what was committed, if one was begun."""
        flight, self.ahead = self.ahead, None
        if flight is None:
            return None
        for branch in flight.begun.values():
            close(branch.key)
        return flight.begun.get((flight.num_right, RIGHT))

    @property
    def remaining(self) -> int:
        return self.max_tokens - self.generated

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.generated

    def view(self) -> SequenceView:
        return SequenceView(self.num_tokens, self.remaining, self.key, self.num_tokens - self.sent)


class Round:
    """Times in ms; began: its first pass. answered: called once, when every row is. is_ahead: nobody waits yet."""

    __slots__ = ("_answered", "began", "finished", "num_missing", "submitted")
    is_ahead = False

    def __init__(self, answered: Call | None) -> None:
        """answered None: contexts are handed over and nobody waits."""
        self._answered = answered
        self.submitted: float | None = None
        self.began: float | None = None
        self.num_missing = 0
        self.finished: set[int] = set()

    @property
    def is_awaited(self) -> bool:
        return self._answered is not None

    @property
    def wait_ms(self) -> float:
        return 0.0 if self.began is None or self.submitted is None else self.began - self.submitted

    def arrive(self, now: float) -> None:
        """It waits from now on, unless it has before."""
        if self.submitted is None:
            self.submitted = now

    def advance(self, key: int, job: Job) -> None:
        """A pass has done some of the row's job."""
        if job.is_done:
            self.finish(key)

    def finish(self, key: int) -> None:
        self.finished.add(key)
        self.num_missing -= 1
        if self._answered is not None and self.num_missing == 0:
            self._answered()

    def give_up(self) -> None:
        """Nobody waits for the rest."""
        self._answered = None


@dataclass(frozen=True, slots=True)
class Window:
    """length: as long as it was asked for. offset: how many drafted tokens lie between it and the last one that its
    target picked. in_place: it was drafted in the sequence itself, not in a fork.
    """

    draft: Draft
    rule: DepthRule
    length: int
    offset: int
    in_place: bool
    source: Source | None = None  # None: a fresh draft

    def first(self, length: int) -> Window:
        return replace(self, draft=self.draft.first(length))

    def part(self, length: int) -> Window:
        """What there is of it; unless that is all it counts as asked for at this length, for nothing stopped there."""
        whole = length >= len(self.draft.exits)
        return self if whole else replace(self.first(length), length=length)

    def behind(self, length: int) -> Window:
        """What is left when the first `length` tokens are verified and the target's next is the one behind them."""
        cut = length + 1
        draft = Draft(self.draft.exits[cut:], self.draft.confidences[cut:], max(self.draft.run - cut, 0))
        return Window(draft, self.rule, max(self.length - cut, 0), self.offset + cut, self.in_place, Source.REST)


@dataclass(slots=True)
class Branch:
    """key: its name in the replica, that of the sequence where it goes on in place."""

    key: int
    window: Window
    job: Job


@dataclass(slots=True)
class Flight:
    """A sequence's window in verification. base: committed tokens; start: of them those of the output.

    length, floor, fan_out: of branches. lead, behind: the drafter's next token, and what it drafts behind it without a
    floor. guesses, hint: as they will be known to the pool, early: as they are. held: tokens of the branch that the
    window came from, as far as the pool drafted it. num_behind: that were drafted with the lead; None: it is not there.

    came: windows that the target has, by the outcome that they are behind; has_come: the pool has sent one.
    """

    sequence: Decoding
    base: int
    start: int
    window: Window
    num_verified: int
    length: int
    floor: float
    fan_out: int
    table: AcceptanceTable
    guesses: list[Guess] = field(default_factory=list)
    lead: Draft = NOTHING
    behind: Draft = NOTHING
    hint: tuple[tuple[int, ...], ...] = ()
    early: tuple[tuple[int, ...], ...] = ()
    held: int = 0
    num_behind: int | None = None
    begun: dict[Outcome, Branch] = field(default_factory=dict)
    came: dict[Outcome, Window] = field(default_factory=dict)
    has_come: bool = False

    @property
    def num_right(self) -> int:
        """Of the window's verified tokens; nobody knows before they are verified."""
        return min(self.window.draft.run, self.num_verified)

    @property
    def num_before(self) -> int:
        """Tokens behind the lead that were drafted in an earlier round."""
        return max(self.held - self.num_verified - 1, 0)

    def take(self, outcome: Outcome, window: Window) -> None:
        """Of two behind one outcome it keeps the longer."""
        known = self.came.get(outcome)
        if known is None or len(window.draft.exits) > len(known.draft.exits):
            self.came[outcome] = window
