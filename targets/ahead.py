"""Between messages and windows: what a round that drafts ahead says to the pool, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from protocol.branch import AheadRequest, AheadRow, ExitHint, HintRow
from protocol.draft import DraftBlock, DraftStatus
from protocol.plan import DepthRule, Plan
from router.pipeline import Order, Window
from targets.scheduler import Schedule
from targets.sequence import Sequence as Decoding
from targets.step import Pass


def fresh_window(plan: Plan, index: int, block: DraftBlock | None) -> Window | None:
    """A fresh draft as a window; None where nothing was drafted."""
    rule = rule_of(plan, index)
    if block is None or rule is None or not block.tokens:
        return None
    order = Order(rule, plan.lengths[index])
    return Window(block.base_length, block.tokens, block.exits, block.confidences, order)


def as_block(sequence_id: int, window: Window) -> DraftBlock:
    """A window that was at hand as a draft."""
    return DraftBlock(
        sequence_id,
        window.base_length,
        DraftStatus.OK,
        window.tokens,
        window.exits,
        window.confidences,
    )


def as_played(plan: Plan, windows: Sequence[Window | None]) -> Plan:
    """The plan, with what the windows were ordered as: a policy must not take one plan's drafts for another's."""
    orders = [window.order if window else None for window in windows]
    lengths = tuple(
        min(length, order.length) if order else length for length, order in zip(plan.lengths, orders, strict=True)
    )
    rules = tuple(order.rule if order else rule_of(plan, index) for index, order in enumerate(orders))
    same = all(rule == plan.depth for rule in rules)
    return replace(plan, lengths=lengths, own=plan.own if same else rules)


def rule_of(plan: Plan, index: int) -> DepthRule | None:
    return (plan.own[index] if plan.own else None) or plan.depth


def ending(schedule: Schedule, ready: Pass) -> list[Decoding]:
    """Whose prompt ends with this pass, which gives them their first token."""
    chunks = ready.rows[len(schedule.decoding) :]
    return [sequence for (sequence, _), row in zip(schedule.chunks, chunks, strict=True) if row.num_logits]


def joined(plan: Plan, more: Plan) -> Plan:
    """Of the rows of both, one after the other; the floor is that of the first."""
    depth = plan.depth or more.depth
    rules = (*_rules(plan), *_rules(more))
    own = tuple(None if rule == depth else rule for rule in rules)
    return replace(plan, depth=depth, lengths=plan.lengths + more.lengths, own=own if any(own) else ())


def _rules(plan: Plan) -> Iterator[DepthRule | None]:
    return (rule_of(plan, index) for index in range(len(plan.lengths)))


def order_of(request: AheadRequest, row: AheadRow) -> Order:
    """As what the row's branches come."""
    return Order(row.context.depth or request.depth, row.length, request.round_id)


def places_of(request: AheadRequest, decoding: Sequence[Decoding], num_logits: Sequence[int]) -> list[int]:
    """Which of a pass's picks are those of the request's rows. num_logits: by decoding sequence."""
    asked = {row.context.sequence_id for row in request.rows}
    places: list[int] = []
    start = 0
    for sequence, count in zip(decoding, num_logits, strict=True):
        if sequence.id in asked:
            places += range(start, start + count)
        start += count
    return places


def hint_of(request: AheadRequest, picks: Sequence[tuple[int, ...]]) -> ExitHint:
    """picks: at the places of the request's rows, one more for each than its window has tokens."""
    own = iter(picks)
    rows = tuple(
        HintRow(row.context.sequence_id, row.context.base_length, tuple(next(own) for _ in (*row.proposal, None)))
        for row in request.rows
    )
    return ExitHint(request.incarnation, request.round_id, rows)
