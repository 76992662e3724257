"""Runs commands in this process: what they print, and what they say when they refuse."""

from __future__ import annotations

import pytest

from cli.main import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The output of a command that succeeds."""
    capsys.readouterr()
    assert main(arguments) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that refuses, by a usage error or by an error of its own."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = int(str(ended.code))
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.count("\n") == 1, "one clear line"
    return captured.err
