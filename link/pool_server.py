"""The pool's end of the links: it listens, and hands the worker's thread the sockets of the targets that connect.

A target proves that it holds this replica's secret (link/handshake.py). From then on the link stands for the target:
every message over it is about that target's own sequences. An invalid message ends its link and no other. Everything
here runs on the worker's thread, except `start`, `stop`, and replies, which any thread may send.
"""

from __future__ import annotations

import itertools
import logging
import socket
from contextlib import suppress

from link.connection import Connection
from link.handshake import Handshake
from link.listening import listen
from link.pool_thread import PoolThread
from link.secret import Secret
from protocol.limits import MessageLimits
from protocol.sparing import SparingLog
from protocol.wire import PoolMessage, decode_target, encode_pool

logger = logging.getLogger(__name__)

MAX_TARGETS = 256
MAX_STRANGERS = 64  # connections that have not proved themselves
HANDSHAKE_S = 5.0
HALF_SENT_S = 10.0  # without a byte in mid-message


class PoolServer:
    def __init__(self, thread: PoolThread, secret: Secret, limits: MessageLimits) -> None:
        self.secret, self.limits = secret, limits
        self._thread = thread
        self._listener: socket.socket | None = None
        self._targets: set[_Peer] = set()
        self._strangers: dict[_Peer, None] = {}  # in the order in which they came
        self._numbers = itertools.count(1)
        self.log = SparingLog(logger, thread.now)  # of what strangers do
        self._spare = socket.socket()
        thread.sweep(self._sweep)

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
        for peer in (*self._targets, *self._strangers):
            peer.connection.shut()
        self._spare.close()

    def began(self, peer: _Peer) -> bool:
        """Makes a proved stranger a target. Returns False if there are too many."""
        del self._strangers[peer]
        if len(self._targets) >= MAX_TARGETS:
            self.log.warning(f"{MAX_TARGETS} targets draft here, no more are taken")
            return False
        self._targets.add(peer)
        logger.info("target %s drafts here", peer.owner)
        return True

    def name(self, target: str) -> str:
        """A name for this link alone: two links of targets with one name share nothing."""
        return f"{target}#{next(self._numbers)}"

    def ended(self, peer: _Peer) -> None:
        self._strangers.pop(peer, None)
        if peer in self._targets:
            self._targets.remove(peer)
            self._thread.drop(peer.owner)
            logger.info("target %s is gone", peer.owner)

    def _accept(self) -> None:
        """Accepts all who wait, since the thread looks once a pass."""
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
        """Takes a connection. If there are too many strangers, the oldest makes room: it had the most time."""
        if len(self._strangers) >= MAX_STRANGERS:
            self.log.warning(f"{MAX_STRANGERS} connections have proved nothing, the oldest is closed")
            next(iter(self._strangers)).end()
        try:
            peer = _Peer(self, self._thread, sock)
        except OSError:  # it has gone again
            sock.close()
            return
        self._strangers[peer] = None
        self._thread.watch(peer.connection, peer.on_ready)
        peer.on_ready()

    def _turn_away(self, error: OSError) -> None:
        """Accepts and closes with the spare file: with none left, the poll would report the waiting one again and
        again.
        """
        self.log.warning(f"a connection cannot be accepted: {error.strerror}")
        self._spare.close()
        with suppress(OSError):
            if self._listener is not None:
                self._listener.accept()[0].close()
        with suppress(OSError):
            self._spare = socket.socket()

    def _sweep(self, now: float) -> None:
        for peer in (*self._strangers, *self._targets):
            if why := peer.overdue(now):
                self.log.warning(f"a link is closed: {why}")
                peer.end()


class _Peer:
    """One connection: a stranger's, then a target's. owner: the target's name in the pool, after its proof."""

    def __init__(self, server: PoolServer, thread: PoolThread, sock: socket.socket) -> None:
        self.owner = ""
        self.connection = Connection(sock, server.limits.num_bytes)
        self._server, self._thread = server, thread
        self._handshake: Handshake | None = Handshake(server.secret)
        self._began = self._moved = thread.now()
        self._num_received = 0
        self._waits = False  # for room to write

    def on_ready(self) -> None:
        try:
            if self._waits and self.connection.flush():
                self._waits = False
                self._thread.watch(self.connection, self.on_ready)
            if self._handshake is None:
                self._read()
            elif self.connection.shake(self._handshake):
                self._begin(self._handshake)
        except EOFError:
            self.end()
        except ValueError as error:
            self._server.log.warning(f"a link is closed: {error}")
            self.end()
        except Exception:
            logger.exception("a message could not be acted on; its link is closed")
            self.end()

    def reply(self, message: PoolMessage) -> None:
        """Sends a reply, from any thread."""
        if not self.connection.send(encode_pool(message)) and not self._waits:
            self._waits = True
            self._thread.watch(self.connection, self.on_ready, writable=True)

    def overdue(self, now: float) -> str:
        """Why this connection has to end, if it has kept us waiting for too long."""
        if self._handshake is not None:
            late = now - self._began > HANDSHAKE_S
            return f"it has not proved itself within {HANDSHAKE_S:g} s" if late else ""
        num_received = self.connection.traffic.received_bytes
        if not self.connection.half_received or num_received != self._num_received:
            self._num_received, self._moved = num_received, now
        late = now - self._moved > HALF_SENT_S
        return f"half of a message came, and nothing more in {HALF_SENT_S:g} s" if late else ""

    def end(self) -> None:
        self._thread.unwatch(self.connection)
        self._server.ended(self)

    def _begin(self, handshake: Handshake) -> None:
        self._handshake = None
        self.owner = self._server.name(handshake.name)
        if not self._server.began(self):
            self.end()

    def _read(self) -> None:
        for data in self.connection.receive():
            self._thread.receive(decode_target(data, self.owner, self._server.limits), self.reply)
