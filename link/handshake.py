"""How the two ends of a link prove to each other that they hold its secret, before its first message.

    target   magic, nonce, its name behind its length    -->
             <-- magic, nonce                                   pool
             proof                                       -->
             <-- proof

The target proves itself first; only then does the pool. A proof covers both nonces, the name and the role of its maker,
so it can be neither replayed nor sent back. From then on the link belongs to that target, and messages carry no name.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator

from link.secret import NUM_BYTES, Secret

MAGIC = b"draftpool link 4\n"
NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Handshake:
    """One end of a handshake: bytes in, bytes out."""

    def __init__(self, secret: Secret, name: str | None = None) -> None:
        """name: of the target, at its own end; None at the pool's. Raises ValueError for an invalid name."""
        self.name = "" if name is None else _checked(name)
        self.done = False
        self._secret = secret
        self._nonce = secrets.token_bytes(NUM_BYTES)
        self._out, self._received = bytearray(), bytearray()
        self._steps = self._pool() if name is None else self._target()
        self._wanted = next(self._steps)

    @property
    def missing(self) -> int:
        """How many bytes may be read now: those of this step, and no more."""
        return self._wanted - len(self._received)

    def due(self) -> bytes:
        """What is to be sent now."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def feed(self, data: bytes) -> None:
        """data: at most `missing` bytes. Raises ValueError for a stranger."""
        self._received += data
        if self.missing:
            return
        step = bytes(self._received)
        self._received.clear()
        try:
            self._wanted = self._steps.send(step)
        except StopIteration:
            self.done, self._wanted = True, 0

    def _target(self) -> Generator[int, bytes, None]:
        name = self.name.encode()
        self._out += MAGIC + self._nonce + bytes([len(name)]) + name
        _check_magic((yield len(MAGIC)))
        other = yield NUM_BYTES
        self._out += self._proof(b"target", self._nonce, other)
        self._check((yield NUM_BYTES), b"pool", self._nonce, other)

    def _pool(self) -> Generator[int, bytes, None]:
        self._out += MAGIC + self._nonce
        _check_magic((yield len(MAGIC)))
        other = yield NUM_BYTES
        length = (yield 1)[0]
        self.name = _checked((yield length or 1).decode("ascii", "replace"))
        self._check((yield NUM_BYTES), b"target", other, self._nonce)
        self._out += self._proof(b"pool", other, self._nonce)

    def _proof(self, who: bytes, target: bytes, pool: bytes) -> bytes:
        return self._secret.proof(MAGIC, who, target, pool, self.name.encode())

    def _check(self, proof: bytes, who: bytes, target: bytes, pool: bytes) -> None:
        if not self._secret.proves(proof, MAGIC, who, target, pool, self.name.encode()):
            raise ValueError("the other side does not hold this replica's secret")


def _check_magic(magic: bytes) -> None:
    if magic != MAGIC:
        raise ValueError("what it sends is no greeting of this version; deploy both sides from one version")


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:128]!r} is no name for a link; it takes 1 to 128 letters, digits and ._:-")
    return name
