"""Where a replica listens for the streams of others."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from protocol.errors import ConfigError


def bind(add_port: Callable[[str], int], host: str, ports: tuple[int, int], key: str) -> int:
    """Binds the first free port of a range; (0, 0) stands for any port. Raises ConfigError naming the key if none is
    free.
    """
    for port in range(ports[0], ports[1] + 1):
        try:
            return add_port(f"{host}:{port}")
        except RuntimeError:
            continue
    raise ConfigError(f"no port of {host}:{ports[0]}-{ports[1]} is free; widen {key}")


def listen(host: str, ports: tuple[int, int], key: str) -> socket.socket:
    """A listening socket at the first free port of the range. Raises ConfigError as `bind`."""
    found: list[socket.socket] = []

    def add_port(address: str) -> int:
        try:
            found.append(socket.create_server((host, int(address.rpartition(":")[2]))))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen at {address}: {error.strerror}; change {key} or the host") from None
            raise RuntimeError(str(error)) from None
        return 0

    bind(add_port, host, ports, key)
    return found[0]


def free_port() -> int:
    """On loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
