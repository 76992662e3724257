"""Sums over the rounds since the last decision. They are added up while a record is new, and so cheap to read."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.plan import Mode
from protocol.record import Origin, RoundRecord
from router.tables import Costs

SETTLED = 16  # tokens; a draft that is handed more of a row is catching up


@dataclass(slots=True)
class Passes:
    """Passes of one kind. num_tokens, context: sums; their means are looked up in the profile."""

    num_rounds: int = 0
    ms: float = 0.0
    num_tokens: int = 0
    context: float = 0.0

    def profiled_ms(self, costs: Costs, num_rows: int) -> float:
        """Of all of them."""
        mean_tokens, mean_context = self.num_tokens / self.num_rounds, self.context / self.num_rounds
        return self.num_rounds * costs.verify_ms(num_rows, mean_tokens, mean_context)


@dataclass(slots=True)
class Seen:
    """Rounds of one number of rows, in one mode, at one exit (its number among the drafter's; None: none was asked).

    busy: the round before drafted ahead, so the pool is still drafting its branches.

    tried: drafted tokens up to the first refused one, that one included. right: the accepted ones.
    on: drafted tokens behind which a draft went on. ended: those behind which it stopped before its planned length.
    on_right, ended_right: the accepted ones of these.
    committed, last: tokens per row, of all rounds and of the last one. fed: the most tokens per row that the pool ran
    before a draft. timed: rounds without a prompt in their pass; all times are of these.
    num_drafts: rounds whose drafts neither waited for branches nor caught up with a context. waited_ms, drafted_ms:
    their time as measured, without the queue, and as profiled. served, planned: of rounds ahead, rows that had a
    proposal, and those that should have had one; without rows that caught up, which go without in any mode.
    """

    num_rows: int
    mode: Mode = Mode.IN_TURN
    exit: int | None = None
    busy: bool = False
    num_rounds: int = 0
    tried: int = 0
    right: int = 0
    on: int = 0
    ended: int = 0
    on_right: int = 0
    ended_right: int = 0
    committed: float = 0.0
    last: float = 0.0
    fed: float = 0.0
    timed: int = 0
    rest_ms: float = 0.0
    queued_ms: float = 0.0
    num_drafts: int = 0
    waited_ms: float = 0.0
    drafted_ms: float = 0.0
    served: int = 0
    planned: int = 0
    plain: Passes = field(default_factory=Passes)
    wide: Passes = field(default_factory=Passes)

    def takes(self, record: RoundRecord, costs: Costs) -> bool:
        """Whether a round is of these."""
        plan = record.plan
        return self.num_rows == len(record.rows) and self.mode is plan.mode and self.exit == exit_of(record, costs)

    def add(self, record: RoundRecord, costs: Costs) -> None:
        self.num_rounds += 1
        self.last = record.num_committed / self.num_rows
        self.committed += self.last
        if self.exit is not None:
            self._add_tokens(record)
        if not record.num_prefill_tokens:
            self._add_times(record)
            if self.exit is not None and not record.plan.own:
                self._add_drafts(record, costs, self.exit)

    def _add_tokens(self, record: RoundRecord) -> None:
        depth, num_fed = record.plan.depth, 0
        for row in record.rows:
            num_fed += row.num_fed
            drafted = row.num_drafted
            if drafted and row.depth == depth:
                right, ended = row.num_right, drafted < row.length
                whole = right == drafted
                self.tried += drafted if whole else right + 1
                self.right += right
                self.on += drafted - 1
                self.ended += ended
                self.on_right += right - whole
                self.ended_right += ended and whole
        self.fed = max(self.fed, num_fed / self.num_rows)

    def _add_times(self, record: RoundRecord) -> None:
        num_proposed = record.num_proposed
        passes = self.wide if num_proposed else self.plain
        passes.num_rounds += 1
        passes.ms += record.verify_ms
        passes.num_tokens += self.num_rows + num_proposed
        passes.context += record.context
        self.timed += 1
        self.rest_ms += record.rest_ms

    def _add_drafts(self, record: RoundRecord, costs: Costs, exit_: int) -> None:
        self.queued_ms += record.wait_ms
        if self.busy and self.num_rounds == 1:
            return
        ahead = self.mode is Mode.AHEAD
        if ahead:
            self._add_shares(record)
        if max([row.num_fed for row in record.rows]) > SETTLED:
            return
        lengths = [row.num_drafted if ahead or row.origin is Origin.FRESH else 0 for row in record.rows]
        if ahead or any(lengths):
            self.num_drafts += 1
            self.waited_ms += record.draft_ms - record.wait_ms
            self.drafted_ms += costs.draft_ms(exit_, lengths)

    def _add_shares(self, record: RoundRecord) -> None:
        for row, length in zip(record.rows, record.plan.lengths, strict=True):
            if length and row.num_fed <= SETTLED:
                self.planned += 1
                self.served += row.num_drafted > 0


def exit_of(record: RoundRecord, costs: Costs) -> int | None:
    """The number of the exit that a round was to be drafted at; None without a draft, and for one without costs."""
    depth = record.plan.depth
    return costs.exits.index(depth) if depth in costs.exits and any(record.plan.lengths) else None
