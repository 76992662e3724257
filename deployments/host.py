"""The address of the node that a replica runs on."""

from __future__ import annotations

from typing import Any

import ray.util


def resolve_host(host: str) -> str:
    """The host itself, or the address of this node for "node"."""
    node_address: Any = ray.util.get_node_ip_address  # untyped
    return str(node_address()) if host == "node" else host
