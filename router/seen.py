"""What rounds add up to until the next decision: sums, taken while a record is at hand and cheap to read."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.plan import Mode
from protocol.record import Origin, RoundRecord, RowRecord
from router.tables import Costs

AHEAD = (Mode.AHEAD, Mode.AHEAD_EARLY_EXIT)
SETTLED = 16  # tokens; a draft that is handed more of a row is catching up


@dataclass(slots=True)
class Drafts:
    """Drafted tokens. tried: up to and with the first refused one. on, on_right: behind which a draft went on, and of
    these the accepted ones; ended, ended_right: behind which one did not, though it was no longer than asked.
    """

    tried: int = 0
    right: int = 0
    on: int = 0
    ended: int = 0
    on_right: int = 0
    ended_right: int = 0

    def add(self, row: RowRecord) -> None:
        drafted, right = row.num_drafted, row.num_right
        ended, whole = drafted < row.length, right == drafted
        self.tried += row.num_tried
        self.right += right
        self.on += drafted - 1
        self.ended += ended
        self.on_right += right - whole
        self.ended_right += ended and whole


@dataclass(slots=True)
class Passes:
    """Passes of a kind. num_tokens, context: sums, by which the profile is asked for their mean."""

    num_rounds: int = 0
    ms: float = 0.0
    num_tokens: int = 0
    context: float = 0.0

    def add(self, record: RoundRecord) -> None:
        self.num_rounds += 1
        self.ms += record.verify_ms
        self.num_tokens += len(record.rows) + record.num_proposed
        self.context += record.context

    def profiled_ms(self, costs: Costs, num_rows: int) -> float:
        """Of the mean pass."""
        return costs.verify_ms(num_rows, self.num_tokens / self.num_rounds, self.context / self.num_rounds)


@dataclass(slots=True)
class Seen:
    """Rounds of one number of rows, one mode and one exit (its number among the drafter's; None: nothing was to be drafted).

    timed: rounds that no prompt rode along with, of which all times are. committed, last: tokens of a row, of all rounds
    and of the last one. fed: that the pool had to run of a row before its draft, at most of any round.
    num_drafts: settled rounds with fresh drafts, or drafted ahead; waited_ms, drafted_ms: of these, measured without the
    queue, and profiled. served, planned: rows that had a proposal, and that should have.
    """

    num_rows: int
    mode: Mode = Mode.SERIAL
    exit: int | None = None
    num_rounds: int = 0
    ms: float = 0.0
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
    drafts: Drafts = field(default_factory=Drafts)
    plain: Passes = field(default_factory=Passes)
    wide: Passes = field(default_factory=Passes)

    def takes(self, record: RoundRecord, costs: Costs) -> bool:
        """Whether a round is of these."""
        return (self.num_rows, self.mode, self.exit) == (len(record.rows), record.plan.mode, exit_of(record, costs))

    def add(self, record: RoundRecord, costs: Costs) -> None:
        fed = 0
        for row in record.rows:
            if row.num_drafted and row.rule == record.plan.depth:
                self.drafts.add(row)
            fed += row.num_fed
        self.num_rounds += 1
        self.ms += record.draft_ms + record.verify_ms + record.rest_ms
        self.last = record.num_committed / self.num_rows
        self.committed += self.last
        self.fed = max(self.fed, fed / self.num_rows)
        if not record.num_prefill_tokens:
            self.timed += 1
            self.rest_ms += record.rest_ms
            (self.wide if record.num_proposed else self.plain).add(record)
            if self.exit is not None and not record.plan.own:
                self._add_draft(record, costs, self.exit)

    def _add_draft(self, record: RoundRecord, costs: Costs, exit_: int) -> None:
        self.queued_ms += record.wait_ms
        if any([row.num_fed > SETTLED for row in record.rows]):
            return
        ahead = self.mode in AHEAD
        lengths = [row.num_drafted if ahead or row.origin is Origin.FRESH else 0 for row in record.rows]
        if ahead or any(lengths):
            self.num_drafts += 1
            self.waited_ms += record.draft_ms - record.wait_ms
            self.drafted_ms += costs.draft_ms(exit_, lengths)
            self.served += sum([row.num_drafted > 0 for row in record.rows])
            self.planned += sum([length > 0 for length in record.plan.lengths])


def exit_of(record: RoundRecord, costs: Costs) -> int | None:
    """The number of the exit that a round was to be drafted at; None without a draft, and for one that costs do not know."""
    depth = record.plan.depth
    if depth is None or len(depth.exits) > 1 or depth.exits[0] not in costs.exits:
        return None
    return costs.exits.index(depth.exits[0]) if any(record.plan.lengths) else None
