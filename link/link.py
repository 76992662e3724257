"""One open connection from a target replica to a draft replica, read by the thread that waits for its messages.

An invalid message ends the link, and the target decodes plainly until the next one.

The engine's thread reads the socket itself, without an event loop or another thread in between: each change of thread
costs a tenth of a millisecond or more beside a pass that sweeps the caches, and a draft takes less than one.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence

from link.connection import Connection, Traffic
from link.discovery import PoolMember
from link.handshake import Handshake
from protocol.limits import REPLY_BYTES, parts
from protocol.wire import CloseSequences, PoolMessage, TargetMessage, decode_pool, encode_target

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
CLOSE_S = 1.0

OnMessage = Callable[["Link", PoolMessage], None]
OnEnd = Callable[["Link"], None]


class Link:
    """One link to a draft replica, for any thread.

    on_message is called by the thread that reads, and raises ValueError for an invalid message. on_end is called once,
    by the thread that finds the end.
    """

    def __init__(
        self,
        member: PoolMember,
        name: str,
        connection: Connection,
        on_message: OnMessage,
        on_end: OnEnd,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: of the target, which proved it. clock: of timeouts."""
        self.member = member
        self._name = name
        self.open = True
        self.connection = connection
        self._on_message = on_message
        self._on_end = on_end
        self._clock = clock
        self._reading = threading.Lock()
        self._ending = threading.Lock()

    def send(self, message: TargetMessage) -> None:
        """Drops the message if a pool that does not read leaves no room: an old request is worth nothing."""
        if not self.open:
            return
        try:
            if isinstance(message, CloseSequences):
                self.connection.send(encode_target(message))
                return
            for part in parts(message, self.member.limits):
                self.connection.send(encode_target(part))
        except Exception:
            logger.exception("writing to draft replica %s failed", self.member.incarnation)
            self._end()

    def read(self, timeout_s: float = 0.0) -> None:
        """Hands on what has arrived, and waits up to so long for something, even while another thread reads."""
        until = self._clock() + timeout_s
        if not self._reading.acquire(timeout=max(timeout_s, 0.0)):
            return
        try:
            if self.open and self.connection.wait(until - self._clock()):
                for message in self.connection.receive():
                    self._on_message(self, decode_pool(message, self._name))
        except EOFError as error:
            logger.info("draft replica %s: %s", self.member.incarnation, error)
            self._end()
        except ValueError as error:
            logger.warning("draft replica %s is left: %s", self.member.incarnation, str(error)[:300])
            self._end()
        except Exception:
            logger.exception("reading from draft replica %s failed", self.member.incarnation)
            self._end()
        finally:
            if not self.open:
                self.connection.close()
            self._reading.release()

    @property
    def traffic(self) -> Traffic:
        return self.connection.traffic

    def check(self) -> None:
        """Called while nobody reads: sends what was kept, and ends the link if the replica is gone."""
        if self.open:
            self.connection.flush()
        if self.open and self.connection.hung_up:
            self.close()

    def close(self) -> None:
        """Also ends the reading of another thread at once."""
        self._end()
        if self._reading.acquire(timeout=CLOSE_S):
            self.connection.close()
            self._reading.release()

    def _end(self) -> None:
        with self._ending:
            was_open, self.open = self.open, False
        if was_open:
            self.connection.shut()
            self._on_end(self)


def read_any(links: Sequence[Link], timeout_s: float) -> None:
    """Hands on what has arrived over any of the links, and waits up to so long for something."""
    if len(links) == 1:
        links[0].read(timeout_s)
        return
    for link in links[0].connection.ready([link.connection for link in links], timeout_s):
        links[link].read()


def connect(member: PoolMember, name: str) -> Connection | None:
    """None if nobody who holds the replica's secret answers there in time. name: of this target."""
    try:
        return _connect(member, name, time.monotonic() + CONNECT_TIMEOUT_S)
    except (OSError, EOFError) as error:
        logger.info("%s cannot be reached: %s", member.address, error)
    except ValueError as error:
        logger.warning("%s: %s", member.address, error)
    return None


def _connect(member: PoolMember, name: str, until: float) -> Connection:
    """Raises OSError, EOFError, and ValueError for a stranger."""
    if member.secret is None:
        raise ValueError("nobody told the secret of this draft replica")
    host, _, port = member.address.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)
    try:
        connection, handshake = Connection(sock, REPLY_BYTES), Handshake(member.secret, name)
        while not connection.shake(handshake):
            if not connection.wait(until - time.monotonic()):
                raise TimeoutError("it does not prove who it is")
        return connection
    except BaseException:
        sock.close()
        raise
