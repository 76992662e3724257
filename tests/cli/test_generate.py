"""`draftpool generate` on a tiny family: prompts, seeds and progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from tests.cli.commands import printed, refused


def tiny(family: Path, *arguments: str) -> tuple[str, ...]:
    fixed = ("--dtype=fp32", "--threads=1", "--page-size=16", "--kv-mb=8", "--max-tokens=6", "--ignore-eos")
    return ("generate", "--target", str(family / "large"), *fixed, *arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x " * 600}, "has 1200 tokens and this model holds 512"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "b", "seed": 1 << 64}, "does not fit 64 bits"),
        ({"prompt": "b", "seed": True}, '"seed" must be a whole number'),
        ({"text": "b"}, 'needs an object with a "prompt" string'),
    ],
    ids=str,
)
def test_an_invalid_prompt_is_named_by_its_line(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path, line: dict[str, object], message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n\n" + json.dumps(line) + "\n")
    error = refused(capsys, *tiny(family, "--prompts", str(path)))
    assert error.startswith(f"draftpool: {path}:3")
    assert message in error


def test_missing_files_and_too_little_memory_are_reported(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    missing = refused(capsys, *tiny(family, "--prompts", str(tmp_path / "none.jsonl")))
    assert "none.jsonl: No such file or directory; name an existing file" in missing
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "gr\xfc\xdfe"}')
    assert "is not UTF-8" in refused(capsys, *tiny(family, "--prompts", str(tmp_path / "latin.jsonl")))
    refusal = refused(capsys, *tiny(family, "--prompt", "a", "--page-size", "99999"))
    assert "less than one page of page_size 99999" in refusal


def completed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed(capsys, *arguments).splitlines()]


def test_a_negative_seed_is_its_twos_complement_as_over_http(
    capsys: pytest.CaptureFixture[str], family: Path, tmp_path: Path
) -> None:
    sampled = tiny(family, "--json", "--temperature=1")
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "seed": -1}\n{"prompt": "a\u2028", "seed": 0}')
    in_file, _ = completed(capsys, *sampled, "--prompts", str(path))
    (negative,) = completed(capsys, *sampled, "--prompt", "a", "--seed", "-1")
    (unsigned,) = completed(capsys, *sampled, "--prompt", "a", "--seed", str((1 << 64) - 1))
    assert negative["token_ids"] == unsigned["token_ids"] == in_file["token_ids"]


def test_loading_is_shown_on_a_terminal_up_to_the_last_layer(
    capsys: pytest.CaptureFixture[str], family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "loading" not in generated_errors(capsys, family)

    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # stderr passes for a terminal
    shown = generated_errors(capsys, family)
    assert "loading large" in shown
    assert "4/4" in shown


def generated_errors(capsys: pytest.CaptureFixture[str], family: Path) -> str:
    assert main(tiny(family, "--prompt", "a")) == 0
    return capsys.readouterr().err


def test_generate_says_once_that_steps_are_slow_and_why(family: Path) -> None:
    command = [sys.executable, "-m", "cli.main", *tiny(family, "--prompt", "a", "--max-tokens", "2")]
    command += ["--drafter", str(family / "drafter")]
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr.count("no C++ compiler was found (tried CXX=no-such-compiler)") == 1
    assert done.stderr.count("steps run in plain torch, several times slower") == 1
