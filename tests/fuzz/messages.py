"""Bytes that a target or a pool may get: sensible, nearly so, with values at their extremes, or anything at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from protocol.pb import draft_pb2 as pb
from tests.fuzz.integers import EXITS, VOCAB_SIZE

FLOATS = (0.0, -0.0, 0.5, 1.0, 1.0000001, -1.0, 1e-300, -5000.0, 1e300, 20.0, 0.05, float("nan"), float("inf"), -1e-9)
WHOLES = (0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 96, 97, 127, 128, 129, 255, 256, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 31)
LARGE = ((1 << 32) - 1,)
LARGER = (1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WHOLE_TYPES = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)


class Messages:
    """Of one stream of randomness. `to_pool` and `to_target` give the next."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def to_pool(self) -> bytes:
        return self._next(self._asking, pb.TargetMessage)

    def to_target(self) -> bytes:
        return self._next(self._answer, pb.PoolMessage)

    def _next(self, sensible: Callable[[], Message], kind: type[Message]) -> bytes:
        way = self._rng.random()
        if way < 0.4:
            return sensible().SerializeToString()
        if way < 0.6:
            return self._mutated(sensible().SerializeToString())
        if way < 0.75:
            return self._extreme(sensible()).SerializeToString()
        if way < 0.9:
            return self._invented(kind(), 0).SerializeToString()
        return self._rng.randbytes(self._rng.choice((0, 1, 2, 5, 20, 100, 1000)))

    def _asking(self) -> pb.TargetMessage:
        rng, depth = self._rng, self._rng.choice(EXITS)
        ids = rng.sample(range(6), rng.choice((1, 1, 2, 3)))
        kind = rng.random()
        if kind < 0.4:
            request = pb.DraftRequest(round_id=1, depth=depth, rows=map(self._row, ids))
            request.deadline_ms = rng.choice((0.0, 0.0, 0.1, 1.0, 50.0))
            return pb.TargetMessage(draft=request)
        if kind < 0.95:
            return pb.TargetMessage(ahead=pb.AheadRequest(round_id=1, depth=depth, rows=map(self._ahead_row, ids)))
        return pb.TargetMessage(close=pb.Close(sequence_ids=ids))

    def _tokens(self, most: int) -> list[int]:
        return [self._rng.randrange(VOCAB_SIZE) for _ in range(self._rng.randint(0, most))]

    def _row(self, sequence_id: int) -> pb.DraftRow:
        rng = self._rng
        sampling = pb.SamplingParams(top_p=1.0, seed=rng.randrange(2))
        row = pb.DraftRow(
            sequence_id=sequence_id, start=rng.choice((0, 0, 3, 5)), length=rng.randint(0, 6), sampling=sampling
        )
        row.tokens.extend(self._tokens(8))
        if rng.random() < 0.3:
            row.depth = rng.choice(EXITS)
        row.stop_probability = rng.choice((0.0, 0.0, 0.3, 1.0))
        return row

    def _ahead_row(self, sequence_id: int) -> pb.AheadRow:
        rng = self._rng
        return pb.AheadRow(
            context=self._row(sequence_id),
            proposal=self._tokens(4),
            length=rng.randint(0, 6),
            stop_probability=rng.choice((0.0, 0.2, 1.0)),
        )

    def _answer(self) -> pb.PoolMessage:
        rng = self._rng
        if rng.random() < 0.5:
            blocks = [self._block(number) for number in range(rng.randint(0, 3))]
            return pb.PoolMessage(reply=pb.DraftReply(round_id=1, blocks=blocks, wait_ms=rng.random()))
        branches = [self._branch(number) for number in range(rng.randint(0, 3))]
        return pb.PoolMessage(branches=pb.BranchReply(round_id=1, branches=branches))

    def _block(self, sequence_id: int) -> pb.DraftBlock:
        return pb.DraftBlock(sequence_id=sequence_id, base_length=4, status=self._rng.randint(0, 6), **self._drafted())

    def _branch(self, sequence_id: int) -> pb.Branch:
        return pb.Branch(sequence_id=sequence_id, base_length=5, **self._drafted())

    def _drafted(self) -> dict[str, Any]:
        tokens = self._tokens(4)
        return {"tokens": tokens, "confidences": [self._rng.random() for _ in tokens]}

    def _mutated(self, data: bytes) -> bytes:
        """With bytes changed, lost, doubled or moved in."""
        rng, made = self._rng, bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, until = sorted(rng.randrange(len(made) + 1) for _ in range(2))
            way = rng.randrange(4)
            if way == 0 and made:
                made[at % len(made)] = rng.randrange(256)
            elif way == 1:
                del made[at : min(until, at + 8)]
            elif way == 2:
                made[at:at] = made[at:until][:64]
            else:
                made[at:at] = rng.randbytes(rng.randint(1, 4))
        return bytes(made)

    def _extreme(self, message: Message) -> Message:
        """With one of its values, somewhere, at an extreme."""
        inner = self._rng.choice(list(_within(message)))
        fields = [field for field in inner.DESCRIPTOR.fields if field.message_type is None]
        if fields:
            self._set(inner, self._rng.choice(fields))
        return message

    def _invented(self, message: Message, depth: int) -> Message:
        """Any of its fields, with any values."""
        fields: Sequence[FieldDescriptor] = message.DESCRIPTOR.fields
        for field in self._rng.sample(list(fields), self._rng.randint(0, len(fields))):
            if field.message_type is None:
                self._set(message, field)
            elif field.is_repeated:
                for _ in range(self._rng.choice((0, 1, 2))):
                    self._invented(getattr(message, field.name).add(), depth + 1)
            else:
                child = getattr(message, field.name)
                child.SetInParent()
                self._invented(child, depth + 1)
        return message

    def _set(self, message: Message, field: FieldDescriptor) -> None:
        if field.is_repeated:
            count = self._rng.choice((0, 1, 2, 3, 40, 300))
            getattr(message, field.name).extend([self._value(field)] * count)
        else:
            setattr(message, field.name, self._value(field))

    def _value(self, field: FieldDescriptor) -> Any:
        rng = self._rng
        if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            return rng.choice(FLOATS)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        if field.type == FieldDescriptor.TYPE_ENUM:
            return rng.randint(0, 6)
        return rng.choice(WHOLES + LARGE + (LARGER if field.type in WHOLE_TYPES else ()))


def _within(message: Message) -> Iterator[Message]:
    """The message, and all those in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for own in value if field.is_repeated else (value,):
                yield from _within(own)
