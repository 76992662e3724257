"""What the import linter cannot see: fresh interpreters, and paths that the prose names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from api.refused import CallRefused

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ["torch", "transformers", "ray", "fastapi"]
LIGHT = [
    *(f"protocol.{p.stem}" for p in (ROOT / "protocol").glob("*.py")),
    *(f"router.{p.stem}" for p in (ROOT / "router").glob("*.py")),
    "model.pages",
    "model.prefixes",
    "targets.sequence",
    "targets.scheduler",
    "targets.verify",
    "targets.drafting",
    "drafters.depth",
    "drafters.shared",
]


def imported(modules: list[str], heavy: list[str]) -> str:
    """Which of the heavy modules a fresh interpreter holds once the given ones are imported."""
    code = f"import {', '.join(modules)}, sys; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_serves_proxy_imports_nothing_heavy_to_read_that_a_call_is_refused():
    """It has the exception from us with pickle, which imports the module of its class."""
    assert imported([CallRefused.__module__], [*HEAVY, "pydantic", "api.rpc"]) == ""


def test_decisions_and_bookkeeping_import_nothing_heavy():
    assert imported(LIGHT, HEAVY) == ""


def test_the_client_imports_nothing_of_the_server_that_is_heavy():
    assert imported(["draftpool"], [*HEAVY, "tokenizers", "starlette", "numpy"]) == ""


def test_the_engine_and_the_api_import_no_ray():
    assert imported(["targets.engine", "drafters.worker", "api.http", "cli.generate"], ["ray"]) == ""


def test_the_ingress_imports_no_torch():
    assert imported(["deployments.ingress"], ["torch"]) == ""


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_every_path_in_the_prose_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml|txt))`", text))
    missing = sorted(
        path for path in named if not (ROOT / path).exists() and not path.startswith(("v1/", "demo/.work"))
    )
    assert missing == []


def test_package_init_files_are_empty():
    packages = ["protocol", "router", "model", "targets", "drafters", "deployments", "bench", "demo"]
    full = [p for name in packages for p in (ROOT / name).rglob("__init__.py") if p.read_text().strip()]
    assert full == []
