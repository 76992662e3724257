"""Speculation as a request asks for it, and as its answer tells of it: the field, and vLLM's counts."""

from __future__ import annotations

import random
import reprlib
from dataclasses import replace
from typing import Any

import grpc
import pytest

from protocol.pb import inference_pb2 as pb
from protocol.plan import Speculation
from protocol.request import SequenceStats
from tests.api.api_client import Client, Context, call, error_of, events
from tests.api.api_twins import Script, ScriptedBackend, card, runs_of

OFF = Speculation(0, 0)


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("auto", None),
        (None, None),
        ("off", OFF),
        (False, OFF),
        (0, OFF),
        ({"depth": 4, "length": 3}, Speculation(4, 3)),
        ({"length": 64, "depth": 1}, Speculation(1, 64)),
        ({"depth": 4.0, "length": 3.0}, Speculation(4, 3)),
    ],
    ids=str,
)
async def test_the_field_reaches_the_request(
    client: Client, backend: ScriptedBackend, spelled: Any, meant: Speculation | None
) -> None:
    await client.complete(speculation=spelled)
    await client.chat(speculation=spelled)
    await client.complete(prompt=["a", "b"], speculation=spelled)
    await client.complete()
    assert [request.speculation for request in backend.requests] == [meant] * 4 + [None], (
        "by default the policy decides"
    )


@pytest.mark.parametrize(
    ("spelled", "complaint"),
    [
        ("on", ""),
        ("", ""),
        (True, ""),
        ([], ""),
        ([4, 3], ""),
        ({}, "depth"),
        ({"depth": 4}, "length"),
        ({"length": 3}, "depth"),
        ({"depth": 0, "length": 3}, "depth"),
        ({"depth": 1 << 31, "length": 3}, "depth"),
        ({"depth": 4.5, "length": 3}, "depth"),
        ({"depth": "4", "length": 3}, "depth"),
        ({"depth": True, "length": 3}, "depth"),
        ({"depth": None, "length": 3}, "depth"),
        ({"depth": 4, "length": 0}, "length"),
        ({"depth": 4, "length": -1}, "length"),
        ({"depth": 4, "length": 65}, "length"),
        ({"depth": 4, "length": 1 << 70}, "length"),
        ({"depth": 4, "length": 3, "stop": 0.5}, "stop"),
        ({"depth": 4, "lenght": 3}, "length: Field required, or lenght"),
    ],
    ids=str,
)
async def test_any_other_value_is_a_400_that_names_it_and_the_valid_ones(
    client: Client, backend: ScriptedBackend, spelled: Any, complaint: str
) -> None:
    for response in (await client.complete(speculation=spelled), await client.chat(speculation=spelled)):
        error = error_of(response, 400)
        assert (error["type"], error["param"]) == ("invalid_request_error", "speculation")
        assert error["message"].startswith("speculation: Input should be 'auto', 'off' or False, or ")
        assert error["message"].endswith(f", got {reprlib.repr(spelled)}")
        assert (f", or {complaint}: " if complaint else ", or Input should be a valid dictionary") in error["message"]
    assert backend.requests == []


async def test_an_unknown_depth_is_a_400_that_names_the_drafters_exits(
    client: Client, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.cards = (replace(card(), exits=(2, 4, 6)),)
    for response in (
        await client.complete(prompt="geheim", speculation={"depth": 3, "length": 5}),
        await client.chat(messages=[{"role": "user", "content": "geheim"}], speculation={"depth": 3, "length": 5}),
    ):
        error = error_of(response, 400)
        assert error["param"] == "speculation"
        assert error["message"] == "speculation depth 3 is not an exit of the drafter of tiny; send one of 2, 4, 6"
        assert "geheim" not in response.text + caplog.text
    assert backend.requests == []
    for taken in ({"depth": 4, "length": 5}, "off", "auto"):
        assert (await client.complete(speculation=taken)).status_code == 200


async def test_a_length_above_the_targets_limit_is_a_400(backend: ScriptedBackend) -> None:
    backend.cards = (replace(card(), max_draft_length=6),)
    async with Client(backend) as client:
        error = error_of(await client.complete(speculation={"depth": 4, "length": 7}), 400)
        assert error["message"] == "speculation length 7 exceeds 6, the limit of tiny; send less"
        assert error["param"] == "speculation"
        for taken in ({"depth": 4, "length": 6}, "off", "auto"):
            assert (await client.complete(speculation=taken)).status_code == 200
    refused = await asked_by_grpc(backend, pb.Speculation(depth=4, length=7))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("exits", [None, ()])
async def test_no_depth_is_refused_while_the_exits_are_unknown(
    client: Client, backend: ScriptedBackend, exits: tuple[int, ...] | None
) -> None:
    backend.cards = (replace(card(), exits=exits),)
    assert (await client.complete(speculation={"depth": 99, "length": 5})).status_code == 200
    assert backend.requests[0].speculation == Speculation(99, 5)


async def asked_by_grpc(backend: ScriptedBackend, speculation: pb.Speculation | None) -> Context:
    return await call(backend, pb.GenerateRequest(model="tiny", text="geheim", speculation=speculation))


async def test_grpc_asks_for_the_same(backend: ScriptedBackend) -> None:
    meant = {(4, 3): Speculation(4, 3), (0, 0): OFF, (4, 0): OFF}
    for depth, length in meant:
        assert (await asked_by_grpc(backend, pb.Speculation(depth=depth, length=length))).code is grpc.StatusCode.OK
    assert (await asked_by_grpc(backend, None)).code is grpc.StatusCode.OK
    assert [request.speculation for request in backend.requests] == [*meant.values(), None]


@pytest.mark.parametrize(("depth", "length"), [(0, 3), (4, 65), (4, (1 << 32) - 1), ((1 << 32) - 1, 3), (3, 2)])
async def test_grpc_refuses_the_same(
    backend: ScriptedBackend, caplog: pytest.LogCaptureFixture, depth: int, length: int
) -> None:
    backend.cards = (replace(card(), exits=(2, 4)),)
    context = await asked_by_grpc(backend, pb.Speculation(depth=depth, length=length))
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert context.details.startswith("speculation")
    assert "; send " in context.details or " to " in context.details
    assert "geheim" not in context.details + caplog.text
    assert backend.requests == []


def counted(rng: random.Random, length: int) -> SequenceStats:
    """What some rounds of up to `length` drafted tokens come to, at least one of them drafted."""
    rounds = [(length, rng.randint(0, length))]
    rounds += [(drafted, rng.randint(0, drafted)) for drafted in rng.choices(range(length + 1), k=rng.randint(0, 9))]
    most = max(accepted for _, accepted in rounds)
    histogram = tuple(sum(accepted == n for _, accepted in rounds) for n in range(most + 1))
    return SequenceStats(len(rounds), sum(d for d, _ in rounds), sum(a for _, a in rounds), histogram)


def told(stats: SequenceStats) -> Script:
    return lambda request: runs_of(request, [70], [71], stats=stats)


@pytest.mark.parametrize("seed", range(20))
async def test_the_counts_of_an_answer_add_up_as_aiperf_checks_them(seed: int) -> None:
    rng = random.Random(seed)
    length = rng.randint(1, 8)
    stats = counted(rng, length)
    fixed = {"depth": 4, "length": length}
    async with Client(ScriptedBackend(told(stats))) as client:
        bodies = [(await client.complete()).json(), (await client.chat(speculation=fixed)).json()]
        bodies.append(events(await client.chat(stream=True, stream_options={"include_usage": True}))[-1])
    for body, is_fixed in zip(bodies, (False, True, False), strict=True):
        counts = body["metrics"]["speculative_decoding"]
        histogram = counts["acceptance_histogram"]
        assert sum(histogram) == counts["num_spec_steps"] == stats.rounds
        assert sum(n * steps for n, steps in enumerate(histogram)) == counts["num_accepted_draft_tokens"]
        assert counts["num_accepted_draft_tokens"] <= counts["num_draft_tokens"]
        assert counts["mean_acceptance_length"] == 1 + stats.accepted / stats.rounds
        assert counts["draft_acceptance_rate"] == stats.accepted / stats.drafted
        assert {type(count) for count in histogram} == {int}, "it takes no other numbers for counts"
        if is_fixed:
            assert counts["num_spec_tokens"] == length == len(histogram) - 1
        else:
            assert "num_spec_tokens" not in counts


async def test_a_plain_run_without_drafts_has_no_speculation_metrics() -> None:
    async with Client(ScriptedBackend(told(SequenceStats(1, 0, 0, (1,))))) as client:
        assert "metrics" not in (await client.complete()).json()
        assert "metrics" not in (await client.complete(speculation="off")).json()
