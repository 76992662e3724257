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

MAX_STREAMS = 256


class PoolServer:
    def __init__(self, thread: PoolThread) -> None:
        self._thread = thread
        self._listener: socket.socket | None = None
        self._streams: dict[str, _Stream] = {}
        self._all: dict[_Stream, None] = {}  # in the order in which they came
        self._spare = socket.socket()

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
        self._spare.close()

    def _accept(self) -> None:
        """All who wait: the thread looks once a pass."""
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._turn_away(error)
                return
            self._open(sock)

    def _open(self, sock: socket.socket) -> None:
        nameless = next((stream for stream in self._all if stream.incarnation is None), None)
        if len(self._all) >= MAX_STREAMS and nameless is not None:
            nameless.end()  # it had all the time since
        if len(self._all) >= MAX_STREAMS:
            logger.warning("a connection is refused: %d targets draft here", MAX_STREAMS)
            sock.close()
            return
        try:
            stream = _Stream(self, self._thread, sock)
        except OSError:  # it has gone again
            sock.close()
            return
        self._all[stream] = None
        self._thread.watch(stream.connection, stream.on_ready)

    def _turn_away(self, error: OSError) -> None:
        """Without a file to accept with, whoever waits would be told of again and again: the spare one is for that."""
        logger.warning("a connection cannot be accepted: %s", error.strerror)
        self._spare.close()
        with suppress(OSError):
            if self._listener is not None:
                self._listener.accept()[0].close()
        with suppress(OSError):
            self._spare = socket.socket()

    def began(self, stream: _Stream, incarnation: str) -> None:
        self._streams[incarnation] = stream
        logger.info("target %s drafts here", incarnation)

    def ended(self, stream: _Stream) -> None:
        """A target that has come back on a newer stream keeps its sequences."""
        self._all.pop(stream, None)
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
            self.end()
        except Exception as error:
            logger.warning("a target's link is closed: %s", error)
            self.end()

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

    def end(self) -> None:
        self._thread.unwatch(self.connection)
        self._server.ended(self)
