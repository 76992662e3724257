"""Draft messages from bytes: protocol/draft.proto to the dataclasses of protocol/draft.py and branch.py.

What is decoded is in range: lengths that agree, numbers that are finite, no more rows and tokens than one message may
have (protocol/limits.py). What such a message asks for may still make no sense, and is then refused row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized

from protocol import checks
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, BranchSource, ExitHint, HintRow
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.limits import (
    MAX_BLOCKS,
    MAX_CLOSED,
    MAX_DEADLINE_MS,
    MAX_EXPONENT,
    MAX_FAN_OUT,
    MAX_LENGTH,
    MAX_PICKS,
    MAX_PROPOSAL,
    MAX_TOP_K,
    MAX_WAIT_MS,
    MIN_EXPONENT,
    REPLY_BYTES,
    MessageLimits,
)
from protocol.pb import draft_pb2 as pb
from protocol.plan import DepthRule
from protocol.request import SamplingParams
from protocol.wire import SOURCE, STATUS, CloseSequences, PoolMessage, TargetMessage

_STATUS_OF = {number: status for status, number in STATUS.items()}
_SOURCE_OF = {number: source for source, number in SOURCE.items()}


def decode_target(data: bytes, incarnation: str, limits: MessageLimits) -> TargetMessage:
    """incarnation: of whoever holds the link. Raises ValueError for what no target of this version sends."""
    message = checks.parsed(pb.TargetMessage, data, limits.num_bytes)
    match message.WhichOneof("message"):
        case "draft":
            return _decode_request(message.draft, incarnation, limits)
        case "ahead":
            return _decode_ahead(message.ahead, incarnation, limits)
        case "hint":
            return _decode_hint(message.hint, incarnation, limits)
        case "close":
            checks.at_most("sequences to close", len(message.close.sequence_ids), MAX_CLOSED)
            return CloseSequences(incarnation, tuple(message.close.sequence_ids))
        case other:
            raise ValueError(f"a target sent a message of unknown kind {other}; deploy both sides from one version")


def decode_pool(data: bytes, incarnation: str) -> PoolMessage:
    """incarnation: of whoever holds the link. Raises ValueError for what no pool of this version sends."""
    message = checks.parsed(pb.PoolMessage, data, REPLY_BYTES)
    match message.WhichOneof("message"):
        case "reply":
            return _decode_reply(message.reply, incarnation)
        case "branches":
            return _decode_branches(message.branches, incarnation)
        case other:
            raise ValueError(f"a pool sent a message of unknown kind {other}; deploy both sides from one version")


def _decode_ahead(message: pb.AheadRequest, incarnation: str, limits: MessageLimits) -> AheadRequest:
    _bound(limits, message.rows, (len(row.context.tokens) + len(row.proposal) for row in message.rows))
    rows = tuple(map(_decode_ahead_row, message.rows))
    checks.unique([row.context.sequence_id for row in rows])
    return AheadRequest(incarnation, message.round_id, _decode_rule(message.depth), rows)


def _decode_ahead_row(row: pb.AheadRow) -> AheadRow:
    checks.at_most("tokens of a proposal", len(row.proposal), MAX_PROPOSAL)
    return AheadRow(
        _decode_row(row.context),
        checks.tokens(row.proposal),
        checks.at_most("tokens of a branch", row.length, MAX_LENGTH),
        checks.at_most("branches of a row", row.fan_out, MAX_FAN_OUT),
        checks.within("stop_probability", row.stop_probability, 0.0, 1.0),
        checks.within("exponent", row.exponent, MIN_EXPONENT, MAX_EXPONENT),
    )


def _decode_hint(message: pb.ExitHint, incarnation: str, limits: MessageLimits) -> ExitHint:
    sizes = (len(row.picks) + sum(len(own.tokens) for own in row.picks) for row in message.rows)
    _bound(limits, message.rows, sizes)
    rows = tuple(map(_decode_hint_row, message.rows))
    checks.unique([row.sequence_id for row in rows])
    return ExitHint(incarnation, message.round_id, rows)


def _decode_hint_row(row: pb.HintRow) -> HintRow:
    checks.at_most("places of early picks", len(row.picks), MAX_PROPOSAL + 1)
    checks.at_most("early picks at a place", max((len(own.tokens) for own in row.picks), default=0), MAX_PICKS)
    checks.positions(row.base_length, 0)
    return HintRow(row.sequence_id, row.base_length, tuple(checks.tokens(own.tokens) for own in row.picks))


def _decode_branches(message: pb.BranchReply, incarnation: str) -> BranchReply:
    checks.at_most("branches", len(message.branches), MAX_BLOCKS)
    branches = tuple(_decode_branch(branch, message.round_id) for branch in message.branches)
    return BranchReply(incarnation, message.round_id, branches, message.num_left)


def _decode_branch(branch: pb.Branch, round_id: int) -> Branch:
    """A source from a newer version counts as the drafter's own."""
    checks.positions(branch.base_length, len(branch.tokens))
    return Branch(
        branch.sequence_id,
        branch.base_length,
        branch.key,
        _SOURCE_OF.get(branch.source, BranchSource.RUNNER_UP),
        *checks.draft(branch),
        branch.goes_on,
        round_id,
    )


def _decode_rule(rule: pb.DepthRule) -> DepthRule:
    return checks.rule(rule.exits, rule.thresholds)


def _decode_request(draft: pb.DraftRequest, incarnation: str, limits: MessageLimits) -> DraftRequest:
    _bound(limits, draft.rows, (len(row.tokens) for row in draft.rows))
    rows = tuple(map(_decode_row, draft.rows))
    checks.unique([row.sequence_id for row in rows])
    deadline_ms = checks.within("deadline_ms", draft.deadline_ms, 0.0, MAX_DEADLINE_MS)
    return DraftRequest(incarnation, draft.round_id, _decode_rule(draft.depth), rows, deadline_ms)


def _bound(limits: MessageLimits, rows: Sized, num_tokens: Iterable[int]) -> None:
    """Before anything is made of what came."""
    checks.at_most("rows", len(rows), limits.rows)
    checks.at_most("tokens", sum(num_tokens), limits.tokens)


def _decode_row(row: pb.DraftRow) -> DraftRow:
    checks.positions(row.start, len(row.tokens))
    own = row.sampling
    checks.within("top_k", own.top_k, 0, MAX_TOP_K)
    return DraftRow(
        row.sequence_id,
        row.start,
        checks.tokens(row.tokens),
        checks.at_most("tokens to draft", row.length, MAX_LENGTH),
        SamplingParams(own.temperature, own.top_k, own.top_p, own.min_p, own.seed),
        _decode_rule(row.depth) if row.HasField("depth") else None,
        checks.within("stop_probability", row.stop_probability, 0.0, 1.0),
    )


def _decode_reply(reply: pb.DraftReply, incarnation: str) -> DraftReply:
    """A block whose status is from a newer version is left out, as if it were late."""
    checks.at_most("blocks", len(reply.blocks), MAX_BLOCKS)
    blocks = tuple(
        _decode_block(block, _STATUS_OF[block.status]) for block in reply.blocks if block.status in _STATUS_OF
    )
    return DraftReply(incarnation, reply.round_id, blocks, checks.within("wait_ms", reply.wait_ms, 0.0, MAX_WAIT_MS))


def _decode_block(block: pb.DraftBlock, status: DraftStatus) -> DraftBlock:
    if block.tokens and status is not DraftStatus.OK:
        raise ValueError(f"{len(block.tokens)} tokens of a block that is {status}; {checks.REMEDY}")
    checks.positions(block.base_length, len(block.tokens))
    return DraftBlock(block.sequence_id, block.base_length, status, *checks.draft(block))
