"""Who connects to a draft replica: targets, many at once, too many, strangers, and such that mean harm.

Those who hold the secret and mean harm all the same are in test_attacks.py too, against a real drafter.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from link import pool_server
from link.connection import HEADER
from link.handshake import MAGIC
from link.pool_server import HALF_SENT_S, HANDSHAKE_S, MAX_STRANGERS
from link.pool_thread import PoolThread
from link.secret import NUM_BYTES, Secret
from protocol.draft import DraftRequest
from protocol.pb import draft_pb2 as pb
from protocol.wire import decode_pool, encode_target
from tests.deployments.harness import LoopThread, ScriptedPool, request, wait_until
from tests.link.rig import drafting_on
from tests.link.strangers import connected, hung_up, proved, received, send


@pytest.fixture
def pool() -> Iterator[ScriptedPool]:
    made = ScriptedPool()
    yield made
    made.kill()


def alive(pool: ScriptedPool) -> bool:
    return pool.thread.heartbeat_age_s() != float("inf")


def test_whoever_connects_to_a_pool_and_is_no_target_is_hung_up_on(
    pool: ScriptedPool, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(pool.address) as sock:
        assert sock.recv(len(MAGIC), socket.MSG_WAITALL) == MAGIC
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert hung_up(sock)
    assert "no greeting of this version" in caplog.text


def test_who_does_not_hold_the_secret_is_hung_up_on_before_any_message(
    pool: ScriptedPool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EOFError):
        proved(pool.address, Secret.fresh())
    assert "does not hold this replica's secret" in caplog.text
    assert not pool.server._targets


def test_messages_in_place_of_a_proof_are_read_by_nobody(pool: ScriptedPool) -> None:
    message = encode_target(request(1, (1, 0, 4)))
    with connected(pool.address) as sock:
        sock.sendall(MAGIC + bytes(NUM_BYTES) + b"\x01a" + HEADER.pack(len(message)) + message + bytes(NUM_BYTES))
        assert hung_up(sock)
    assert pool.worker.seen == []


def test_strangers_fill_no_log(pool: ScriptedPool, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(50):
        with connected(pool.address) as sock:
            sock.sendall(b"\x1b[31m" * 20)
            assert hung_up(sock)
    assert len(caplog.text) < 1000
    assert "\x1b" not in caplog.text


def test_strangers_are_bounded_and_the_oldest_makes_room(pool: ScriptedPool) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(connected(pool.address))
        wait_until(lambda: len(pool.server._strangers) == 1)
        others = [stack.enter_context(connected(pool.address)) for _ in range(MAX_STRANGERS)]
        assert hung_up(first)
        wait_until(lambda: len(pool.server._strangers) == MAX_STRANGERS)
        with proved(pool.address, pool.secret):
            wait_until(lambda: len(pool.server._targets) == 1)
            assert hung_up(others[0])


def test_targets_are_bounded_and_one_that_ends_makes_room(pool: ScriptedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_server, "MAX_TARGETS", 3)
    with ExitStack() as stack:

        def come(number: int) -> socket.socket:
            return stack.enter_context(proved(pool.address, pool.secret, f"target-{number}"))

        first = [come(number) for number in range(3)]
        wait_until(lambda: len(pool.server._targets) == 3)
        assert hung_up(come(3))
        first[0].close()
        wait_until(lambda: len(pool.server._targets) == 2)
        come(4)
        wait_until(lambda: len(pool.server._targets) == 3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stranger_that_is_silent_is_closed_and_so_is_half_a_message() -> None:
    clock = Clock()
    pool = ScriptedPool(clock=clock)
    with connected(pool.address) as silent, proved(pool.address, pool.secret) as half, ExitStack() as stack:
        idle = stack.enter_context(proved(pool.address, pool.secret))
        wait_until(lambda: (len(pool.server._strangers), len(pool.server._targets)) == (1, 2))
        half.sendall(HEADER.pack(100) + b"half")
        wait_until(lambda: any(stream.connection.half_received for stream in pool.server._targets))
        clock.now += HANDSHAKE_S + 1
        assert hung_up(silent)
        assert len(pool.server._targets) == 2
        clock.now += HALF_SENT_S + 1
        assert hung_up(half)
        clock.now += 3600
        send(idle, encode_target(request(1, (1, 0, 4))))
        assert decode_pool(received(idle), "idle"), "a target that is idle may be so for as long as it likes"
    pool.kill()


def test_a_message_longer_than_any_that_the_pool_has_room_for_is_not_waited_for(pool: ScriptedPool) -> None:
    """64 MiB of anyone were, of 256 at a time."""
    with proved(pool.address, pool.secret) as sock:
        sock.sendall(HEADER.pack(pool.server.limits.num_bytes + 1))
        assert hung_up(sock)
    assert pool.server.limits.num_bytes < 2 << 20


def test_more_rows_or_tokens_than_the_pool_has_room_for_are_refused_before_any_is_looked_at(pool: ScriptedPool) -> None:
    """Three million rows took minutes, one after the other."""
    many = pb.DraftRequest(depth=2)
    for number in range(pool.server.limits.rows + 1):
        many.rows.add(sequence_id=number).sampling.top_p = 1.0
    long = pb.DraftRequest(depth=2, rows=[pb.DraftRow(tokens=[1] * 1_000_000)])
    for message in (many, long):
        with proved(pool.address, pool.secret) as sock:
            send(sock, pb.TargetMessage(draft=message).SerializeToString())
            assert hung_up(sock)
    assert pool.worker.seen == []
    assert alive(pool)


def test_a_message_that_the_worker_fails_on_ends_its_link_and_the_thread_goes_on(
    pool: ScriptedPool, runner: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    submit = pool.worker.submit

    def fails_for_the_intruder(asked: DraftRequest, reply: object) -> None:
        if asked.incarnation.startswith("intruder"):
            raise RuntimeError("scripted")
        submit(asked, reply)  # type: ignore[arg-type]

    pool.worker.submit = fails_for_the_intruder  # type: ignore[method-assign, assignment]
    with drafting_on(runner, pool) as drafts:
        with proved(pool.address, pool.secret) as sock:
            send(sock, encode_target(request(1, (1, 0, 4))))
            assert hung_up(sock)
        assert drafts.draft(request(1, (1, 0, 4)))
    assert "a message could not be acted on" in caplog.text


def test_a_pool_without_files_hangs_up_on_who_connects_and_goes_on(
    pool: ScriptedPool, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = pool.address.rpartition(":")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as sock:
        filled = [os.dup(sock.fileno())]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(filled) + 1, limits[1]))
        with suppress(OSError):
            while True:
                filled.append(os.dup(sock.fileno()))
        sock.connect((host, int(port)))
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        for number in filled:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "cannot be accepted: Too many open files" in caplog.text
    with closing(proved(pool.address, pool.secret)):
        wait_until(lambda: len(pool.server._targets) == 1)


def test_targets_that_come_together_are_all_taken_between_two_passes(runner: LoopThread) -> None:
    pool = ScriptedPool(delay_s=0.5)
    with drafting_on(runner, pool, deadline_s=5.0) as drafts:
        asked = request(1, (1, 0, 4))
        shares = drafts._ask(asked)
        socks = [connected(pool.address) for _ in range(20)]
        for sock in socks:
            assert sock.recv(len(MAGIC), socket.MSG_WAITALL) == MAGIC
            sock.close()
        assert drafts._answer(asked, shares)


def test_a_pass_may_take_its_time_and_a_loop_that_stands_still_may_not(
    pool: ScriptedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, in_pass, stuck in [(10, False, 0), (100, False, 100), (100, True, 0), (1000, True, 1000)]:
        monkeypatch.setattr(PoolThread, "heartbeat_age_s", lambda self, age=age: float(age))
        monkeypatch.setattr(pool.thread, "_in_pass", in_pass)
        assert pool.thread.stuck_for_s() == stuck
