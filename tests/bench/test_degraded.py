"""The measurement itself, on tiny models: the cases are what they claim to be. Ratios mean nothing at this size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.degraded import Run, _row
from bench.differences import Difference
from tests.deployments.checkpoints import make_family

PLAIN = Run("plain", 100.0)
LATE = Run("late", 96.0, missed=3, drafted=12)
SMALL = Run("small", 96.0, busy=20, drafted=12, accepted=5)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_late_and_small_pools_are_real_and_change_no_text(tmp_path: Path) -> None:
    family, out = make_family(tmp_path), tmp_path / "degraded.json"
    command = [sys.executable, "-m", "bench.degraded", "--target", str(family / "large"), "--drafter"]
    command += [str(family / "drafter"), "--repeat=1", "--max-tokens=40", "--deadline-ms=40", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    rows = json.loads(out.read_text())["rows"]
    plain, late, small = (run for row in rows for run in row["runs"])
    assert all(run["faults"] == [] for run in (plain, late, small))
    assert (late["missed"], late["accepted"]) == (3, 0)
    assert small["busy"] > 0
    assert small["accepted"] > 0
    assert done.returncode == (0 if all(row["passed"] for row in rows) else 1)
    assert done.stdout.count("\n") == 1 + len(rows)


def test_the_median_over_repetitions_must_reach_the_bar() -> None:
    slow = Run("late", 50.0, missed=3, drafted=12)
    assert _row("large", [LATE, slow, LATE], [PLAIN] * 3).passed
    row = _row("large", [slow, LATE, slow], [PLAIN] * 3)
    assert (row.passed, row.ratio, row.ratios) == (False, 0.5, [0.5, 0.96, 0.5])


@pytest.mark.parametrize(
    "run",
    [
        Run("late", 96.0, missed=0, drafted=12),
        Run("late", 96.0, missed=3, drafted=0),
        Run("late", 96.0, missed=3, drafted=12, accepted=1),
        Run("small", 96.0, busy=0, drafted=12),
        Run("plain", 100.0, drafted=1),
        Run("small", 96.0, busy=20, faults=(Difference("prompt", 3, 0.5),)),
    ],
)
def test_a_case_that_was_not_one_or_changed_a_text_fails(run: Run) -> None:
    assert not _row("large", [run], [PLAIN]).passed
    assert _row("large", [SMALL], [PLAIN]).passed
