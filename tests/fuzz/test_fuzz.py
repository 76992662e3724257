"""Whatever bytes come, they are a message in range or refused; no worker errs because of them, and no target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drafters.intake import Intake
from protocol.limits import MAX_POSITION, MAX_TOKEN
from protocol.pb import draft_pb2 as pb
from protocol.wire import decode_pool, decode_target
from tests.fuzz.game import Bench, limits
from tests.fuzz.messages import FLOATS, Messages
from tests.fuzz.sockets import over_sockets

bounded = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type)
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        width = 64 if field.type == FieldDescriptor.TYPE_DOUBLE else 32
        return st.sampled_from(FLOATS) | st.floats(width=width)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(0, 6)
    bits = 64 if field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64) else 32
    return st.integers(0, 8) | st.integers(0, (1 << bits) - 1)


def messages(descriptor: Any) -> st.SearchStrategy[Message]:
    """Of this kind, with any fields."""
    kind = getattr(pb, descriptor.name)
    fields = {
        field.name: st.lists(values(field), max_size=3) if field.is_repeated else values(field)
        for field in descriptor.fields
    }

    def made(chosen: dict[str, Any]) -> Message:
        message: Message = kind(**chosen)
        return message

    return st.fixed_dictionaries({}, optional=fields).map(made)


def bytes_of(kind: type[Message]) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=200) | messages(kind.DESCRIPTOR).map(lambda message: message.SerializeToString())


@bounded
@given(st.lists(bytes_of(pb.TargetMessage), max_size=5))
def test_whatever_a_target_sends_the_worker_goes_on_and_others_keep_their_drafts(sent: list[bytes]) -> None:
    bench = Bench(1)
    bench.round()
    for data in sent:
        bench.to_pool(data)
        bench.worker.check()
    bench.round()


@bounded
@given(st.lists(bytes_of(pb.PoolMessage), max_size=5))
def test_whatever_a_pool_sends_a_target_goes_on(sent: list[bytes]) -> None:
    bench = Bench(1)
    for data in sent:
        bench.to_target(data)


def numbers(value: Any) -> Iterator[float]:
    """All that are in a message, but for names and keys of 64 bits."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name not in ("sequence_id", "round_id", "seed", "key", "sequence_ids"):
                yield from numbers(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def test_what_is_decoded_holds_no_number_out_of_range() -> None:
    sent, num_taken = Messages(3), 0
    for _ in range(3000):
        for decode, data in (
            (lambda data: decode_target(data, "t", limits()), sent.to_pool()),
            (lambda data: decode_pool(data, "t"), sent.to_target()),
        ):
            try:
                message = decode(data)
            except ValueError:
                continue
            num_taken += 1
            assert all(
                math.isfinite(number) and 0 <= number <= max(MAX_TOKEN, MAX_POSITION) for number in numbers(message)
            )
    assert 1000 < num_taken < 5000


@pytest.mark.parametrize("seed", range(3))
def test_thousands_of_hostile_messages_change_no_draft_of_another(seed: int) -> None:
    bench, sent = Bench(seed), Messages(seed)
    for number in range(2000):
        bench.to_pool(sent.to_pool())
        bench.to_target(sent.to_target())
        if number % 100 == 0:
            bench.round()
    assert min(bench.num_taken, bench.num_refused) > 500
    assert bench.victim.num_right == 60
    told = bench.worker.stats()
    assert min(told.num_branches, told.num_mixed_passes) > 100, "hardly anything was reached"


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_that_hostile_messages_fill_refuses_rows_and_goes_on(seed: int) -> None:
    bench, sent = Bench(seed, num_pages=12), Messages(seed)
    for _ in range(1500):
        bench.to_pool(sent.to_pool())
        bench.worker.check()
    assert bench.worker.stats().num_busy > 20


def test_a_depth_that_is_not_checked_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Intake, "_has_exit", lambda *_: True)
    bench, sent = Bench(0), Messages(0)

    def play() -> None:
        for _ in range(50_000):
            bench.to_pool(sent.to_pool())

    with pytest.raises(ValueError, match="not in tuple"):
        play()


def test_hostile_messages_over_real_links_end_their_own_and_nothing_else() -> None:
    assert "right" in over_sockets(400, seed=5)
