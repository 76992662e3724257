"""What drafting ahead lives on: every point around the default, each on the same texts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine
from bench.ablation import AXES, DEFAULT, draw, parse, play, star, table
from bench.cells import PAGE, Cell, Subject
from bench.pair import PairEngine
from bench.workload import EQUAL, Workload, read_texts
from drafters.client import LocalDraftClient
from drafters.limits import PoolLimits
from drafters.nested import load_nested
from drafters.worker import DraftWorker
from link.discovery import PoolMember
from protocol.branch import MirrorClient
from protocol.stats import PoolStats
from targets.mirror import MirrorConfig
from tests.api.api_twins import tiny_tokenizer
from tests.deployments.checkpoints import make_family

NUM_TOKENS = 24


class NearEngine(PairEngine):
    """The pool in process, so that every branch of a round is there when the round ends."""

    def __init__(self, subject: Subject, drafter: Path) -> None:
        nested = load_nested(drafter, dtype=torch.float32, num_positions=16 * PAGE, page_size=PAGE)
        self._pool = DraftWorker(nested, PoolLimits(max_rows=2), time.monotonic)
        member = PoolMember("", "near", nested.exits, "", subject.max_length, 0, PoolStats(0, 0, 0, 0, 0, 0, 0, 0.0))
        super().__init__(subject, member, MirrorConfig())

    @contextmanager
    def _client(self, incarnation: str) -> Iterator[MirrorClient]:
        yield LocalDraftClient(self._pool, incarnation)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[float, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ablation")
    family = make_family(folder / "family")
    file = folder / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "def add(a, b): return a"}))
    workload = Workload(read_texts(file, tiny_tokenizer()), "equal", 1)
    args = parse(["--repeat", "2", "--max-tokens", str(NUM_TOKENS)])
    subject = Subject(family / "large", None, torch.float32, 1, 1, EQUAL + NUM_TOKENS)
    engine = NearEngine(subject, family / "drafter")
    engine.open()
    try:
        # The drafter's last exit is the target itself, the other one is hardly ever right.
        cells = [Cell("mirror", 1, 4, 3), Cell("mirror", 1, 2, 3, 1.0)]
        return {cell.temperature: play(engine, cell, workload, args) for cell in cells}
    finally:
        engine.close()


def test_each_point_differs_from_the_default_in_one_thing_and_comes_once() -> None:
    points = star()
    assert points[0] == DEFAULT
    assert len(points) == len(set(points)) == 1 + 4 + 2 + 3
    for point in points[1:]:
        assert sum(a != b for a, b in zip(asdict(point).values(), asdict(DEFAULT).values(), strict=True)) == 1
    assert all(DEFAULT in own for own in AXES.values())
    assert [point.config(12).exit_layer for point in AXES["quarters"]] == [3, 6, 9]


def test_texts_are_the_plain_loops_at_every_point(rows: dict[float, list[dict[str, Any]]]) -> None:
    for own in rows.values():
        assert [row["identical"] for row in own] == [1.0] * len(star())
        assert own[0]["over_default"]["median"] == 1.0
        assert all(len(row["tokens_per_second"]) == 2 for row in own)


def test_without_early_picks_windows_come_from_full_acceptance_where_the_drafter_is_right(
    rows: dict[float, list[dict[str, Any]]],
) -> None:
    (right,) = (row["hits"] for row in rows[0.0] if row["kappa"] == 0)
    assert (right["full"], right["all"]) == (1.0, 1.0)  # five outcomes, so all of them have a branch


def test_with_early_picks_windows_come_from_them_where_the_drafter_is_wrong(
    rows: dict[float, list[dict[str, Any]]],
) -> None:
    by_kappa = {row["kappa"]: row["hits"] for row in rows[1.0] if (row["quarters"], row["fan_out"]) == (2, 8)}
    assert by_kappa[0]["early_exit"] == 0 < by_kappa[8]["early_exit"]


def test_fewer_branches_are_made_where_fewer_are_asked_for(rows: dict[float, list[dict[str, Any]]]) -> None:
    own = {row["fan_out"]: row for row in rows[1.0] if (row["kappa"], row["quarters"]) == (8, 2)}
    made = [own[fan_out]["branches_per_round"] for fan_out in (1, 2, 4, 8)]
    assert made == sorted(made)
    assert made[0] <= 2 < made[-1]


def test_a_table_and_a_picture_show_all_of_it(rows: dict[float, list[dict[str, Any]]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures come with the bench extra")
    points = [row for own in rows.values() for row in own]
    args = parse([])
    settings = {"depth": args.depth, "length": args.length}
    made = {"machine": machine.describe(), "target": "large", "settings": settings, "points": points}
    assert json.loads(json.dumps(made)) == made
    shown = table(made)
    assert shown.count("\n| ") == len(points)
    draw(points, tmp_path / "docs" / "picture.png")
    assert (tmp_path / "docs" / "picture.png").read_bytes().startswith(b"\x89PNG")
