"""HTTP requests to our own servers. They never use a proxy, and show a key if the environment has one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from http.client import HTTPResponse
from urllib.request import ProxyHandler, Request, build_opener

from api.keys import ADMIN_KEYS, KEYS, listed_keys

OWN_KEY = "DRAFTPOOL_API_KEY"  # of a caller; a server's own are let in too, so that its machine need not set both


def open_url(url: str | Request, timeout_s: float) -> HTTPResponse:
    """Like urllib.request.urlopen, without proxies. No redirection takes the key elsewhere."""
    request = Request(url) if isinstance(url, str) else url
    if (key := own_key(os.environ)) is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    response: HTTPResponse = build_opener(ProxyHandler({})).open(request, timeout=timeout_s)
    return response


def own_key(environment: Mapping[str, str]) -> str | None:
    keys = (key for variable in (OWN_KEY, ADMIN_KEYS, KEYS) for key in listed_keys(environment, variable))
    return next(keys, None)
