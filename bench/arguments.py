"""What the measuring commands have in common: options with one meaning, and how a command ends."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path

from bench import machine
from bench.command import HELD_OUT, listed
from cli.arguments import depth, whole
from model.native.library import default_threads
from protocol.errors import DraftPoolError

MODELS = machine.ROOT / "demo/models"


def measuring(description: str | None, **defaults: object) -> ArgumentParser:
    """Pairs of every depth and length with the demo drafter. defaults: in place of those here."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--drafter", type=Path, default=MODELS / "drafter")
    add("--pairs", type=whole(2), default=15, help="interleaved repetitions (default: %(default)s)")
    add("--depths", type=listed(depth), default=[2, 4, 6, "cascade"])
    add("--lengths", type=listed(whole(1, 64)), default=[1, 2, 3, 4, 6, 8])
    add("--num-prompts", type=whole(1), default=4)
    add("--max-tokens", type=whole(2), default=128)
    add("--prompts", type=Path, default=HELD_OUT)
    add("--out", type=Path)
    parser.set_defaults(**defaults)
    return parser


def add_target(parser: ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, default=MODELS / "large")


def add_threads(parser: ArgumentParser) -> None:
    parser.add_argument("--threads", type=whole(1), default=default_threads())


def add_sweep(parser: ArgumentParser, repeat: int) -> None:
    parser.add_argument("--sweep", type=whole(1), default=repeat, help="of every setting (default: %(default)s)")


def ended(name: str, run: Callable[[Namespace], int], args: Namespace) -> int:
    """The exit status: 2, and one line, for what the user can mend."""
    try:
        return run(args)
    except DraftPoolError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
