"""Slowed devices are what they claim: exact text, in steps that take the time that they are given."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from bench.machine import ROOT
from bench.router.devices import SlowDevice, SlowedDrafter, slowed_target
from drafters.client import LocalDraftClient
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.load import load_decoder
from protocol.draft import DraftRequest, DraftRow
from protocol.request import SamplingParams
from router.policy import Off
from targets.engine import Engine, EngineConfig
from targets.model import load_target
from tests.model.families import VOCAB, make_checkpoint
from tests.reference.engine import plain_texts, random_requests, run_all


class Clock:
    """Goes on only while somebody sleeps, and wakes up too early."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += max(seconds / 2, 1e-9)

    def device(self, name: str) -> SlowDevice:
        return SlowDevice(name, clock=lambda: self.now_s, sleep=self.sleep)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("slowed") / "llama", seed=0)


def test_a_slowed_target_takes_its_time_and_writes_the_same_text(llama: Path) -> None:
    target, clock = load_target(llama, dtype=torch.float32, num_positions=4096, page_size=16), Clock()
    device = clock.device("20 ms a pass and 10 a token")
    slow = slowed_target(target, device, lambda rows: 20 + 10 * len(rows[0].tokens))
    (request,) = random_requests(1, 1, VOCAB, max_tokens=5)
    assert plain_texts(slow, [request]) == plain_texts(target, [request])
    assert clock.now_s == pytest.approx(1e-3 * (5 * 20 + 10 * (len(request.prompt_ids) + 4)))
    assert (device.num_steps, device.late) == (5, 0.0)
    assert slow.ledger is target.ledger
    requests = random_requests(2, 3, VOCAB, max_tokens=6)
    assert run_all(Engine(slow, Off(), None, EngineConfig()), requests).tokens == plain_texts(target, requests)


def test_a_slowed_drafter_takes_its_time_for_every_token_and_drafts_the_same(llama: Path) -> None:
    request = DraftRequest("target", 1, 2, (DraftRow(1, 0, tuple(range(5, 30)), 4, SamplingParams(temperature=0)),))

    def drafted(drafter: NestedDrafter) -> tuple[int, ...]:
        (block,) = LocalDraftClient(DraftWorker(drafter), "target").draft(request).blocks
        return block.tokens

    decoder, clock = load_decoder(llama, dtype=torch.float32), Clock()
    slow = SlowedDrafter(
        NestedDrafter(decoder, (2, 4), num_pages=16, page_size=16),
        clock.device("15 ms at depth 2"),
        lambda rows: 7.5 * max(row.depth for row in rows),
    )
    assert drafted(slow) == drafted(NestedDrafter(decoder, (2, 4), num_pages=16, page_size=16))
    assert clock.now_s >= 4 * 0.015


def test_a_step_that_is_late_already_does_not_sleep_and_is_counted() -> None:
    clock = Clock()
    clock.now_s = 10.0
    device = clock.device("1 s")
    device.finish(8.9, 1000)
    assert (clock.now_s, device.num_late) == (10.0, 1)
    device.finish(9.5, 1000)
    assert clock.now_s >= 10.5
    assert (device.num_steps, device.num_late, device.late) == (2, 1, 0.5)


def test_nothing_that_is_served_imports_what_measures() -> None:
    for package in ("protocol", "router", "model", "targets", "drafters", "link", "api", "deployments"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
            names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            assert not [name for name in names if name.split(".")[0] in ("bench", "tests")], path
