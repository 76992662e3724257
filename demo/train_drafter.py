"""Trains the demo drafter: `draftpool train-drafter demo/drafter.yaml` without the rest of the command line."""

import logging

from demo.prepare import ROOT
from drafters.training.config import load_config
from drafters.training.loop import train


def main() -> None:
    """Trains the drafter, or resumes its training."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(load_config(ROOT / "drafter.yaml"))


if __name__ == "__main__":
    main()
