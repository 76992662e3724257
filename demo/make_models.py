"""Runs the whole recipe: corpus and tokenizer, large, small, drafter, evaluation.

Finished stages are skipped, and an interrupted stage resumes at its last checkpoint, so the command can be run again.
"""

import logging

from demo import evaluate
from demo.prepare import MODELS, ROOT, prepare
from drafters.training.config import load_config
from drafters.training.loop import train

log = logging.getLogger(__name__)


def main() -> None:
    """Makes the missing parts of the demo family."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in ("large", "small", "drafter"):
        if (MODELS / name / "model.safetensors").exists():
            log.info("%s is there; delete its folder in %s to train it again", name, MODELS)
        else:
            prepare()
            train(load_config(ROOT / f"{name}.yaml"))
    if not evaluate.RESULTS.exists():
        prepare()
        evaluate.main()


if __name__ == "__main__":
    main()
