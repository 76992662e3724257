"""What rounds tell, where every round takes just what it should."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from router.mode_beliefs import Beliefs
from router.mode_choice import Modes
from router.modes import Mode, Round, half_share

MIRROR, HINTED, SERIAL, LANES = Mode
LENGTH, REST = 4, 0.5


def round_of(mode: Mode, verify_ms: float, draft_ms: float | None, num_rows: int = 1, accepted: int = 2) -> Round:
    """draft_ms: waited for."""
    return Round(
        mode,
        (LENGTH,) * num_rows,
        (accepted,) * num_rows,
        verify_ms + (draft_ms or 0.0) + REST,
        verify_ms,
        REST,
        draft_ms,
        num_rows,
        0 if draft_ms else num_rows,
    )


def test_a_chance_that_all_rounds_tell_of_is_the_share_of_drafted_tokens_that_were_accepted() -> None:
    rng, beliefs = random.Random(0), Beliefs(tuple(Mode))
    for mode in (SERIAL, MIRROR) * 20:
        kept = [next((at for at in range(LENGTH) if rng.random() >= 0.8), LENGTH) for _ in range(10)]
        beliefs.learn(mode, [round_of(mode, 10, 5, accepted=number) for number in kept], 1)
    expected = sum(0.8**number for number in range(1, LENGTH + 1))
    for mode in Mode:
        assert beliefs.outlook(mode, 1).accepted == pytest.approx(expected, rel=0.15)


def test_parts_that_were_seen_in_any_mode_stand_for_all() -> None:
    beliefs, num_rows = Beliefs(tuple(Mode)), 8
    beliefs.learn(SERIAL, [round_of(SERIAL, 10, 5, num_rows)] * 8, num_rows)
    for _ in range(40):
        half = round_of(LANES, 1.2 * half_share(num_rows) * 10, None, num_rows // 2)
        beliefs.learn(LANES, [half] * 8, num_rows)
    view = beliefs.outlook(SERIAL, num_rows)
    assert view.verify_ms == pytest.approx(10, rel=0.1)
    assert view.draft_ms == pytest.approx(5, rel=0.01)
    tokens = num_rows / 2 * (1 + view.accepted)
    assert beliefs.rate(LANES, num_rows) == pytest.approx(tokens / (1.2 * half_share(num_rows) * 10 + REST), rel=0.02)


def test_drafts_that_take_longer_all_at_once_are_believed_at_once() -> None:
    beliefs = Beliefs((MIRROR, SERIAL))
    for _ in range(40):
        beliefs.learn(SERIAL, [round_of(SERIAL, 10, 1)] * 8, 1)
    beliefs.learn(SERIAL, [round_of(SERIAL, 10, 10)] * 8, 1)
    view = beliefs.outlook(SERIAL, 1)
    assert view.draft_ms / view.verify_ms == pytest.approx(1, rel=0.2)
    assert beliefs.rate(SERIAL, 1) == pytest.approx((1 + view.accepted) / 20.5, rel=0.1)


def test_the_first_round_of_a_mode_tells_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[Round] = []
    learn = Beliefs.learn

    def spied(self: Beliefs, mode: Mode, rounds: Sequence[Round], num_rows: int) -> None:
        learned.extend(rounds)
        learn(self, mode, rounds, num_rows)

    monkeypatch.setattr(Beliefs, "learn", spied)
    modes, before, firsts = Modes((MIRROR, SERIAL)), None, []
    for _ in range(400):
        mode = modes.choose(1)
        played = round_of(mode, 10, 1 if mode is SERIAL else None)
        if mode is not before:
            firsts.append(played)
        modes.observe(1, played)
        before = mode
    assert len(firsts) > 2
    assert not {id(one) for one in firsts} & {id(one) for one in learned}
    assert {one.mode for one in learned} == {MIRROR, SERIAL}
