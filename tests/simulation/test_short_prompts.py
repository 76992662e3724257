"""A short prompt does not wait for long ones, and the decision's tables are what the scheduler does."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from targets.scheduler import SchedulerConfig
from tests.simulation.short_prompts import ONE, first_s, served, stream, tables

DECISION = Path(__file__).resolve().parents[2] / "docs" / "decisions" / "0016-short-prompts.md"
SHARE = SchedulerConfig().short_share


def test_a_short_prompt_behind_long_ones_has_its_token_at_once_and_the_last_long_one_is_no_later() -> None:
    (before, (late,)), (long, (short,)) = served(0.0, ONE), served(SHARE, ONE)
    assert first_s(short) < first_s(late) / 10
    assert max(map(first_s, long)) <= max(map(first_s, before))


def test_short_prompts_that_never_stop_coming_cost_long_ones_no_more_than_their_share() -> None:
    shorts = stream(100, 0.1)
    (before, late), (long, short) = served(0.0, shorts), served(SHARE, shorts)
    assert fmean(map(first_s, short)) < fmean(map(first_s, late)) / 5
    assert max(map(first_s, long)) < max(map(first_s, before)) / (1 - SHARE)


def test_the_decision_has_the_tables_of_now() -> None:
    assert "\n".join(tables()).strip() in DECISION.read_text(encoding="utf-8")
