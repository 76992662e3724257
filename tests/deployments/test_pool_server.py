"""Who connects to a draft replica: targets, many at once, too many, and strangers."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack, suppress

import pytest

from deployments.connection import GREETING, HEADER
from protocol.wire import CloseSequences, encode_target
from tests.deployments.harness import Directory, LoopThread, ScriptedPool, client, request, wait_until


def test_whoever_connects_to_a_pool_and_is_no_target_is_hung_up_on(caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool()
    host, _, port = pool.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10.0) as sock:
        assert sock.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    assert "no greeting of this version" in caplog.text
    pool.kill()


def greeted(address: str, name: str | None = None) -> tuple[socket.socket, bytes]:
    """A connection, named if it gets a name, and the greeting that it got."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), 10.0)
    greeting = b""
    with suppress(ConnectionError):
        greeting = sock.recv(len(GREETING), socket.MSG_WAITALL)
        message = encode_target(CloseSequences(name or "", ()))
        sock.sendall(GREETING + (HEADER.pack(len(message)) + message if name else b""))
    return sock, greeting


def test_connections_are_bounded_and_one_that_ends_or_never_named_itself_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.pool_server.MAX_STREAMS", 3)
    pool = ScriptedPool()
    with ExitStack() as stack:

        def come(name: str | None = None) -> tuple[socket.socket, bytes]:
            sock, greeting = greeted(pool.address, name)
            return stack.enter_context(sock), greeting

        first = [come(f"target-{number}") for number in range(3)]
        wait_until(lambda: pool.server.num_streams == 3)
        assert come("one too many")[1] == b""
        first[0][0].close()
        wait_until(lambda: len(pool.server._all) == 2)
        silent, greeting = come()
        assert greeting == GREETING
        assert come("target-3")[1] == GREETING
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""
    pool.kill()


def test_a_pool_without_files_hangs_up_on_who_connects_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool()
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
    with greeted(pool.address)[0] as sock:
        assert sock.fileno() >= 0
    pool.kill()


def test_targets_that_come_together_are_all_greeted_between_two_passes(runner: LoopThread) -> None:
    pool = ScriptedPool(delay_s=0.5)
    with client(runner, Directory(pool), deadline_s=5.0) as drafts:
        wait_until(lambda: drafts.replica)
        drafts.ask(request(1, (1, 0, 4)))
        for sock, greeting in [greeted(pool.address) for _ in range(20)]:
            sock.close()
            assert greeting == GREETING
        assert drafts.answer()
    pool.kill()
