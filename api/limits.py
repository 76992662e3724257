"""How large a request may be: more than any prompt that fits a context, less than what Serve's processes pass on."""

from __future__ import annotations

MAX_BODY_BYTES = 4 << 20


def too_large(size: str, limit: int) -> str:
    """size: the number of bytes, in words."""
    return f"the request has {size} bytes and this server takes {limit} at most; send fewer or shorter prompts"
