"""How long a first token would take: against a queue that is played through, and under four times the load."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from protocol.plan import Plan
from protocol.record import RoundRecord, RowRecord
from targets.admission import SURE_SHARE, Load, Pace, free_in_s, short_in_s, wait_s

TOKEN_S, PROMPT_TOKEN_S = 0.01, 0.0005
SURE = Pace(decode_s=TOKEN_S, row_tokens=1, prompt_s=PROMPT_TOKEN_S, prompt_tokens=1, num_ends=0)


def played(running: list[Load], ahead: list[Load], room: int) -> int:
    """Tokens that each running row gains until there is a place, one by one."""
    left, waiting, rounds = [load.left for load in running], [load.left for load in ahead], 0
    while True:
        while waiting and len(left) < room:
            left.append(waiting.pop(0))
        if len(left) < room:
            return rounds
        left = [tokens - 1 for tokens in left if tokens > 1]
        rounds += 1


@pytest.mark.parametrize("seed", range(60))
def test_the_wait_is_that_of_a_queue_which_is_played_through(seed: int) -> None:
    rng = random.Random(seed)
    room = rng.randint(1, 6)
    loads = [Load(rng.randint(1, 40), rng.randint(0, 30)) for _ in range(rng.randint(0, 20))]
    running, ahead = loads[:room], loads[room:]
    unread = 7 + sum(load.unread for load in loads)
    expected = played(running, ahead, room) * TOKEN_S + unread * PROMPT_TOKEN_S
    assert wait_s(SURE, running, ahead, 7, room) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_place_is_free_when_the_first_of_those_that_run_has_ended(seed: int) -> None:
    rng = random.Random(seed)
    running = [Load(rng.randint(1, 40), rng.randint(0, 30)) for _ in range(rng.randint(1, 6))]
    unread = sum(load.unread for load in running)
    expected = min(load.left for load in running) * TOKEN_S + unread * PROMPT_TOKEN_S
    assert free_in_s(SURE, running) == pytest.approx(expected)


def test_a_place_is_free_at_once_where_nothing_runs_yet() -> None:
    assert free_in_s(SURE, []) == 0


def test_who_comes_back_when_the_wait_is_short_enough_is_let_in() -> None:
    """After the pause that a request is told, what runs has moved on by as much, and the same request may wait."""
    limit_s, running, ahead = 0.3, [Load(30, 0)], [Load(20, 0)]
    expected_s = wait_s(SURE, running, ahead, 0, room=1)
    assert expected_s == pytest.approx(0.5)
    pause_s = short_in_s(expected_s, limit_s)
    assert pause_s == pytest.approx(0.5 - 0.3 * SURE_SHARE)
    for early, is_in in ((-2, False), (1, True)):
        left = 30 - round(pause_s / TOKEN_S) - early
        assert (short_in_s(wait_s(SURE, [Load(left, 0)], ahead, 0, room=1), limit_s) <= 0) is is_in


def test_nobody_waits_for_a_model_of_which_nothing_is_known_yet() -> None:
    assert wait_s(Pace(), [Load(100, 100)] * 4, [Load(100, 100)] * 50, 100, room=4) == 0


def record(took_s: float, num_rows: int, accepted: int = 0, num_prompt: int = 0) -> RoundRecord:
    rows = tuple(RowRecord(number, accepted, accepted) for number in range(num_rows))
    plan = Plan(None, (0,) * num_rows)
    return RoundRecord(0, plan, rows, 10.0, num_rows, num_prompt, began_s=1.0, ended_s=1.0 + took_s)


@pytest.mark.parametrize("accepted", [0, 2])
def test_the_pace_of_tokens_and_of_prompts_is_told_apart_in_rounds_that_have_both(accepted: int) -> None:
    pace = Pace()
    for _ in range(20):
        pace = pace.after(record(0.01, 4, accepted)).after(record(0.01 + 64 * 0.0005, 4, accepted, 64))
    assert pace.token_s == pytest.approx(0.01 / (1 + accepted))
    assert pace.prompt_token_s == pytest.approx(0.0005)


def test_a_pace_that_changes_is_followed() -> None:
    pace = Pace()
    for took_s, tolerance in ((0.01, 0.01), (0.04, 0.1)):
        for _ in range(200):
            pace = pace.after(record(took_s, 4))
        assert pace.token_s == pytest.approx(took_s, rel=tolerance)


@pytest.mark.parametrize(("mean", "left"), [(20, 10), (20, 1000), (200, 50)])
def test_answers_that_end_early_are_expected_to(mean: int, left: int) -> None:
    rng, pace = random.Random(mean), Pace()
    lengths = [rng.expovariate(1 / mean) + 1 for _ in range(4000)]
    for length in lengths:
        pace = pace.ended(min(int(length), left), early=length < left)
    real = sum(min(length, left) for length in lengths) / len(lengths)
    assert pace.expected_tokens(left) == pytest.approx(real, rel=0.35)


@dataclass
class Job:
    came_s: float
    limit: int  # what it asks for
    length: int  # what comes of it
    num_prompt: int
    done: int = 0
    first_s: float | None = None

    @property
    def load(self) -> Load:
        return Load(self.limit - self.done, 0 if self.done else self.num_prompt)


def overloaded(seed: int, max_wait_s: float | None, times: float, stops: bool) -> tuple[list[Job], float, int]:
    """Jobs that were let in, seconds played, and how many were refused, of a target in virtual time."""
    rng = random.Random(seed)
    room, num_jobs, pace = 4, 1500, Pace()
    mean, num_prompt = 24, 32
    each_s = mean * TOKEN_S / room + num_prompt * PROMPT_TOKEN_S
    coming, at_s = [], 0.0
    for _ in range(num_jobs):
        at_s += rng.expovariate(times / each_s)
        limit = rng.randint(mean // 2, 3 * mean // 2) if not stops else 400
        length = limit if not stops else min(int(rng.expovariate(1 / mean)) + 1, limit)
        coming.append(Job(at_s, limit, length, rng.randint(num_prompt // 2, 3 * num_prompt // 2)))
    running, waiting, kept = list[Job](), list[Job](), list[Job]()
    now, refused = 0.0, 0
    while coming or running or waiting:
        while coming and coming[0].came_s <= now:
            job = coming.pop(0)
            if max_wait_s is not None:
                loads = [one.load for one in running], [one.load for one in waiting]
                if wait_s(pace, *loads, job.num_prompt, room) > SURE_SHARE * max_wait_s:
                    refused += 1
                    continue
            kept.append(job)
            waiting.append(job)
        fresh = [waiting.pop(0) for _ in range(min(room - len(running), len(waiting)))]
        if not running and not fresh:
            now = coming[0].came_s if coming else now
            continue
        num_prompt_tokens = sum(job.num_prompt for job in fresh)
        took_s = (TOKEN_S if running else 0) + num_prompt_tokens * PROMPT_TOKEN_S
        pace = pace.after(record(took_s, len(running), num_prompt=num_prompt_tokens))
        now += took_s
        for job in running + fresh:
            job.done += 1
            job.first_s = now if job.first_s is None else job.first_s
        running += fresh
        for job in [job for job in running if job.done >= job.length]:
            running.remove(job)
            pace = pace.ended(job.done, early=job.done < job.limit)
    return kept, now, refused


def waits(kept: list[Job]) -> list[float]:
    return sorted((job.first_s or 0.0) - job.came_s for job in kept)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_under_four_times_the_load_those_let_in_get_their_first_token_in_time(seed: int, stops: bool) -> None:
    limit_s = 0.8
    kept, took_s, refused = overloaded(seed, limit_s, 4.0, stops)
    late = [wait for wait in waits(kept) if wait > limit_s]
    assert len(late) <= (0.05 if stops else 0.0) * len(kept), "where answers stop by chance, a wait is a guess"
    assert waits(kept)[-1] <= 1.6 * limit_s
    free, full_s, _ = overloaded(seed, None, 4.0, stops)
    assert len(kept) / took_s >= 0.9 * len(free) / full_s, "the target is kept busy"
    assert refused > len(kept), "it is too much by far"
    assert waits(free)[-1] > 10 * limit_s, "without a bound they wait"


@pytest.mark.parametrize("seed", range(3))
def test_under_half_the_load_nearly_nobody_is_refused(seed: int) -> None:
    kept, _, refused = overloaded(seed, 0.8, 0.5, stops=True)
    assert refused <= 0.02 * len(kept)
