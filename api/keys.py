"""API keys: where they come from, and whether a caller has one.

A key is held as its SHA-256 only. A comparison takes the same time for every key, right or wrong. A file of keys has
one a line; blank lines and lines that begin with # are skipped. It is read at every comparison, so a change counts at
once.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from protocol.errors import ConfigError

KEYS, ADMIN_KEYS = "DRAFTPOOL_API_KEYS", "DRAFTPOOL_ADMIN_KEYS"  # variables; keys separated by spaces or commas
LEAST, MOST = 16, 512  # characters of a key

_KEY = re.compile(rf"[\x21-\x7e]{{{LEAST},{MOST}}}")
_REMEDY = f"a key has {LEAST} to {MOST} visible ASCII characters; `openssl rand -hex 24` makes one"

logger = logging.getLogger(__name__)

Digests = tuple[bytes, ...]


class Keys(Protocol):
    def hold(self, key: str) -> bool:
        """Whether it is one of these keys."""


class FixedKeys:
    """Keys that stay the same. where: what holds them, for the error."""

    def __init__(self, keys: Sequence[str], where: str) -> None:
        self._digests = digests(keys, where)

    def hold(self, key: str) -> bool:
        return is_among(key, self._digests)


class KeyFile:
    """The keys of a file, as it is now. Raises ConfigError if they cannot be read at the start.

    A file that becomes unreadable, or gets a line that is no key, leaves the keys as they were and one line in the log.
    An empty one lets nobody in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = self._read()
        self._digests = self._parse(content)
        self._state: object = sha256(content).digest()  # of the content, or why there is none

    def hold(self, key: str) -> bool:
        self._refresh()
        return is_among(key, self._digests)

    def _refresh(self) -> None:
        state: object
        try:
            content = self._read()
            state = sha256(content).digest()
            if state != self._state:
                self._digests = self._parse(content)
                logger.info("%s has %d keys now", self._path, len(self._digests))
        except ConfigError as error:
            state = str(error)
            if state != self._state:
                logger.error("%s; the keys stay as they were", error)
        self._state = state

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the keys in {self._path}: {error.strerror}; name a file with one key a line"
            ) from None

    def _parse(self, content: bytes) -> Digests:
        lines = [line.strip() for line in content.decode("utf-8", "replace").split("\n")]
        return digests([line for line in lines if line and not line.startswith("#")], str(self._path))


class AnyOf:
    """The keys of several sources."""

    def __init__(self, sources: Sequence[Keys]) -> None:
        self._sources = sources

    def hold(self, key: str) -> bool:
        return sum([source.hold(key) for source in self._sources]) > 0


def listed_keys(environment: Mapping[str, str], variable: str) -> list[str]:
    return environment.get(variable, "").replace(",", " ").split()


def digests(keys: Sequence[str], where: str) -> Digests:
    """Raises ConfigError for a key that is none, without repeating it."""
    for number, key in enumerate(keys, start=1):
        if not _KEY.fullmatch(key):
            raise ConfigError(f"key {number} of {where} is not a key ({len(key)} characters); {_REMEDY}")
    return tuple(sha256(key.encode()).digest() for key in keys)


def is_among(key: str, known: Digests) -> bool:
    """Compares with every one, however many are equal."""
    given = sha256(key.encode("utf-8", "surrogateescape")).digest()
    return sum([hmac.compare_digest(given, digest) for digest in known]) > 0
