"""A simulated target that drafts ahead: what targets/mirror.py does on its side, in time.

    draft      the windows that came, those on their way waited for; a fresh draft for rows without one, where that is
               worth the wait (router/misses.py)
    verifying  as a pass begins the replica is told of what is verified, half way of early picks
    observe    which outcome it was; what router/misses.py learns from

A branch is a hit if it is behind the outcome and some of it has come by the time it is looked for, whatever was its
chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from protocol.draft import DraftBlock, DraftStatus
from protocol.errors import ConfigError
from protocol.outcome import RoundOutcome, RowOutcome
from protocol.plan import DepthRule, Plan
from router import misses
from router.misses import Rates, worth_waiting
from router.modes import AHEAD, Mode
from router.pipeline import fan_out
from router.predict import SETTLED
from router.simulate_acceptance import NOTHING, Draft, Profile
from router.simulate_ahead import AheadRound, Choices, Luck, early_picks, guess_of
from router.simulate_drafting import Drafting, Drafts, Take, rule_of
from router.simulate_jobs import RIGHT, Decoding, Flight, Outcome, Window
from router.simulate_pool import Loop, Replica


@dataclass(frozen=True, slots=True)
class MirrorRules:
    """As targets.mirror.MirrorConfig. half: share of a pass after which it has early picks; hint_ms: they take. ahead:
    what the pool makes of a message.
    """

    fan_out: int = 8
    kappa: int = 2
    modes: tuple[Mode, ...] = (Mode.MIRROR,)
    choices: Choices = field(default_factory=Choices)
    half: float = 0.5
    hint_ms: float = 0.0
    ahead: type[AheadRound] = AheadRound

    def __post_init__(self) -> None:
        if self.fan_out < 1 or self.kappa < 0 or not self.modes:
            raise ConfigError(
                f"mirror: give a fan_out of at least 1, a kappa of at least 0, a mode or more; got {self}"
            )


@dataclass(slots=True)
class _Turn:
    """The round on its way. plan: as it was made, not as it is played. windows: by row, at hand or fresh. waited: fresh
    ones were asked for, since `looked`.
    """

    plan: Plan
    windows: list[Window | None]
    num_missed: int
    waited: bool
    looked: float
    wait_ms: float = 0.0
    num_fed: int = 0


class MirrorDrafting(Drafting):
    """Of one target that has a link to its replica. mode: of the round that it drafts for; told by the target."""

    def __init__(
        self,
        loop: Loop,
        replica: Replica,
        profile: Profile,
        deadline_ms: float,
        rules: MirrorRules,
        keys: Iterator[int],
    ) -> None:
        """keys: names of sequences and forks, unique over all targets."""
        super().__init__(loop, replica, profile, False, deadline_ms)
        self.mode = Mode.SERIAL
        self.num_hits = 0  # of the last round
        self.waited_ms: float | None = None  # in it, for fresh drafts
        self._rules = rules
        self._keys = keys
        self._rates = Rates()
        self._flights: dict[int, Flight] = {}
        self._lucks: dict[int, Luck] = {}
        self._turn: _Turn | None = None
        self._look: Callable[[], None] | None = None  # for windows, once branches have come
        self._wanting: list[int] = []
        self._opening: DepthRule | None = None
        self._length = 0  # the longest planned lately

    def open(self, sequences: Sequence[Decoding], rule: DepthRule) -> None:
        super().open(sequences, rule)
        self._opening = rule

    def draft(self, decoding: Sequence[Decoding], plan: Plan, take: Take) -> None:
        if self.mode is Mode.LANES:
            self._flights.clear()
            return super().draft(decoding, plan, take)
        self._length = max(plan.lengths, default=self._length)
        self._wanting = [one.key for one, length in zip(decoding, plan.lengths, strict=True) if length]
        look = self._look = partial(self._resolve, decoding, plan, take)
        patience = misses.patience_ms(self._rates)
        if self._awaits and patience > 0:
            return self._loop.at(self._loop.now + patience, partial(self._end_wait, look))
        return self._end_wait(look)

    def verifying(
        self,
        decoding: Sequence[Decoding],
        lengths: Sequence[int],
        ms: float,
        ending: Sequence[Decoding],
    ) -> float:
        self._flights.clear()
        if self.mode not in AHEAD:
            return 0.0
        flights = [*self._in_flight(decoding, lengths), *self._first_flights(ending)]
        num_rows = len(decoding) + len(ending)
        for flight in flights:
            flight.fan_out = fan_out(num_rows, self._rules.fan_out)
            flight.sequence.sent = flight.base
            self._flights[flight.sequence.key] = flight
        if not flights:
            return 0.0
        round_ = self._rules.ahead(self._replica, self._profile.exits, flights, self._keys, self._came)
        self._send(round_, len(flights), round_.begin)
        number = fan_out(len(decoding), self._rules.kappa) if self.mode is Mode.HINTED else 0
        if not number:
            return 0.0
        for flight in flights:
            flight.hint = self._hint(flight, number)
        at = self._loop.now + self._rules.half * ms + self._rules.hint_ms
        self._loop.at(at, lambda: self._send(round_, len(flights), round_.hint))
        return self._rules.hint_ms

    def observe(self, outcome: RoundOutcome) -> None:
        turn, self._turn = self._turn, None
        windows = turn.windows if turn else ()
        self.num_hits = sum(window is not None and window.source is not None for window in windows)
        self.waited_ms = turn.wait_ms if turn and turn.waited else None
        if turn is None:
            return
        if turn.waited and turn.num_fed <= SETTLED:  # a first draft waits for its context
            self._rates = misses.waited(self._rates, turn.wait_ms)
        elif turn.num_missed and not turn.waited:
            self._rates = misses.skipped(self._rates)
        if not outcome.num_prefill_tokens:
            accepted, num_windows = sum(row.accepted for row in outcome.rows), sum(map(_has_window, outcome.rows))
            self._rates = misses.verified(self._rates, outcome.verify_ms, num_windows, accepted)

    def close(self, sequence: Decoding) -> None:
        super().close(sequence)
        self._flights.pop(sequence.key, None)
        self._lucks.pop(sequence.key, None)

    @property
    def _awaits(self) -> bool:
        """Whether branches of a row that wants one may be on their way, and none of it has come."""
        flights = (self._flights.get(key) for key in self._wanting)
        return any(flight is not None and not flight.has_come for flight in flights)

    def _end_wait(self, look: Callable[[], None]) -> None:
        if self._look is look:
            self._look = None
            self._rates = misses.awaited(self._rates, not self._awaits)
            look()

    def _resolve(self, decoding: Sequence[Decoding], plan: Plan, take: Take) -> None:
        found = [
            self._found(sequence, length) if length else None
            for sequence, length in zip(decoding, plan.lengths, strict=True)
        ]
        missing = tuple(0 if window else length for window, length in zip(found, plan.lengths, strict=True))
        num_missed, num_hits = sum(map(bool, missing)), sum(window is not None for window in found)
        waits = num_missed > 0 and worth_waiting(self._rates, len(decoding), num_hits, num_missed)
        asked = replace(plan, lengths=missing if waits else (0,) * len(missing))
        self._turn = _Turn(plan, found, num_missed, waits, self._loop.now)
        super().draft(decoding, asked, partial(self._drafted, decoding, plan, num_hits, take))

    def _found(self, sequence: Decoding, length: int) -> Window | None:
        """The window behind what was committed; all others are dropped."""
        flight = self._flights.pop(sequence.key, None)
        if flight is None:
            return None
        came = flight.came.get((flight.num_right, RIGHT))
        if came is None or came.source is None:
            self.num_missed += 1
            return None
        self.hits[came.source] += 1
        return came.first(length)

    def _drafted(self, decoding: Sequence[Decoding], plan: Plan, num_hits: int, take: Take, drafts: Drafts) -> None:
        turn, exits = self._turn, self._profile.exits
        assert turn is not None, "a round ends once"
        turn.num_fed, turn.wait_ms = max(drafts.fed, default=0), self._loop.now - turn.looked
        for row, (sequence, window, block) in enumerate(zip(decoding, turn.windows, drafts.blocks, strict=True)):
            if window is not None:
                drafts.blocks[row] = _block(sequence, window.draft, exits, block)
                drafts.runs[row] = window.draft.run
            elif block is not None and block.exits:
                numbers = [exits.index(exit_) for exit_ in block.exits]
                draft = Draft(numbers, list(block.confidences), drafts.runs[row])
                turn.windows[row] = Window(draft, rule_of(plan, row), plan.lengths[row], 0, True)
        drafts.ahead = num_hits > 0
        drafts.answered = drafts.answered or not turn.waited
        drafts.plan = _played(plan, turn.windows)
        take(drafts)

    def _in_flight(self, decoding: Sequence[Decoding], lengths: Sequence[int]) -> Iterator[Flight]:
        turn = self._turn
        if turn is None:
            return
        for row, (sequence, window) in enumerate(zip(decoding, turn.windows, strict=True)):
            length = min(turn.plan.lengths[row], sequence.remaining - 2)
            if length > 0:
                floor = 0.0 if turn.plan.own and turn.plan.own[row] else turn.plan.floor
                at_hand = window or Window(NOTHING, rule_of(turn.plan, row), 0, 0, False)
                yield self._flight(sequence, at_hand, lengths[row], length, floor)

    def _first_flights(self, ending: Sequence[Decoding]) -> Iterator[Flight]:
        """Behind prompts that end with this pass, as long as others were planned lately."""
        for sequence in ending:
            length = min(self._length, sequence.remaining - 2)
            if length > 0 and self._opening is not None:
                yield self._flight(sequence, Window(NOTHING, self._opening, 0, 0, False), 0, length, 0.0)

    def _flight(self, sequence: Decoding, window: Window, num_verified: int, length: int, floor: float) -> Flight:
        table = self._profile.at(sequence.generated, self._loop.now)
        start, run, offset = sequence.generated, window.draft.run, window.offset + num_verified
        lead = sequence.text.draft(table.later(offset), window.rule, start + num_verified, 1, 0.0)
        behind = start + num_verified + 1
        most = min(length, sequence.max_tokens - behind)
        drafts = sequence.text.draft(table.later(offset + 1), window.rule, behind, most, 0.0)
        sure = [*window.draft.confidences[:num_verified], lead.confidences[0]]
        right = [at < run for at in range(num_verified)] + [run >= num_verified and lead.run > 0]
        luck = self._luck(sequence)
        guesses = [
            guess_of(self._rules.choices, luck, start + at, *both)
            for at, both in enumerate(zip(sure, right, strict=True))
        ]
        flight = Flight(
            sequence, sequence.num_tokens, start, window, num_verified, length, floor, 0, table, guesses, lead, drafts
        )
        rest = window.behind(num_verified)
        if run > num_verified and rest.draft.exits:
            flight.take((num_verified, RIGHT), rest)
        return flight

    def _hint(self, flight: Flight, number: int) -> tuple[tuple[int, ...], ...]:
        choices, luck = self._rules.choices, self._luck(flight.sequence)
        return tuple(
            early_picks(choices, luck, flight.start + at, guess.token == RIGHT, number)
            for at, guess in enumerate(flight.guesses)
        )

    def _luck(self, sequence: Decoding) -> Luck:
        if sequence.key not in self._lucks:
            self._lucks[sequence.key] = Luck(sequence.max_tokens, sequence.seed)
        return self._lucks[sequence.key]

    def _came(self, flight: Flight, outcome: Outcome, window: Window) -> None:
        self._loop.at(self._loop.now + self._link_ms(1), partial(self._take, flight, outcome, window))

    def _take(self, flight: Flight, outcome: Outcome, window: Window) -> None:
        flight.take(outcome, window)
        flight.has_come = True
        if self._look is not None and not self._awaits:
            self._end_wait(self._look)


def _block(sequence: Decoding, draft: Draft, exits: Sequence[int], asked: DraftBlock | None) -> DraftBlock:
    """asked: what the pool said besides, a probe maybe."""
    return DraftBlock(
        sequence.key,
        sequence.num_tokens,
        DraftStatus.OK,
        (RIGHT,) * len(draft.exits),
        tuple([exits[number] for number in draft.exits]),
        tuple(draft.confidences),
        asked.probe if asked else None,
    )


def _played(plan: Plan, windows: Sequence[Window | None]) -> Plan:
    """With what the windows were asked for as: a policy must not take one plan's drafts for another's."""
    lengths = [min(own, window.length) if window else own for own, window in zip(plan.lengths, windows, strict=True)]
    rules = [window.rule if window else rule_of(plan, row) for row, window in enumerate(windows)]
    same = all(rule == plan.depth for rule in rules)
    return replace(plan, lengths=tuple(lengths), own=plan.own if same else tuple(rules))


def _has_window(row: RowOutcome) -> bool:
    return row.num_verified > 0
