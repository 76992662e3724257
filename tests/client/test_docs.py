"""The examples of docs/client.md, run one by one as programs of their own against the API over a real engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from targets.engine import Engine
from tests.api.api_twins import EngineBackend, card, make_engine
from tests.client.conftest import Serve
from tests.client.servers import CALLING_TEMPLATE, Servers
from tests.deployments.harness import wait_until

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "client.md"
EXAMPLES = re.findall(
    r"^## (.+?)$|^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def titled() -> Iterator[tuple[str, str]]:
    """(heading, program)"""
    title = ""
    for heading, program in EXAMPLES:
        title = heading or title
        if program:
            yield title, program


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = make_engine(tmp_path_factory.mktemp("tiny"))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def servers(engine: Engine, serve: Serve) -> Iterator[Servers]:
    with serve(EngineBackend(engine, card("large", engine.max_length, CALLING_TEMPLATE))) as servers:
        yield servers


def test_the_document_has_examples_over_both_protocols() -> None:
    programs = [program for _, program in titled()]
    assert len(programs) >= 7
    assert {scheme for program in programs for scheme in re.findall(r'"(\w+)://', program)} == {"http", "grpc"}


@pytest.mark.parametrize(("title", "program"), list(titled()))
def test_an_example_runs_as_it_stands(servers: Servers, engine: Engine, title: str, program: str) -> None:
    here = program.replace("http://127.0.0.1:8000", servers.http).replace("grpc://127.0.0.1:9000", servers.grpc)
    assert here != program, f"the example of {title!r} calls a server"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-W", "error", "-c", here]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert bool(done.stdout) == ("print(" in program)
    wait_until(lambda: not engine.stats().num_running + engine.stats().num_waiting)
