"""Which counts /metrics tells: of one application, of several processes, of gRPC beside HTTP, and in which format."""

from __future__ import annotations

from typing import Any

from api import rpc
from api.meter import Meter
from api.refused import CallRefused
from protocol.pb import inference_pb2 as pb
from tests.api.api_client import TEXT, Client, Context
from tests.api.api_twins import ScriptedBackend, says
from tests.api.scrape import scrape_of


async def test_two_applications_count_apart() -> None:
    backend = ScriptedBackend(says(TEXT))
    async with Client(backend) as one, Client(backend) as other:
        await one.complete()
        counts = [scrape_of(await client.get("/metrics")) for client in (one, other)]
    assert [found.value("draftpool_request_success_total") for found in counts] == [1, 0]


async def test_several_processes_are_told_together_each_with_its_name() -> None:
    meters = [Meter("a"), Meter("b")]
    backend = ScriptedBackend(says(TEXT))

    async def gather() -> Any:
        return [metric for meter in meters for metric in meter.families()]

    async with Client(backend, meter=meters[0], gather=gather) as one, Client(backend, meter=meters[1]) as other:
        for client in (one, other, other):
            await client.complete()
        found = scrape_of(await one.get("/metrics"))
    assert found.by("draftpool_request_success_total", "replica") == {"a": 1, "b": 2}
    assert found.by("vllm:request_success_total", "engine") == {"a": 1, "b": 2}


async def test_a_replica_that_tells_little_is_told_as_far_as_it_does(client: Client) -> None:
    found = scrape_of(await client.get("/metrics"))
    assert found.value("draftpool_num_requests_running", model="tiny", replica="0") == 0
    assert found.families["draftpool_num_requests_running"].samples
    assert found.families["draftpool_num_requests_waiting"].samples == []


async def test_openmetrics_is_told_to_who_asks_for_it(client: Client) -> None:
    await client.complete()
    response = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def test_grpc_calls_are_counted_by_status_and_their_tokens_with_those_of_http() -> None:
    meter, backend = Meter(), ScriptedBackend(says(TEXT))
    for fields in ({"model": "tiny", "text": "import"}, {"model": "huge", "text": "a"}, {"model": "tiny"}):
        try:
            _ = [each async for each in rpc.generate(backend, pb.GenerateRequest(**fields), Context(), meter)]
        except CallRefused:
            assert fields != {"model": "tiny", "text": "import"}
    running = rpc.generate(backend, pb.GenerateRequest(model="tiny", text="import"), Context(), meter)
    await anext(running)
    await running.aclose()
    await rpc.list_models(backend, pb.ListModelsRequest(), Context(), meter)
    async with Client(backend, meter=meter) as client:
        found = scrape_of(await client.get("/metrics"))
    codes = found.families["draftpool_grpc_calls"].samples
    assert {(one.labels["method"], one.labels["code"]): one.value for one in codes} == {
        ("Generate", "OK"): 1,
        ("Generate", "NOT_FOUND"): 1,
        ("Generate", "INVALID_ARGUMENT"): 1,
        ("Generate", "CANCELLED"): 1,
        ("ListModels", "OK"): 1,
    }
    assert found.by("draftpool_request_success_total", "finished_reason") == {"stop": 1, "abort": 1}
    assert found.value("draftpool_time_to_first_token_seconds_count") == 2
