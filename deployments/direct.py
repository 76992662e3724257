"""HTTP requests to our own servers. They never use a proxy, whatever the environment sets."""

from __future__ import annotations

from http.client import HTTPResponse
from urllib.request import ProxyHandler, Request, build_opener


def open_url(url: str | Request, timeout_s: float) -> HTTPResponse:
    """Like urllib.request.urlopen, without proxies."""
    response: HTTPResponse = build_opener(ProxyHandler({})).open(url, timeout=timeout_s)
    return response
