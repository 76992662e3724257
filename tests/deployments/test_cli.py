from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from deployments.cli import COMMANDS, main
from tests.deployments.checkpoints import make_model

MARK = "DRAFTPOOL_TEST_RUN"
CONFIG = """
targets:
  - {name: large, path: large, dtype: fp32, page_size: 16, kv_mb: 8, speculation: {depth: 4, length: 4}}
pool: {path: drafter, dtype: fp32, page_size: 16, kv_mb: 8}
"""


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(str(ended.code))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "one clear line"
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("serve",), "the following arguments are required: CONFIG"),
        (("serve", "no.yaml"), "cannot read no.yaml: No such file or directory; name an existing YAML file"),
        (("check", "no.yaml"), "cannot read no.yaml"),
        (("check", "a", "b"), "unrecognized arguments: b"),
    ],
)
def test_a_usage_error_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)


def test_help_is_quick_and_names_every_command() -> None:
    script = "import sys, deployments.cli as c\ntry: c.main(['--help'])\nfinally: print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(f"\n    {name}" in output for name in COMMANDS)
    assert output.endswith("False\n")


def write(family: Path, text: str, tmp_path: Path) -> str:
    for name in ("large", "small", "drafter"):
        (tmp_path / name).symlink_to(family / name)
    (tmp_path / "app.yaml").write_text(text)
    return str(tmp_path / "app.yaml")


def test_check_tells_what_would_be_served(capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path) -> None:
    assert main(["check", write(family, CONFIG, tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "target large: llama, 4 layers, fp32, depth 4, length 4",
        "pool: 1 replicas, fp32, exits 2, 4",
        "ok",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("depth: 4", "depth: 3", "speculation of target large asks for depth 3; the drafter has the exits 2, 4"),
        ("page_size: 16, kv_mb: 8, spec", "max_model_len: 9999, spec", "max_model_len 9999 of target large exceeds"),
        ("path: large", "path: ./nowhere", "nowhere is not a directory"),
        ("path: drafter", "path: other", "have different vocabularies; train a drafter for it"),
    ],
)
def test_check_refuses_what_does_not_fit_together(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    other = tmp_path / "other"
    make_model(other, 2, seed=3)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = CONFIG.replace(old, new).replace("depth: 4", "depth: 2") if "other" in new else CONFIG.replace(old, new)
    capsys.readouterr()
    assert message in refused(capsys, "check", write(family, text, tmp_path))


@pytest.fixture
def run_marker() -> Iterator[dict[str, str]]:
    """An environment by which every process of a run is known; none may be left, nor any file of theirs."""
    folder = tempfile.mkdtemp(prefix="t-")
    mark = uuid4().hex
    yield os.environ | {MARK: mark, "TMPDIR": folder}
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
@pytest.mark.timeout(120)
def test_demo_streams_from_every_target_and_leaves_nothing_running(
    family: Path, tmp_path: Path, run_marker: dict[str, str]
) -> None:
    config = write(family, CONFIG + "ingress: {num_cpus: 0}", tmp_path)
    command = [sys.executable, "-m", "deployments.cli", "demo", "--config", config, "--max-tokens", "40"]
    done = subprocess.run(command, capture_output=True, text=True, env=run_marker, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("│ large")]
    tokens, rounds = (int(cell) for cell in row.split("│")[2:4])
    assert (tokens, rounds) == (40, 8)
    assert float(row.split("│")[4]) > 3.5
    assert "raylet" not in done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_serve_stops_clean_on_sigterm(family: Path, tmp_path: Path, run_marker: dict[str, str]) -> None:
    from deployments.cluster import free_port

    port = free_port()
    command = [sys.executable, "-m", "deployments.cli", "serve", write(family, CONFIG, tmp_path), "--port", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=run_marker | {"PYTHONUNBUFFERED": "1"}
    )
    assert server.stdout is not None
    greeting = [server.stdout.readline() for _ in range(4)]
    assert greeting[0] == f"large at http://127.0.0.1:{port}/v1\n"
    assert any(line.startswith(f"curl http://127.0.0.1:{port}/v1/completions") for line in greeting)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as response:
        assert response.status == 200
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    output, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert time.monotonic() - began < 30
    assert "Traceback" not in output + errors
