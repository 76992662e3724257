"""Messages over a socket pair: whole, in order, whoever reads how slowly, and never more than is bounded."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from link.connection import HEADER, MAX_BACKLOG, Connection
from link.listening import listen
from protocol.errors import ConfigError

MAX_MESSAGE = 1_000_000


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as one,
        listener.accept()[0] as other,
    ):
        yield one, other


def received(connection: Connection, num: int) -> list[bytes]:
    messages: list[bytes] = []
    until = time.monotonic() + 10.0
    while len(messages) < num and time.monotonic() < until:
        if connection.wait(0.1):
            messages += connection.receive()
    return messages


@pytest.mark.parametrize("seed", range(20))
def test_messages_come_whole_and_in_order_however_the_bytes_are_cut(
    sockets: tuple[socket.socket, socket.socket], seed: int
) -> None:
    rng = random.Random(seed)
    raw, connection = sockets[0], Connection(sockets[1], MAX_MESSAGE)
    sent = [rng.randbytes(rng.choice([0, 1, 3, 100, 5000])) for _ in range(rng.randrange(1, 20))]
    stream = b"".join(HEADER.pack(len(message)) + message for message in sent)

    def write() -> None:
        at = 0
        while at < len(stream):
            num = rng.choice([1, 2, 7, 1000])
            raw.sendall(stream[at : at + num])
            at += num
            time.sleep(rng.choice([0.0, 0.0, 0.0005]))

    writer = threading.Thread(target=write)
    writer.start()
    assert received(connection, len(sent)) == sent
    writer.join()


def test_messages_of_several_threads_are_not_mixed_up(sockets: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = Connection(sockets[0], MAX_MESSAGE), Connection(sockets[1], MAX_MESSAGE)

    def send(letter: bytes) -> None:
        for _ in range(20):
            sender.send(1000 * letter)

    threads = [threading.Thread(target=send, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    messages = received(receiver, 60)
    for thread in threads:
        thread.join()
    assert sorted(messages) == [1000 * letter for letter in (b"a", b"b", b"c") for _ in range(20)]


def test_who_does_not_read_blocks_nobody_and_gets_the_newest_when_it_does(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = Connection(sockets[0], MAX_MESSAGE), Connection(sockets[1], MAX_MESSAGE)
    for number in range(1000):
        all_sent = sender.send(number.to_bytes(4, "big") * 25_000)
    assert not all_sent
    numbers: list[int] = []
    until = time.monotonic() + 20.0
    while 999 not in numbers and time.monotonic() < until:
        sender.flush()
        messages = receiver.receive() if receiver.wait(0.01) else []
        assert all(len(message) == 100_000 and message == message[:4] * 25_000 for message in messages)
        numbers += [int.from_bytes(message[:4], "big") for message in messages]
    assert sender.flush()
    assert numbers == sorted(numbers)
    assert numbers[-MAX_BACKLOG + 1 :] == list(range(1001 - MAX_BACKLOG, 1000))
    assert len(numbers) < 1000


def test_the_end_is_told_behind_what_came_before_it_and_sending_is_harmless_then(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sender, receiver = Connection(sockets[0], MAX_MESSAGE), Connection(sockets[1], MAX_MESSAGE)
    assert not receiver.hung_up
    sender.send(b"last")
    sender.shut()
    assert received(receiver, 1) == [b"last"]
    assert receiver.wait(10.0)
    assert receiver.hung_up
    with pytest.raises(EOFError):
        receiver.receive()
    for _ in range(3):
        assert receiver.send(b"to nobody")
    receiver.close()
    assert receiver.send(b"to nobody")


def test_a_length_that_no_message_has_is_refused(sockets: tuple[socket.socket, socket.socket]) -> None:
    connection = Connection(sockets[1], MAX_MESSAGE)
    sockets[0].sendall(HEADER.pack(MAX_MESSAGE + 1))
    assert connection.wait(10.0)
    with pytest.raises(ValueError, match="1000001 bytes was announced, 1000000 are allowed"):
        connection.receive()


def test_a_range_without_a_free_port_is_refused_by_the_name_of_its_setting() -> None:
    with closing(listen("127.0.0.1", (0, 0), "pool.ports")) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"no port of 127.0.0.1:{port}-{port} is free; widen pool.ports"):
            listen("127.0.0.1", (port, port), "pool.ports")
