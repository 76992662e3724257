"""Draft messages as bytes: the dataclasses of protocol/draft.py and branch.py to protocol/draft.proto.

The way back is in protocol/decode.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.branch import AheadRequest, BranchReply, BranchSource, ExitHint
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.pb import draft_pb2 as pb
from protocol.plan import DepthRule

STATUS = {
    DraftStatus.OK: pb.STATUS_OK,
    DraftStatus.NEED_CONTEXT: pb.STATUS_NEED_CONTEXT,
    DraftStatus.BUSY: pb.STATUS_BUSY,
    DraftStatus.TOO_LONG: pb.STATUS_TOO_LONG,
    DraftStatus.NOT_YET: pb.STATUS_NOT_YET,
}
SOURCE = {
    BranchSource.FULL: pb.SOURCE_FULL,
    BranchSource.RUNNER_UP: pb.SOURCE_RUNNER_UP,
    BranchSource.EARLY_EXIT: pb.SOURCE_EARLY_EXIT,
}


@dataclass(frozen=True, slots=True)
class CloseSequences:
    incarnation: str
    sequence_ids: tuple[int, ...]


TargetMessage = DraftRequest | AheadRequest | ExitHint | CloseSequences
PoolMessage = DraftReply | BranchReply


def encode_target(message: TargetMessage) -> bytes:
    match message:
        case DraftRequest():
            return pb.TargetMessage(draft=_encode_request(message)).SerializeToString()
        case AheadRequest():
            return pb.TargetMessage(ahead=_encode_ahead(message)).SerializeToString()
        case ExitHint():
            return pb.TargetMessage(hint=_encode_hint(message)).SerializeToString()
        case CloseSequences():
            close = pb.Close(sequence_ids=message.sequence_ids)
            return pb.TargetMessage(close=close).SerializeToString()


def encode_pool(message: PoolMessage) -> bytes:
    match message:
        case DraftReply():
            return pb.PoolMessage(reply=_encode_reply(message)).SerializeToString()
        case BranchReply():
            return pb.PoolMessage(branches=_encode_branches(message)).SerializeToString()


def _encode_request(message: DraftRequest) -> pb.DraftRequest:
    return pb.DraftRequest(
        round_id=message.round_id,
        depth=_encode_rule(message.depth),
        rows=map(_encode_row, message.rows),
        deadline_ms=message.deadline_ms,
    )


def _encode_reply(reply: DraftReply) -> pb.DraftReply:
    return pb.DraftReply(
        round_id=reply.round_id,
        blocks=map(_encode_block, reply.blocks),
        wait_ms=reply.wait_ms,
    )


def _encode_ahead(message: AheadRequest) -> pb.AheadRequest:
    rows = [
        pb.AheadRow(
            context=_encode_row(row.context),
            proposal=row.proposal,
            length=row.length,
            fan_out=row.fan_out,
            stop_probability=row.stop_probability,
            exponent=row.exponent,
        )
        for row in message.rows
    ]
    return pb.AheadRequest(round_id=message.round_id, depth=_encode_rule(message.depth), rows=rows)


def _encode_hint(message: ExitHint) -> pb.ExitHint:
    rows = [
        pb.HintRow(
            sequence_id=row.sequence_id,
            base_length=row.base_length,
            picks=[pb.Picks(tokens=tokens) for tokens in row.picks],
        )
        for row in message.rows
    ]
    return pb.ExitHint(round_id=message.round_id, rows=rows)


def _encode_branches(message: BranchReply) -> pb.BranchReply:
    branches = [
        pb.Branch(
            sequence_id=branch.sequence_id,
            base_length=branch.base_length,
            key=branch.key,
            source=SOURCE[branch.source],
            tokens=branch.tokens,
            exits=branch.exits,
            confidences=branch.confidences,
            goes_on=branch.goes_on,
        )
        for branch in message.branches
    ]
    return pb.BranchReply(round_id=message.round_id, branches=branches, num_left=message.num_left)


def _encode_row(row: DraftRow) -> pb.DraftRow:
    sampling = pb.SamplingParams(
        temperature=row.sampling.temperature,
        top_k=row.sampling.top_k,
        top_p=row.sampling.top_p,
        min_p=row.sampling.min_p,
        seed=row.sampling.seed,
    )
    return pb.DraftRow(
        sequence_id=row.sequence_id,
        start=row.start,
        tokens=row.tokens,
        length=row.length,
        sampling=sampling,
        depth=_encode_rule(row.depth) if row.depth else None,
        stop_probability=row.stop_probability,
    )


def _encode_rule(rule: DepthRule) -> pb.DepthRule:
    return pb.DepthRule(exits=rule.exits, thresholds=rule.thresholds)


def _encode_block(block: DraftBlock) -> pb.DraftBlock:
    return pb.DraftBlock(
        sequence_id=block.sequence_id,
        base_length=block.base_length,
        status=STATUS[block.status],
        tokens=block.tokens,
        exits=block.exits,
        confidences=block.confidences,
    )
