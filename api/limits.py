"""The size limit of a request: more than any prompt that fits a context, less than Ray Serve's own limit."""

from __future__ import annotations

MAX_BODY_BYTES = 4 << 20


def too_large(size: str, limit: int) -> str:
    """The error message. size: the number of bytes, as text."""
    return f"the request has {size} bytes, and this server takes at most {limit}; send fewer or shorter prompts"
