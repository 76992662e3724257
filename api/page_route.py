"""The page at `/`: a chat and a live view, made of static files that ask the same API as everybody.

It needs no key; what it asks for does. The browser is told to load nothing from elsewhere, to run no script but these
files, and to show the page inside no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request, Response

FOLDER = Path(__file__).parent / "page"
INDEX, ROOT = "index.html", "/"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SCRIPTS = ("answer", "api", "cards", "chat", "dom", "live", "main", "sources", "timeline", "tokens", "tracks")
PATHS = {ROOT: INDEX} | {f"/page/{name}": name for name in ("style.css", "icon.svg", *(f"{one}.js" for one in SCRIPTS))}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked about each time: a new version counts at once
}


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    media_type: str
    etag: str


def read_assets() -> Mapping[str, Asset]:
    """The files of the page, by path."""
    return {path: _read(FOLDER / name) for path, name in PATHS.items()}


def add_page_routes(app: FastAPI) -> None:
    assets = read_assets()

    async def asset(request: Request) -> Response:
        one = assets[request.scope["route"].path]
        headers = HEADERS | {"etag": one.etag}
        if one.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(one.content, media_type=one.media_type, headers=headers)

    for path in assets:
        app.add_api_route(path, asset, include_in_schema=False)


def _read(file: Path) -> Asset:
    content = file.read_bytes()
    return Asset(content, TYPES[file.suffix], f'"{sha256(content).hexdigest()[:16]}"')
