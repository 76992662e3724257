"""`draftpool serve` and `draftpool demo`: what they say, and that nothing of them is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from api.keys import KEYS
from cli.serve_command import started
from deployments.config import AppConfig, load_config
from link.listening import free_port
from tests.deployments.checkpoints import config_beside

MARK = "DRAFTPOOL_TEST_RUN"


CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8, speculation: {policy: fixed, depth: 4, length: 4}}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 8}
"""


def test_serve_says_before_it_starts_that_steps_will_be_slow(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def running(config: AppConfig, **options: Any) -> Iterator[str]:
        yield "http://here"

    monkeypatch.setattr("deployments.cluster.running", running)
    monkeypatch.setattr("deployments.process.why_not_native", lambda: "no [C++] compiler")
    config = load_config(config_beside(family, tmp_path, CONFIG))
    told = {}
    for name, changed, address in [
        ("auto", config, None),
        ("elsewhere", config, "head:6379"),
        ("eager", in_torch(config), None),
    ]:
        console = Console(file=StringIO())
        with started(changed, console, address):
            told[name] = console.file.getvalue().count(  # type: ignore[attr-defined]
                "warning: no [C++] compiler; steps run in plain torch, several times slower"
            )
    assert told == {"auto": 1, "elsewhere": 0, "eager": 0}


def in_torch(config: AppConfig) -> AppConfig:
    targets = tuple(target.model_copy(update={"execution": "eager"}) for target in config.targets)
    assert config.pool is not None
    pool = config.pool.model_copy(update={"execution": "eager"})
    return config.model_copy(update={"targets": targets, "pool": pool})


@pytest.fixture
def run_marker() -> Iterator[dict[str, str]]:
    """An environment by which every process of a run is known; none may be left, nor any file of theirs. It names
    proxies that lead nowhere: nothing of ours goes through one.
    """
    folder = tempfile.mkdtemp(prefix="t-")
    mark = uuid4().hex
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    yield os.environ | proxies | {MARK: mark, "TMPDIR": folder, "no_proxy": "localhost,127.0.0.1"}
    left = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and is_marked(pid, mark)]
    assert left == []
    assert os.listdir(folder) == []
    shutil.rmtree(folder)


def is_marked(process: Path, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


@pytest.mark.ray
def test_demo_streams_from_every_target_and_leaves_nothing_running(
    family: Path, tmp_path: Path, run_marker: dict[str, str]
) -> None:
    patient = CONFIG.replace("length: 4}", "length: 4, deadline_ms: 20000}")
    config = str(config_beside(family, tmp_path, patient + "ingress: {num_cpus: 0}"))
    command = [sys.executable, "-m", "cli.main", "demo", "--config", config, "--max-tokens", "40", "--pairs", "2"]
    keys = {KEYS: "key-of-the-environment"}  # the server demands it, and the demo shows it
    done = subprocess.run(command, capture_output=True, text=True, env=run_marker | keys, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│ large")]
    assert [(name.strip(), text.strip()) for name, *_, text in rows] == [("large", "the same")]
    without, with_pool, gain, accepted = (float(cell.strip(" x")) for cell in rows[0][1:5])
    assert min(without, with_pool, gain) > 0
    assert accepted > 2  # of at most 5; rounds without a draft when the machine is busy
    assert "replicas: large 1 x 1 thread, drafter 1 x 1 thread; steps by " in done.stdout
    assert "raylet" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_serve_stops_clean_on_sigterm(family: Path, tmp_path: Path, run_marker: dict[str, str]) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "serve",
        str(config_beside(family, tmp_path, CONFIG)),
        "--port",
        str(port),
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=run_marker | {"PYTHONUNBUFFERED": "1"}
    )
    assert server.stdout is not None
    greeting = [server.stdout.readline() for _ in range(4)]
    assert greeting[0] == f"large at http://127.0.0.1:{port}/v1\n"
    assert any(line.startswith(f"curl http://127.0.0.1:{port}/v1/chat/completions") for line in greeting)
    for path in ("health", "v1/models", "debug/stats"):  # on loopback, without keys
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as response:
            assert response.status == 200
    server.send_signal(signal.SIGTERM)
    output, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in output + errors
