"""The secret that two ends of a connection prove to each other, and the proof.

The side that listens makes its own at start and tells it to those who ask over Serve: only members of the application
can. Without Serve a file or a variable names it. It stands in no config, manifest, log or repr.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

from protocol.errors import ConfigError

FILE, VARIABLE = "DRAFTPOOL_SECRET_FILE", "DRAFTPOOL_SECRET"
NUM_BYTES = 32  # of a key, a nonce and a proof
LEAST = 16  # bytes of a key that somebody else made


class Secret:
    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < LEAST:
            raise ConfigError(f"a secret of {len(key)} bytes can be guessed; give at least {LEAST}")
        self._key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    @classmethod
    def fresh(cls) -> Secret:
        return cls(secrets.token_bytes(NUM_BYTES))

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Secret:
        """The secret that the environment names, else a fresh one. Raises ConfigError."""
        if path := environment.get(FILE):
            try:
                return cls(Path(path).read_bytes().strip())
            except OSError as error:
                raise ConfigError(f"cannot read {path}, which {FILE} names: {error.strerror}") from None
        given = environment.get(VARIABLE)
        return cls(given.encode()) if given else cls.fresh()

    def proof(self, *parts: bytes) -> bytes:
        """HMAC-SHA256 over the parts, each behind its length."""
        return hmac.digest(self._key, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")

    def proves(self, proof: bytes, *parts: bytes) -> bool:
        """Whether a proof is right, in a time that does not depend on where it differs."""
        return hmac.compare_digest(proof, self.proof(*parts))
