"""Slowed devices are what they claim: exact text, in steps that take the time that they are given."""

from __future__ import annotations

import ast
import time

from bench.machine import ROOT
from bench.slowed import Device, SlowedClient, SlowedDrafter, slowed_target
from drafters.client import LocalDraftClient
from drafters.nested import NestedDrafter
from drafters.worker import DraftWorker
from model.decoder import Decoder
from router.policy import Off
from targets.engine import Engine, EngineConfig
from targets.model import TargetModel
from tests.bench.standins import VOCAB, asked, oracle_of, row
from tests.drafters.clients import TOKENS
from tests.reference.engine import plain_texts, random_requests, run_all


def test_a_slowed_step_takes_at_least_its_time_and_computes_the_same(target: TargetModel) -> None:
    device = Device("20 ms a verify and 10 a token")
    slow = slowed_target(target, device, lambda rows: 20 + 10 * len(rows[0].tokens))
    (request,) = random_requests(1, 1, VOCAB, max_tokens=5)
    texts = plain_texts(target, [request])
    began = time.perf_counter()
    assert plain_texts(slow, [request]) == texts
    assert time.perf_counter() - began >= 1e-3 * (5 * 20 + 10 * (len(request.prompt_ids) + 4))
    assert device.num_steps == 5
    assert slow.label == "target on a slowed device, 20 ms a verify and 10 a token"
    assert slow.ledger is target.ledger


def test_a_slowed_target_serves_as_an_engine(target: TargetModel) -> None:
    requests = random_requests(2, 3, VOCAB, max_tokens=6)
    texts = plain_texts(target, requests)
    slow = slowed_target(target, Device("5 ms"), lambda rows: 5)
    assert run_all(Engine(slow, Off(), None, EngineConfig()), requests).tokens == texts


def test_a_slowed_drafter_takes_its_time_for_every_token_and_drafts_the_same(decoder: Decoder) -> None:
    def drafted(drafter: NestedDrafter) -> tuple[tuple[int, ...], float]:
        client = LocalDraftClient(DraftWorker(drafter), "target")
        began = time.perf_counter()
        (block,) = client.draft(asked(row(1, TOKENS, 4))).blocks
        elapsed = time.perf_counter() - began
        client.close([1])
        drafter.check()
        return block.tokens, elapsed

    drafter = NestedDrafter(decoder, (2, 4), num_pages=16, page_size=16)
    device = Device("15 ms at depth 2")
    slow = SlowedDrafter(drafter, device, lambda rows: 7.5 * max(row.depth.exits[-1] for row in rows))
    tokens, elapsed = drafted(slow)
    assert tokens == drafted(drafter)[0]
    assert elapsed >= 4 * 0.015
    assert device.num_steps >= 1
    assert slow.label == "drafter on a slowed device, 15 ms at depth 2"


def test_a_slowed_client_answers_no_earlier_and_hands_everything_on() -> None:
    tokens = list(range(10, 40))
    oracle = oracle_of(tokens, {2: 1.0})
    client = SlowedClient(oracle, Device("10 ms a token"), lambda request: 10 * sum(row.length for row in request.rows))
    client.open(asked(row(1, tokens[:4], 0)))
    began = time.perf_counter()
    reply = client.draft(asked(row(1, tokens[:5], 3, start=4)))
    assert time.perf_counter() - began >= 0.03
    assert reply is not None
    assert reply.blocks[0].tokens == tuple(tokens[5:8])
    client.close([1])
    assert oracle.num_open == 0
    assert client.label == "pool on a slowed device, 10 ms a token"
    assert oracle.label == "oracle drafter, acceptance 1 at depth 2; runner-up 1; seed 0"


def test_a_step_that_is_late_already_does_not_sleep_and_is_counted() -> None:
    now, naps = [10.0], []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds / 2  # woken too early

    device = Device("1 s", clock=lambda: now[0], sleep=sleep)
    device.finish(8.9, 1000)
    assert (naps, device.num_late) == ([], 1)
    device.finish(9.5, 1000)
    assert now[0] >= 10.5
    assert (device.num_steps, device.num_late) == (2, 1)


def test_nothing_that_is_served_imports_a_stand_in() -> None:
    for package in ("protocol", "router", "model", "targets", "drafters", "deployments"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
            names |= {
                alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
            }
            assert not names & {"bench.oracle", "bench.slowed", "oracle", "slowed"}, path
