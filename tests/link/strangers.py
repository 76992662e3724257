"""Raw ends of a link: whoever holds the secret, and whoever does not."""

from __future__ import annotations

import socket
from contextlib import suppress

from link.connection import HEADER
from link.handshake import Handshake
from link.secret import Secret


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 10.0)


def proved(address: str, secret: Secret, name: str = "intruder") -> socket.socket:
    """A link of a name of its own, before its first message. Raises EOFError when the other side hangs up."""
    sock, handshake = connected(address), Handshake(secret, name)
    while not handshake.done:
        sock.sendall(handshake.due())
        chunk = sock.recv(handshake.missing)
        if not chunk:
            sock.close()
            raise EOFError
        handshake.feed(chunk)
    return sock


def send(sock: socket.socket, *messages: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"".join(HEADER.pack(len(message)) + message for message in messages))


def received(sock: socket.socket) -> bytes:
    """One message."""
    (length,) = HEADER.unpack(sock.recv(HEADER.size, socket.MSG_WAITALL))
    return sock.recv(length, socket.MSG_WAITALL)


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, within the socket's time-out, whatever it says before."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True
