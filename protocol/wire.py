"""Draft messages as bytes: the dataclasses of protocol/draft.py and branch.py to and from protocol/draft.proto."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply, BranchSource, ExitHint, HintRow
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus, Probe
from protocol.pb import draft_pb2 as pb
from protocol.plan import DepthRule
from protocol.request import SamplingParams

_STATUS = {
    DraftStatus.OK: pb.STATUS_OK,
    DraftStatus.NEED_CONTEXT: pb.STATUS_NEED_CONTEXT,
    DraftStatus.BUSY: pb.STATUS_BUSY,
    DraftStatus.TOO_LONG: pb.STATUS_TOO_LONG,
}
_STATUS_OF = {number: status for status, number in _STATUS.items()}
_SOURCE = {
    BranchSource.FULL: pb.SOURCE_FULL,
    BranchSource.RUNNER_UP: pb.SOURCE_RUNNER_UP,
    BranchSource.EARLY_EXIT: pb.SOURCE_EARLY_EXIT,
}
_SOURCE_OF = {number: source for source, number in _SOURCE.items()}


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
            close = pb.Close(incarnation=message.incarnation, sequence_ids=message.sequence_ids)
            return pb.TargetMessage(close=close).SerializeToString()


def decode_target(data: bytes) -> TargetMessage:
    """Raises ValueError when the message is of a kind that this version does not know."""
    message = pb.TargetMessage.FromString(data)
    match message.WhichOneof("message"):
        case "draft":
            return _decode_request(message.draft)
        case "ahead":
            return _decode_ahead(message.ahead)
        case "hint":
            return _decode_hint(message.hint)
        case "close":
            return CloseSequences(message.close.incarnation, tuple(message.close.sequence_ids))
        case other:
            raise ValueError(f"a target sent a message of unknown kind {other}; deploy both sides from one version")


def encode_pool(message: PoolMessage) -> bytes:
    match message:
        case DraftReply():
            return pb.PoolMessage(reply=_encode_reply(message)).SerializeToString()
        case BranchReply():
            return pb.PoolMessage(branches=_encode_branches(message)).SerializeToString()


def decode_pool(data: bytes) -> PoolMessage:
    """Raises ValueError when the message is of a kind that this version does not know."""
    message = pb.PoolMessage.FromString(data)
    match message.WhichOneof("message"):
        case "reply":
            reply = message.reply
            return DraftReply(reply.incarnation, reply.round_id, _decode_blocks(reply.blocks), reply.wait_ms)
        case "branches":
            return _decode_branches(message.branches)
        case other:
            raise ValueError(f"a pool sent a message of unknown kind {other}; deploy both sides from one version")


def _encode_request(message: DraftRequest) -> pb.DraftRequest:
    return pb.DraftRequest(
        incarnation=message.incarnation,
        round_id=message.round_id,
        depth=_encode_rule(message.depth),
        rows=map(_encode_row, message.rows),
    )


def _encode_reply(reply: DraftReply) -> pb.DraftReply:
    return pb.DraftReply(
        incarnation=reply.incarnation,
        round_id=reply.round_id,
        blocks=map(_encode_block, reply.blocks),
        wait_ms=reply.wait_ms,
    )


def _encode_ahead(message: AheadRequest) -> pb.AheadRequest:
    rows = [
        pb.AheadRow(
            context=_encode_row(row.context),
            window=row.window,
            length=row.length,
            fan_out=row.fan_out,
            floor=row.floor,
            power=row.power,
        )
        for row in message.rows
    ]
    return pb.AheadRequest(
        incarnation=message.incarnation, round_id=message.round_id, depth=_encode_rule(message.depth), rows=rows
    )


def _decode_ahead(message: pb.AheadRequest) -> AheadRequest:
    rows = tuple(
        AheadRow(_decode_row(row.context), tuple(row.window), row.length, row.fan_out, row.floor, row.power)
        for row in message.rows
    )
    return AheadRequest(message.incarnation, message.round_id, _decode_rule(message.depth), rows)


def _encode_hint(message: ExitHint) -> pb.ExitHint:
    rows = [
        pb.HintRow(
            sequence_id=row.sequence_id,
            base_length=row.base_length,
            picks=[pb.Picks(tokens=tokens) for tokens in row.picks],
        )
        for row in message.rows
    ]
    return pb.ExitHint(incarnation=message.incarnation, round_id=message.round_id, rows=rows)


def _decode_hint(message: pb.ExitHint) -> ExitHint:
    rows = tuple(
        HintRow(row.sequence_id, row.base_length, tuple(tuple(own.tokens) for own in row.picks)) for row in message.rows
    )
    return ExitHint(message.incarnation, message.round_id, rows)


def _encode_branches(message: BranchReply) -> pb.BranchReply:
    branches = [
        pb.Branch(
            sequence_id=branch.sequence_id,
            base_length=branch.base_length,
            key=branch.key,
            source=_SOURCE[branch.source],
            tokens=branch.tokens,
            exits=branch.exits,
            confidences=branch.confidences,
            goes_on=branch.goes_on,
        )
        for branch in message.branches
    ]
    return pb.BranchReply(
        incarnation=message.incarnation, round_id=message.round_id, branches=branches, num_left=message.num_left
    )


def _decode_branches(message: pb.BranchReply) -> BranchReply:
    """A source from a newer version counts as the drafter's own."""
    branches = tuple(
        Branch(
            branch.sequence_id,
            branch.base_length,
            branch.key,
            _SOURCE_OF.get(branch.source, BranchSource.RUNNER_UP),
            tuple(branch.tokens),
            tuple(branch.exits),
            tuple(branch.confidences),
            branch.goes_on,
            message.round_id,
        )
        for branch in message.branches
    )
    return BranchReply(message.incarnation, message.round_id, branches, message.num_left)


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
        floor=row.floor,
        probe=row.probe,
    )


def _encode_rule(rule: DepthRule) -> pb.DepthRule:
    return pb.DepthRule(exits=rule.exits, thresholds=rule.thresholds)


def _decode_rule(rule: pb.DepthRule) -> DepthRule:
    return DepthRule(tuple(rule.exits), tuple(rule.thresholds))


def _decode_request(draft: pb.DraftRequest) -> DraftRequest:
    return DraftRequest(
        draft.incarnation, draft.round_id, _decode_rule(draft.depth), tuple(map(_decode_row, draft.rows))
    )


def _decode_row(row: pb.DraftRow) -> DraftRow:
    sampling = SamplingParams(
        row.sampling.temperature, row.sampling.top_k, row.sampling.top_p, row.sampling.min_p, row.sampling.seed
    )
    depth = _decode_rule(row.depth) if row.HasField("depth") else None
    return DraftRow(row.sequence_id, row.start, tuple(row.tokens), row.length, sampling, depth, row.floor, row.probe)


def _encode_block(block: DraftBlock) -> pb.DraftBlock:
    return pb.DraftBlock(
        sequence_id=block.sequence_id,
        base_length=block.base_length,
        status=_STATUS[block.status],
        tokens=block.tokens,
        exits=block.exits,
        confidences=block.confidences,
        probe=_encode_probe(block.probe) if block.probe else None,
    )


def _decode_blocks(blocks: Sequence[pb.DraftBlock]) -> tuple[DraftBlock, ...]:
    """A status from a newer version is left out, as if the block were late."""
    return tuple(
        DraftBlock(
            block.sequence_id,
            block.base_length,
            _STATUS_OF[block.status],
            tuple(block.tokens),
            tuple(block.exits),
            tuple(block.confidences),
            _decode_probe(block.probe) if block.HasField("probe") else None,
        )
        for block in blocks
        if block.status in _STATUS_OF
    )


def _encode_probe(probe: Probe) -> pb.Probe:
    exits = [
        pb.ProbedExit(matches=matches, confidences=confidences)
        for matches, confidences in zip(probe.matches, probe.confidences, strict=True)
    ]
    return pb.Probe(start=probe.start, exits=exits)


def _decode_probe(probe: pb.Probe) -> Probe:
    matches = tuple(tuple(exit_.matches) for exit_ in probe.exits)
    return Probe(probe.start, matches, tuple(tuple(exit_.confidences) for exit_ in probe.exits))
