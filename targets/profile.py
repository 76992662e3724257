"""What a target's passes cost, measured on synthetic rows through the real forward, pick and step.

Times do not depend on what the tokens are. So rows are given pages and a context length, and no prompt fills them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from model.pages import PageLedger
from model.sweep import MIB, sweeper
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.errors import ConfigError
from protocol.request import GREEDY, GenerateRequest, StopRules
from router.costs import row_points
from router.policy import Fixed
from targets.drafting import Drafting
from targets.model import ForwardRow, TargetModel
from targets.own_client import OwnDraftClient
from targets.scheduler import Scheduler, SchedulerConfig
from targets.sequence import Sequence
from targets.step import Clock, Stepper

TOKENS_PER_ROW = (1, 2, 3, 5, 6, 9)
CONTEXTS = (64, 256, 1024)  # the last one shrinks to what the memory holds
DRAFTER_BYTES = 8 * MIB  # read between two passes
OWN_LENGTHS = (1, 5)  # of drafts of an own drafter
NUM_STEPS, DRAFT_LENGTH = 6, 4  # of the rounds whose overhead is taken


@dataclass(frozen=True, slots=True)
class PassShape:
    """num_tokens new tokens in each row, behind `context` others; logits and picks for the last num_logits."""

    num_rows: int
    num_tokens: int
    context: int
    num_logits: int


@dataclass(frozen=True, slots=True)
class VerifyAxes:
    num_rows: tuple[int, ...]
    tokens_per_row: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def num_positions(self) -> int:
        """Tokens of the longest row."""
        return self.contexts[-1] + self.tokens_per_row[-1]


def verify_axes(max_batch: int, ledger: PageLedger, max_length: int) -> VerifyAxes:
    """A grid whose largest pass fits the ledger's free pages and a sequence of max_length tokens."""
    num_rows = row_points(min(max_batch, ledger.num_free))
    room = min(max_length, ledger.num_free // num_rows[-1] * ledger.page_size)
    tokens = tuple(number for number in TOKENS_PER_ROW if number <= room)
    longest = min(CONTEXTS[-1], room - tokens[-1])
    return VerifyAxes(num_rows, tokens, (*(context for context in CONTEXTS if context < longest), longest))


@contextmanager
def pass_timer(
    model: TargetModel, num_rows: int, num_positions: int, clock: Clock = time.perf_counter
) -> Iterator[Callable[[PassShape], float]]:
    """Times a pass in milliseconds, of at most so many rows and positions each. All pages are given back at the end."""
    names = range(-num_rows, 0)
    vocab_size = model.decoder.config.vocab_size
    sweep = sweeper(DRAFTER_BYTES, model.decoder.device)

    def measure(one: PassShape) -> float:
        tokens = [index % vocab_size for index in range(one.num_tokens)]
        rows = [ForwardRow(name, one.context, tokens, one.num_logits) for name in names[: one.num_rows]]
        first = one.context + one.num_tokens - one.num_logits + 1
        positions = [*range(first, first + one.num_logits)] * one.num_rows
        sweep()
        began = clock()
        model.pick(rows, [GREEDY] * len(positions), positions)
        return 1e3 * (clock() - began)

    with _pages(model, names, num_positions):
        yield measure


@contextmanager
def own_draft_timer(
    model: TargetModel, client: OwnDraftClient, num_rows: int, clock: Clock = time.perf_counter
) -> Iterator[Callable[[int, int], float]]:
    """Times drafts on the model's own KV in milliseconds, of at most so many rows, by rows and length."""
    room = min(CONTEXTS[1], model.max_length, model.ledger.num_free // num_rows * model.ledger.page_size)
    context = room - OWN_LENGTHS[-1] - 1
    names = range(-num_rows, 0)
    sweep = sweeper(DRAFTER_BYTES, model.decoder.device)

    def measure(rows: int, length: int) -> float:
        asked = tuple(DraftRow(name, context, (0,), length, GREEDY) for name in names[:rows])
        sweep()
        began = clock()
        client.draft(DraftRequest("profile", 0, client.exits[0], asked))
        return 1e3 * (clock() - began)

    with _pages(model, names, room):
        yield measure


@contextmanager
def _pages(model: TargetModel, names: Collection[int], num_positions: int) -> Iterator[None]:
    """Sequences with pages for so many positions each. All are given back at the end."""
    for name in names:
        model.ledger.open(name)
    try:
        if num_positions < 1 or not all(model.ledger.reserve(name, num_positions) for name in names):
            raise ConfigError(
                f"the KV memory does not hold {len(names)} rows of {num_positions} positions; raise kv_mb"
            )
        yield
    finally:
        for name in names:
            model.ledger.free(name)


def overhead_ms(model: TargetModel, num_rows: int, clock: Clock = time.perf_counter) -> float:
    """Milliseconds of a round that are neither forward nor pick: plan, the target's side of drafting, commit.

    The median of a few real steps, with drafts that cost nothing and are hardly ever right.
    """
    scheduler = Scheduler(model.ledger, SchedulerConfig(num_rows, prefill_chunk=num_rows))
    drafting = Drafting(_InstantClient(), "profile", model.decoder.config.vocab_size)
    stepper = Stepper(model, Fixed(1, DRAFT_LENGTH), scheduler, drafting, clock=clock)
    request = GenerateRequest("profile", (0,), GREEDY, StopRules(2 + NUM_STEPS * (DRAFT_LENGTH + 1)))
    sequences = [Sequence(name, request, model.max_length) for name in range(-num_rows, 0)]
    for sequence in sequences:
        scheduler.add(sequence)
    try:
        stepper.step()  # the prompts
        records = [stepper.step()[1] for _ in range(NUM_STEPS)]
        return median(record.draft_ms + record.rest_ms for record in records)
    finally:
        for sequence in sequences:
            stepper.remove(sequence)


class _InstantClient:
    """Drafts token 0 everywhere."""

    def open(self, request: DraftRequest) -> None: ...

    def draft(self, request: DraftRequest) -> DraftReply:
        blocks = (_block(row.sequence_id, row.base_length, row.length) for row in request.rows)
        return DraftReply(request.incarnation, request.round_id, tuple(blocks))

    def close(self, sequence_ids: object) -> None: ...


def _block(sequence_id: int, base_length: int, count: int) -> DraftBlock:
    return DraftBlock(sequence_id, base_length, DraftStatus.OK, (0,) * count, (0.5,) * count)
