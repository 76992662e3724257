"""Stand-in: a pool of the oracle drafter that drafts ahead, on a device of its own that takes its time for a token.

    ahead     one step for the lead, then `length` steps for all branches in one batch; they come at the end
    draft     `length` steps, less those that a branch behind the same tokens has had already; goes first
    message   taken between two steps, never within one; ends what was drafted ahead for its sequence

Which outcomes get a branch is what drafters/outcomes.py says of the oracle's first and second choices, as in the real
pool; the target's early picks are not heeded, so how many outcomes are foreseen is a matter of acceptance and
runner_up (bench/oracle.py) alone. The device sleeps, so that cores are free; context costs it nothing.

For measurements only: results carry its label, and nothing that is served imports it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from bench.oracle import OracleDrafter
from bench.slowed import Device
from drafters.outcomes import Candidate, candidates
from protocol.branch import AheadRequest, AheadRow, Branch, ExitHint, prefix_hash
from protocol.draft import DraftReply, DraftRequest, DraftStatus
from protocol.plan import DepthRule

Path = tuple[int, ...]  # tokens from a window's start up to a branch


@dataclass(slots=True)
class _Ahead:
    """One row. num_left: steps to go, the lead's included."""

    round_id: int
    row: AheadRow
    depth: DepthRule
    outcomes: dict[Path, Candidate] = field(repr=False)
    num_left: int

    @property
    def num_drafted(self) -> int:
        """Tokens that each branch has by now."""
        return max(0, self.row.length - self.num_left)


@dataclass(slots=True)
class _Waiting:
    """A draft that somebody waits for."""

    request: DraftRequest
    reply: DraftReply | None = None
    num_left: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class OraclePool:
    """A protocol.branch.MirrorClient of one target; a context manager, whose thread is the device."""

    def __init__(self, oracle: OracleDrafter, device: Device, token_ms: float) -> None:
        self.num_outcomes = self.num_foreseen = 0
        self._oracle, self._device, self._token_ms = oracle, device, token_ms
        self._inbox: deque[Callable[[], None]] = deque()
        self._branches: list[Branch] = []
        self._changed = threading.Condition()  # guards the inbox, the branches and _stopping
        self._stopping = False
        self._ahead: dict[int, _Ahead] = {}
        self._waiting: list[_Waiting] = []
        self._asked: _Waiting | None = None
        self._thread = threading.Thread(target=self._loop, name="oracle", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def label(self) -> str:
        """Stands in every result."""
        return f"{self._oracle.label}, on a {self._device.label}"

    def open(self, request: DraftRequest) -> None:
        self._tell(lambda: self._oracle.open(request))

    def draft(self, request: DraftRequest) -> DraftReply | None:
        self.ask(request)
        return self.answer()

    def ask(self, request: DraftRequest) -> None:
        waiting = _Waiting(request)
        self._asked = waiting
        self._tell(lambda: self._take_draft(waiting))

    def answer(self) -> DraftReply | None:
        waiting, self._asked = self._asked, None
        if waiting is None:
            return None
        while not waiting.done.wait(1.0):
            if not self._thread.is_alive():
                raise RuntimeError("the oracle's thread has died; what it died of is above")
        return waiting.reply

    def close(self, sequence_ids: Sequence[int]) -> None:
        self._tell(lambda: self._take_close(tuple(sequence_ids)))

    def ahead(self, request: AheadRequest) -> None:
        self._tell(lambda: self._take_ahead(request))

    def hint(self, hint: ExitHint) -> None:
        """Not heeded: what it foresees is to be what it was told."""

    def branches(self, timeout_s: float = 0.0) -> Sequence[Branch]:
        with self._changed:
            self._changed.wait_for(lambda: self._branches, timeout_s)
            taken, self._branches = self._branches, []
        return taken

    def _tell(self, message: Callable[[], None]) -> None:
        with self._changed:
            self._inbox.append(message)
            self._changed.notify_all()

    def _loop(self) -> None:
        """A step begins where the last one should have ended: a device has no thread that wakes up late."""
        ended: float | None = None
        while not self._stopping:
            self._read()
            if self._has_work:
                began = self._device.clock() if ended is None else ended
                self._device.finish(began, self._token_ms)
                self._step()
                ended = began + self._token_ms / 1e3
            if not self._has_work:
                ended = None

    def _read(self) -> None:
        """All messages; waits for the first where there is nothing else to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._has_work or self._stopping)
            messages, self._inbox = self._inbox, deque()
        for message in messages:
            message()

    @property
    def _has_work(self) -> bool:
        return bool(self._waiting or any(ahead.num_left for ahead in self._ahead.values()))

    def _step(self) -> None:
        """One token of each draft that is waited for; of each branch where there is none."""
        for waiting in self._waiting:
            waiting.num_left -= 1
        if self._waiting:
            self._answer()
            return
        rolling = [ahead for ahead in self._ahead.values() if ahead.num_left]
        for ahead in rolling:
            ahead.num_left -= 1
        made = [branch for ahead in rolling if not ahead.num_left for branch in self._rolled(ahead)]
        with self._changed:
            self._branches += made
            self._changed.notify_all()

    def _answer(self) -> None:
        for waiting in [one for one in self._waiting if one.num_left <= 0]:
            self._waiting.remove(waiting)
            waiting.done.set()

    def _take_draft(self, waiting: _Waiting) -> None:
        waiting.reply = self._oracle.draft(waiting.request)
        had = [self._resolved(row.sequence_id) for row in waiting.request.rows]
        lengths = (len(block.tokens) for block in waiting.reply.blocks)
        waiting.num_left = max((length - num for length, num in zip(lengths, had, strict=True)), default=0)
        self._waiting.append(waiting)
        self._answer()

    def _take_close(self, sequence_ids: Sequence[int]) -> None:
        self._oracle.close(sequence_ids)
        for sequence_id in sequence_ids:
            self._ahead.pop(sequence_id, None)

    def _take_ahead(self, request: AheadRequest) -> None:
        contexts = DraftRequest(
            request.incarnation, request.round_id, request.depth, tuple(row.context for row in request.rows)
        )
        for row, block in zip(request.rows, self._oracle.draft(contexts).blocks, strict=True):
            self._resolved(row.context.sequence_id)
            depth = row.context.depth or request.depth
            outcomes = self._outcomes(row, depth) if block.status is DraftStatus.OK else {}
            if outcomes:
                self._ahead[row.context.sequence_id] = _Ahead(request.round_id, row, depth, outcomes, row.length + 1)

    def _outcomes(self, row: AheadRow, depth: DepthRule) -> dict[Path, Candidate]:
        """Those that get a branch. None where the text ends within the window or is not known."""
        context, num_guesses = row.context, len(row.proposal) + 1
        guesses = self._oracle.guesses(context.sequence_id, context.base_length, num_guesses, depth)
        if len(guesses) < num_guesses:
            return {}
        best = candidates(guesses)[: row.fan_out]
        return {(*row.proposal[: one.accepted], one.token): one for one in best}

    def _resolved(self, sequence_id: int) -> int:
        """Ends what was drafted ahead; how many tokens the branch behind the committed tokens has."""
        ahead = self._ahead.pop(sequence_id, None)
        if ahead is None:
            return 0
        path = tuple(self._oracle.tokens(sequence_id)[ahead.row.context.base_length :])
        is_foreseen = path in ahead.outcomes
        self.num_outcomes += 1
        self.num_foreseen += is_foreseen
        return ahead.num_drafted if is_foreseen else 0

    def _rolled(self, ahead: _Ahead) -> list[Branch]:
        """All branches of the row; what was drafted stays known until the sequence's next message."""
        row, made = ahead.row, []
        sequence_id, base = row.context.sequence_id, row.context.base_length
        before = prefix_hash(self._oracle.tokens(sequence_id)[:base])
        for path, candidate in ahead.outcomes.items():
            start = base + len(path)
            picks = self._oracle.guesses(sequence_id, start, row.length, ahead.depth)
            made.append(
                Branch(
                    sequence_id,
                    start,
                    prefix_hash(path, before),
                    candidate.source,
                    tuple(pick.token for pick in picks),
                    ahead.depth.exits[-1:] * len(picks),
                    tuple(pick.confidence for pick in picks),
                    round_id=ahead.round_id,
                )
            )
        return made
