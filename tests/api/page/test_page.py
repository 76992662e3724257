"""The page without a browser: what is served, to whom, under which policy, and that it loads nothing from elsewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from api.door import Door
from api.keys import FixedKeys
from api.page_route import FOLDER, PATHS, ROOT, TYPES
from tests.api.api_client import Client, error_of
from tests.api.api_twins import ScriptedBackend, says

MOST_BYTES = 96 << 10  # of all files together, unpacked
DIRECTIVES = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
}
FILES = sorted(FOLDER.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
MARKUP_OR_CODE = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(\"on|javascript:"
)


@pytest.mark.parametrize("path", PATHS)
async def test_a_file_comes_as_it_is_with_its_type_and_a_strict_policy(client: Client, path: str) -> None:
    answer = await client.get(path)
    file = FOLDER / PATHS[path]
    assert (answer.status_code, answer.content) == (200, file.read_bytes())
    assert answer.headers["content-type"].startswith(TYPES[file.suffix])
    assert set(answer.headers["content-security-policy"].split("; ")) == DIRECTIVES
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", PATHS)
async def test_a_file_that_the_browser_has_is_not_sent_again(client: Client, path: str) -> None:
    first = await client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await client.get(path, headers={"if-none-match": '"of-an-older-version"'})
    assert other.status_code == 200


def test_every_file_of_the_folder_is_served_and_travels_with_the_package() -> None:
    assert {file.name for file in FILES} == set(PATHS.values())
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "page/*" in project["tool"]["setuptools"]["package-data"]["api"]


@pytest.mark.parametrize("path", ["/page/", "/page/../http.py", "/page/%2e%2e/http.py", "/page/none.js", "/index.html"])
async def test_nothing_else_is_served(client: Client, path: str) -> None:
    error_of(await client.get(path), 404)


async def test_the_page_needs_no_key_and_what_it_asks_for_does() -> None:
    door = Door(FixedKeys(["k" * 16], "test"), FixedKeys(["a" * 16], "test"))
    async with Client(ScriptedBackend(says("a")), door=door) as client:
        assert {path: (await client.get(path)).status_code for path in PATHS} == dict.fromkeys(PATHS, 200)
        refused = ["/v1/models", "/version", "/debug/stats", "/page", "/page/none.js"]
        assert {path: (await client.get(path)).status_code for path in refused} == dict.fromkeys(refused, 401)
        caller: Any = {"authorization": f"Bearer {'k' * 16}"}
        assert (await client.get("/v1/models", headers=caller)).status_code == 200
        assert (await client.get("/debug/stats", headers=caller)).status_code == 401, "the page says what it lacks"


def test_no_file_names_another_site() -> None:
    for file in FILES:
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name


def test_whatever_a_file_refers_to_is_served() -> None:
    """So a page behind a prefix works too: nothing is referred to from the root."""
    index = (FOLDER / PATHS[ROOT]).read_text(encoding="utf-8")
    references = re.findall(r"(?:src|href)=\"([^\"#]+)\"", index)
    assert len(references) == 3
    assert {f"/{name}" for name in references} <= set(PATHS)
    for file in SCRIPTS:
        for name in re.findall(r"from \"\./([^\"]+)\"", file.read_text(encoding="utf-8")):
            assert f"/page/{name}" in PATHS, f"{file.name} imports {name}"


def test_the_markup_has_no_script_no_style_and_no_handler_of_its_own() -> None:
    index = (FOLDER / PATHS[ROOT]).read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", index) == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_makes_markup_or_code_of_text(file: Path) -> None:
    assert re.findall(MARKUP_OR_CODE, file.read_text(encoding="utf-8")) == []


def test_files_are_few_short_and_small() -> None:
    assert sum(file.stat().st_size for file in FILES) <= MOST_BYTES
    for file in SCRIPTS:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 200, file.name


async def test_requests_are_counted_by_path(client: Client) -> None:
    await client.get("/")
    counts = (await client.get("/metrics")).text
    assert re.search(r'draftpool_http_responses_total\{replica="0",route="/",status="200"\} 1\.0', counts)
