"""What is wrong on a command line is said in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli.main import COMMANDS
from tests.cli.commands import refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("check",), "the following arguments are required: CONFIG"),
        (("serve", "no.yaml"), "cannot read no.yaml: No such file or directory; name an existing YAML file"),
        (("check", "no.yaml"), "cannot read no.yaml"),
        (("check", "a", "b"), "unrecognized arguments: b"),
        (("trace", "http://127.0.0.1:1"), "no DraftPool server answers at http://127.0.0.1:1: "),
        (("trace", "nowhere"), "no DraftPool server answers at nowhere: unknown url type"),
    ],
)
def test_a_usage_error_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *arguments)


GENERATE = ("generate", "--target", "none", "--prompt", "a")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--batch", "0", "argument --batch: '0' is not a whole number of 1 or more"),
        ("--page-size", "0", "--page-size: '0' is not"),
        ("--threads", "0", "--threads: '0' is not"),
        ("--kv-mb", "0", "--kv-mb: '0' is not"),
        ("--max-tokens", "0", "--max-tokens: '0' is not"),
        ("--length", "-1", "--length: '-1' is not a whole number from 0 to 64"),
        ("--length", "many", "--length: 'many' is not a whole number"),
        ("--depth", "x", "--depth: 'x' is not a whole number of 1 or more"),
        ("--depth", "0", "--depth: '0' is not a whole number of 1 or more"),
        ("--seed", str(1 << 64), "--seed: seed 18446744073709551616 does not fit 64 bits"),
    ],
)
def test_an_invalid_value_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert message in refused(capsys, *GENERATE, option, value)


def test_help_is_quick_and_names_every_command() -> None:
    script = "import sys, cli.main as c\ntry: c.main(['--help'])\nfinally: print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(f"\n    {name}" in output for name in COMMANDS)
    assert output.endswith("False\n")
