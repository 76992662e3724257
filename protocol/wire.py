"""Draft messages as bytes and back: the dataclasses of protocol/draft.py and branch.py, and protocol/draft.proto.

One table says of each dataclass how its fields are read from a message, and to which ranges they are held there. What
is decoded is in range: lengths that agree, numbers that are finite, no more rows and tokens than one message may have
(protocol/limits.py). What such a message asks for may still make no sense, and is then refused row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from protocol import checks, limits
from protocol.branch import AheadRequest, AheadRow, Branch, BranchReply
from protocol.checks import REMEDY, at_most, within
from protocol.draft import DraftBlock, DraftReply, DraftRequest, DraftRow, DraftStatus
from protocol.limits import MAX_LENGTH, MessageLimits
from protocol.pb import draft_pb2 as pb
from protocol.request import SamplingParams


@dataclass(frozen=True, slots=True)
class CloseSequences:
    incarnation: str
    sequence_ids: tuple[int, ...]


TargetMessage = DraftRequest | AheadRequest | CloseSequences
PoolMessage = DraftReply | BranchReply
Read = Callable[[Any], Any]  # a field's value from a message
M = TypeVar("M", bound=Message)

STATUS = {status: pb.Status.Value(f"STATUS_{status.name}") for status in DraftStatus}
STATUS_OF = {number: status for status, number in STATUS.items()}
KINDS: dict[str, type[Any]] = {
    "draft": DraftRequest,
    "ahead": AheadRequest,
    "close": CloseSequences,
    "reply": DraftReply,
    "branches": BranchReply,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def encode_target(message: TargetMessage) -> bytes:
    return pb.TargetMessage(**{NAMES[type(message)]: _encode(message)}).SerializeToString()


def encode_pool(message: PoolMessage) -> bytes:
    return pb.PoolMessage(**{NAMES[type(message)]: _encode(message)}).SerializeToString()


def decode_target(data: bytes, incarnation: str, bounds: MessageLimits) -> TargetMessage:
    """incarnation: of whoever holds the link. Raises ValueError for what no target of this version sends."""
    name, content = _opened(pb.TargetMessage, data, bounds.num_bytes, "a target")
    if name != "close":
        _bound(name, content.rows, bounds)
    message: TargetMessage = _decode(KINDS[name], content, incarnation=incarnation)
    return message


def decode_pool(data: bytes, incarnation: str) -> PoolMessage:
    """incarnation: of whoever holds the link. Raises ValueError for what no pool of this version sends."""
    name, content = _opened(pb.PoolMessage, data, limits.REPLY_BYTES, "a pool")
    message: PoolMessage = _decode(KINDS[name], content, incarnation=incarnation)
    return message


def _opened(kind: type[M], data: bytes, most: int, sender: str) -> tuple[str, Any]:
    if len(data) > most:
        raise ValueError(f"a message of {len(data)} bytes came, {most} are allowed; {REMEDY}")
    try:
        message: Any = kind.FromString(data)
    except DecodeError as error:
        raise ValueError(f"what came is no message ({str(error)[:80]}); {REMEDY}") from None
    name = message.WhichOneof("message")
    if name is None:
        raise ValueError(f"{sender} sent a message of unknown kind; {REMEDY}")
    return name, getattr(message, name)


def _bound(name: str, rows: Any, bounds: MessageLimits) -> None:
    """Checks sizes before anything is built from the message."""
    at_most("rows", len(rows), bounds.rows)
    contexts = [row.context for row in rows] if name == "ahead" else rows
    num_proposed = sum(len(row.proposal) for row in rows) if name == "ahead" else 0
    at_most("tokens", num_proposed + sum(len(row.tokens) for row in contexts), bounds.tokens)
    checks.unique([row.sequence_id for row in contexts])


class Record(NamedTuple):
    """How one dataclass travels. read: from a message, by field. check: of the message, before its fields are read.
    write: to a message, for fields that are not plain numbers or lists of such. Both sides have the same field names.
    """

    message: type[Message]
    read: Mapping[str, Read]
    write: Mapping[str, Read] = {}
    check: Read | None = None


def _encode(value: Any) -> Any:
    message, read, write, _ = RECORDS[type(value)]
    return message(
        **{name: write[name](getattr(value, name)) if name in write else getattr(value, name) for name in read}
    )


def _encode_all(values: tuple[Any, ...]) -> list[Any]:
    return [_encode(value) for value in values]


def _decode(kind: type[Any], message: Any, **known: Any) -> Any:
    """known: fields that are not in the message."""
    _, read, _, check = RECORDS[kind]
    if check is not None:
        check(message)
    return kind(**known, **{name: field(message) for name, field in read.items()})


def _plain(name: str) -> Read:
    return lambda message: getattr(message, name)


def _number(name: str, low: float = 0.0, high: float = 1.0) -> Read:
    return lambda message: within(name, getattr(message, name), low, high)


def _count(name: str, what: str, most: int) -> Read:
    return lambda message: at_most(what, getattr(message, name), most)


def _tokens(name: str = "tokens") -> Read:
    return lambda message: checks.tokens(getattr(message, name))


def _rows(kind: type[Any]) -> Read:
    return lambda message: tuple(_decode(kind, row) for row in message.rows)


def _blocks(reply: pb.DraftReply) -> tuple[DraftBlock, ...]:
    """A block whose status is from a newer version is left out, as if it were late."""
    at_most("blocks", len(reply.blocks), limits.MAX_BLOCKS)
    return tuple(_decode(DraftBlock, block) for block in reply.blocks if block.status in STATUS_OF)


def _branches(reply: pb.BranchReply) -> tuple[Branch, ...]:
    at_most("branches", len(reply.branches), limits.MAX_BLOCKS)
    return tuple(_decode(Branch, branch, round_id=reply.round_id) for branch in reply.branches)


def _check_block(block: pb.DraftBlock) -> None:
    checks.draft(block)
    if block.tokens and block.status != pb.STATUS_OK:
        raise ValueError(f"{len(block.tokens)} tokens of a block that is {STATUS_OF[block.status]}; {REMEDY}")


ROUND = {"round_id": _plain("round_id")}
PLACE = {"sequence_id": _plain("sequence_id"), "base_length": _plain("base_length")}
DEPTH = {"depth": _number("depth", 1, limits.MAX_DEPTH)}
STOP = {"stop_probability": _number("stop_probability")}
DRAFT: dict[str, Read] = {
    "tokens": _tokens(),
    "confidences": lambda message: checks.shares("a confidence", message.confidences),
}
RECORDS: Mapping[type[Any], Record] = {
    SamplingParams: Record(  # which holds the others to their ranges itself
        pb.SamplingParams,
        {name: _plain(name) for name in ("temperature", "top_p", "min_p", "seed")}
        | {"top_k": _number("top_k", 0, limits.MAX_TOP_K)},
    ),
    DraftRow: Record(
        pb.DraftRow,
        {"sequence_id": _plain("sequence_id"), "start": _plain("start"), "tokens": _tokens()}
        | {"length": _count("length", "tokens to draft", MAX_LENGTH)}
        | {"depth": lambda row: DEPTH["depth"](row) if row.depth else None}
        | {"sampling": lambda row: _decode(SamplingParams, row.sampling)}
        | STOP,
        {"sampling": _encode},
        lambda row: checks.positions(row.start, len(row.tokens)),
    ),
    DraftRequest: Record(
        pb.DraftRequest,
        ROUND | DEPTH | {"rows": _rows(DraftRow), "deadline_ms": _number("deadline_ms", 0.0, limits.MAX_MS)},
        {"rows": _encode_all},
    ),
    AheadRow: Record(
        pb.AheadRow,
        {"context": lambda row: _decode(DraftRow, row.context), "proposal": _tokens("proposal")}
        | {"length": _count("length", "tokens of a branch", MAX_LENGTH)}
        | STOP,
        {"context": _encode},
        lambda row: at_most("tokens of a proposal", len(row.proposal), limits.MAX_PROPOSAL),
    ),
    AheadRequest: Record(pb.AheadRequest, ROUND | DEPTH | {"rows": _rows(AheadRow)}, {"rows": _encode_all}),
    CloseSequences: Record(
        pb.Close,
        {"sequence_ids": lambda close: tuple(close.sequence_ids)},
        check=lambda close: at_most("sequences to close", len(close.sequence_ids), limits.MAX_CLOSED),
    ),
    DraftBlock: Record(
        pb.DraftBlock,
        PLACE | DRAFT | {"status": lambda block: STATUS_OF[block.status]},
        {"status": STATUS.__getitem__},
        _check_block,
    ),
    DraftReply: Record(
        pb.DraftReply,
        ROUND | {"blocks": _blocks, "wait_ms": _number("wait_ms", 0.0, limits.MAX_MS)},
        {"blocks": _encode_all},
    ),
    Branch: Record(pb.Branch, PLACE | DRAFT | {"key": _plain("key"), "goes_on": _plain("goes_on")}, check=checks.draft),
    BranchReply: Record(pb.BranchReply, ROUND | {"branches": _branches}, {"branches": _encode_all}),
}
