"""The pool's end of the links: it listens, and hands the worker's thread the sockets of the targets that connect.

Everything here runs on that thread, save `start` and `stop`, and replies that somebody else may send.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

from deployments.connection import GREETING, Connection
from deployments.listening import listen
from deployments.pool_thread import PoolThread
from protocol.wire import PoolMessage, decode_target, encode_pool

logger = logging.getLogger(__name__)

MAX_STREAMS = 1024


class PoolServer:
    def __init__(self, thread: PoolThread) -> None:
        self._thread = thread
        self._listener: socket.socket | None = None
        self._streams: dict[str, _Stream] = {}
        self._all: set[_Stream] = set()

    @property
    def num_streams(self) -> int:
        """Targets that draft here."""
        return len(self._streams)

    def start(self, host: str, ports: tuple[int, int]) -> str:
        """The address to be reached at. Raises ConfigError when no port of the range is free."""
        self._listener = listen(host, ports, "pool.ports")
        self._listener.setblocking(False)
        self._thread.watch(self._listener, self._accept)
        return f"{host}:{self._listener.getsockname()[1]}"

    def stop(self) -> None:
        """Targets see the end at once, also while the worker is busy."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            self._thread.unwatch(listener)
        for stream in tuple(self._all):
            stream.connection.shut()

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()[0] if self._listener else None
        except OSError:  # it has gone again, or there are no more files
            return
        if sock is not None and len(self._all) >= MAX_STREAMS:
            logger.warning("a connection is refused: there are %d already", MAX_STREAMS)
            sock.close()
        elif sock is not None:
            stream = _Stream(self, self._thread, sock)
            self._all.add(stream)
            self._thread.watch(stream.connection, stream.on_ready)

    def began(self, stream: _Stream, incarnation: str) -> None:
        self._streams[incarnation] = stream
        logger.info("target %s drafts here", incarnation)

    def ended(self, stream: _Stream) -> None:
        """A target that has come back on a newer stream keeps its sequences."""
        self._all.discard(stream)
        incarnation = stream.incarnation
        if incarnation is not None and self._streams.get(incarnation) is stream:
            del self._streams[incarnation]
            self._thread.drop(incarnation)
            logger.info("target %s is gone", incarnation)


class _Stream:
    """One target's. Its first message names the target."""

    def __init__(self, server: PoolServer, thread: PoolThread, sock: socket.socket) -> None:
        self.incarnation: str | None = None
        self._server, self._thread = server, thread
        with suppress(OSError):
            sock.send(GREETING)
        self.connection = Connection(sock)
        self._greeted = self._waits = False  # waits: for room to write

    def on_ready(self) -> None:
        try:
            if self._waits and self.connection.flush():
                self._waits = False
                self._thread.watch(self.connection, self.on_ready)
            self._read()
        except EOFError:
            self._end()
        except Exception as error:
            logger.warning("a target's link is closed: %s", error)
            self._end()

    def reply(self, message: PoolMessage) -> None:
        """For any thread."""
        if not self.connection.send(encode_pool(message)) and not self._waits:
            self._waits = True
            self._thread.watch(self.connection, self.on_ready, writable=True)

    def _read(self) -> None:
        if not self._greeted:
            self._greeted = self.connection.greeted()
            return
        for data in self.connection.receive():
            message = decode_target(data)
            if self.incarnation is None:
                self.incarnation = message.incarnation
                self._server.began(self, message.incarnation)
            self._thread.receive(message, self.reply)

    def _end(self) -> None:
        self._thread.unwatch(self.connection)
        self._server.ended(self)
