"""`draftpool train-drafter`: sorted fine-tuning of a nested drafter, from a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help="YAML recipe, such as demo/drafter.yaml",
    )


def run(args: argparse.Namespace) -> int:
    from drafters.training.config import load_config
    from drafters.training.loop import train

    train(load_config(args.config))
    return 0
