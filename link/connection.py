"""Messages over a connected socket, without an event loop and without a thread: the caller reads them itself.

A message is its length in four bytes, then that many bytes. Sending never blocks: what the kernel does not take is
kept, up to MAX_BACKLOG messages; then the oldest is dropped, since a side that does not read is late anyway. Before the
first message both sides prove who they are (link/handshake.py); until then only the bytes of the proof are read.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from link.handshake import Handshake

HEADER = struct.Struct("!I")
MAX_BACKLOG = 64
CHUNK = 1 << 18
BUFFER = 1 << 20  # bytes that the kernel is asked to hold on their way out

# A dead machine sends no reset: probes find it, and the draft deadline covers the seconds until then.
KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 13_000))


@dataclass(frozen=True, slots=True)
class Traffic:
    sent_bytes: int = 0
    received_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.sent_bytes + other.sent_bytes, self.received_bytes + other.received_bytes)


class Connection:
    """One thread at a time reads, any thread sends. A broken connection drops what is sent; its reader learns of the
    end.
    """

    def __init__(self, sock: socket.socket, max_message: int) -> None:
        """max_message: bytes that the other side may send at a time."""
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):  # not every system has all of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = sock
        self._max_message = max_message
        self._sending = threading.Lock()
        self._backlog: deque[memoryview] = deque()
        self._received = bytearray()
        self._num_sent = self._num_received = 0
        self._poll, self._end = select.poll(), select.poll()
        self._end.register(sock, getattr(select, "POLLRDHUP", 0))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: bytes) -> bool:
        """Returns False if something is left for `flush`."""
        with self._sending:
            if len(self._backlog) >= MAX_BACKLOG:
                del self._backlog[1]  # the first may be half sent
            self._backlog.append(memoryview(HEADER.pack(len(message)) + message))
            return self._flush()

    def flush(self) -> bool:
        """Sends what was kept. Returns False if something is still left."""
        with self._sending:
            return self._flush()

    @property
    def events(self) -> int:
        """What its reader waits for: something to receive, and room to send what is kept."""
        return select.POLLIN | (select.POLLOUT if self._backlog else 0)

    @staticmethod
    def ready(connections: Sequence[Connection], timeout_s: float) -> list[int]:
        """The indices of those with something for their reader. Waits up to so many seconds for the first."""
        places = {connection.fileno(): place for place, connection in enumerate(connections)}
        closed = places.pop(-1, None)
        if closed is not None:
            return [closed]
        poll = select.poll()
        for number, place in places.items():
            poll.register(number, connections[place].events)
        return [places[number] for number, _ in poll.poll(1e3 * max(timeout_s, 0.0))]

    def wait(self, timeout_s: float) -> bool:
        """Whether within so many seconds there is something to receive, the end included, or room to send what is kept.

        Called by the reader. Sends what is kept.
        """
        self._poll.register(self._socket, self.events)
        ready = bool(self._poll.poll(1e3 * max(timeout_s, 0.0)))
        if self._backlog:
            self.flush()
        return ready

    def receive(self) -> list[bytes]:
        """The messages that are complete now. Raises EOFError at the end of the connection, whatever ended it, and
        ValueError for a message beyond the limit.
        """
        chunk = self._read(CHUNK)
        self._received += chunk
        self._num_received += len(chunk)
        return self._messages() if chunk else []

    def shake(self, handshake: Handshake) -> bool:
        """Continues the handshake with what has arrived. Returns whether it is done. Raises as `receive`, and
        ValueError for a stranger.
        """
        while True:
            self._send(handshake.due())
            if handshake.done:
                return True
            chunk = self._read(handshake.missing)
            if not chunk:
                return False
            handshake.feed(chunk)

    @property
    def half_received(self) -> bool:
        """Whether a message has arrived in part."""
        return bool(self._received)

    @property
    def traffic(self) -> Traffic:
        """So far, without handshakes."""
        return Traffic(self._num_sent, self._num_received)

    @property
    def hung_up(self) -> bool:
        """Whether the other side is known to be gone, even if there is still something to read."""
        return bool(self._end.poll(0))

    def shut(self) -> None:
        """Shuts the socket, from any thread: both sides see the end at once. The reader then closes it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket. Called by the reader, or when there is none any more."""
        with self._sending:
            self._socket.close()

    def _read(self, most: int) -> bytes:
        """Up to so many bytes of what has arrived, possibly none. Raises EOFError."""
        try:
            chunk = self._socket.recv(most)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise EOFError(f"the connection broke: {error}") from None
        if not chunk:
            raise EOFError("the other side has closed the connection")
        return chunk

    def _send(self, data: bytes) -> None:
        """Sends the bytes at once: so early in a connection there is room for them."""
        try:
            if data and self._socket.send(data) < len(data):
                raise EOFError("the other side does not read")
        except OSError as error:
            raise EOFError(f"the connection broke: {error}") from None

    def _flush(self) -> bool:
        try:
            while self._backlog:
                sent = self._socket.send(self._backlog[0])
                self._num_sent += sent
                if sent < len(self._backlog[0]):
                    self._backlog[0] = self._backlog[0][sent:]
                else:
                    self._backlog.popleft()
        except BlockingIOError:
            return False
        except OSError:
            self._backlog.clear()
        return True

    def _messages(self) -> list[bytes]:
        messages, at = [], 0
        while len(self._received) - at >= HEADER.size:
            (length,) = HEADER.unpack_from(self._received, at)
            if length > self._max_message:
                raise ValueError(f"a message of {length} bytes was announced, {self._max_message} are allowed")
            if len(self._received) - at - HEADER.size < length:
                break
            at += HEADER.size + length
            messages.append(bytes(self._received[at - length : at]))
        del self._received[:at]
        return messages
