"""HTTP to servers of our own, on this machine or in its cluster: never through a proxy, whatever is set."""

from __future__ import annotations

from http.client import HTTPResponse
from urllib.request import ProxyHandler, Request, build_opener


def opened(url: str | Request, timeout_s: float) -> HTTPResponse:
    """As urllib.request.urlopen."""
    answer: HTTPResponse = build_opener(ProxyHandler({})).open(url, timeout=timeout_s)
    return answer
