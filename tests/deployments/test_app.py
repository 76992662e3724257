"""The whole application on a real local Ray cluster, with tiny models, seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import ray
from ray import serve

from cli.main import main
from deployments.loading import shown, stages
from model.config import read_config
from model.files import resolve
from protocol.pb import inference_pb2 as pb
from protocol.pb.inference_pb2_grpc import InferenceStub
from protocol.request import SamplingParams
from targets.engine import Engine
from tests.api.scrape import Scrape
from tests.deployments.harness import wait_until
from tests.deployments.served import GREEDY, PROMPT, SAMPLED, Served, expected, fields_of, text_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("nothing_leaks")]

TARGETS = ("large", "small")


def test_health_turns_ok_once_when_every_model_is_ready(served: Served) -> None:
    before = [status for status in served.statuses_at_start if status != 200]
    assert before
    assert served.statuses_at_start[: len(before)] == before
    assert set(before) <= {0, 404, 503}  # 404: Serve has no route yet
    assert served.health() == 200
    assert [model.id for model in served.client.models.list()] == list(TARGETS)


def test_what_a_replica_loads_is_told_in_the_cluster_until_it_runs(served: Served) -> None:
    assert served.loading_at_start
    assert stages() == []
    with shown("target-large", "another") as loading:
        loading.weights(2, 4)
        assert [str(stage) for stage in stages()] == ["target-large: weights, 2 of 4"]
    assert stages() == []


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("model", TARGETS)
def test_http_gives_the_text_of_the_plain_loop(
    served: Served, oracles: dict[str, Engine], model: str, sampling: SamplingParams
) -> None:
    oracle = expected(oracles[model], 64, sampling)
    drafted = served.target(model, "stats")["num_proposed"]
    whole = served.complete(model, **fields_of(sampling, 64))
    assert tuple(whole.choices[0].model_dump()["token_ids"]) == oracle
    assert whole.choices[0].text == text_of(oracle)
    assert whole.usage.completion_tokens == 64
    assert served.streamed(model, sampling, 64) == (oracle, text_of(oracle))
    assert served.target(model, "stats")["num_proposed"] > drafted


def test_grpc_gives_the_tokens_of_http(served: Served, oracles: dict[str, Engine]) -> None:
    assert served.config.grpc is not None
    with grpc.insecure_channel(f"127.0.0.1:{served.config.grpc.port}") as channel:
        request = pb.GenerateRequest(
            model="large", text=PROMPT, max_tokens=64, temperature=0.8, top_k=50, top_p=0.9, seed=1234, ignore_eos=True
        )
        responses = list(InferenceStub(channel).Generate(request, metadata=(("application", "draftpool"),)))
    assert tuple(token for response in responses for token in response.token_ids) == expected(
        oracles["large"], 64, SAMPLED
    )
    assert responses[-1].stats.accepted > 0


@pytest.mark.parametrize("length", [0, 2, 3])
def test_a_request_may_choose_its_own_speculation_and_gets_the_same_text(
    served: Served, oracles: dict[str, Engine], length: int
) -> None:
    asked = {"depth": 2, "length": length} if length else "off"
    extra = {"ignore_eos": True, "return_token_ids": True, "top_k": SAMPLED.top_k, "speculation": asked}
    fields = {name: value for name, value in fields_of(SAMPLED, 64).items() if name != "top_k"}
    answer = served.client.completions.create(model="large", prompt=PROMPT, extra_body=extra, **fields).model_dump()
    assert tuple(answer["choices"][0]["token_ids"]) == expected(oracles["large"], 64, SAMPLED)
    counts = answer.get("metrics", {}).get("speculative_decoding")
    if not length:
        assert counts is None
        return
    histogram = counts["acceptance_histogram"]
    assert counts["num_spec_tokens"] == length == len(histogram) - 1
    assert sum(histogram) == counts["num_spec_steps"]
    assert sum(n * steps for n, steps in enumerate(histogram)) == counts["num_accepted_draft_tokens"] > 0


def test_rules_and_logprobs_are_the_same_with_drafts_and_without_whole_and_in_a_stream(served: Served) -> None:
    extra = {"ignore_eos": True, "return_token_ids": True, "repetition_penalty": 1.2}
    asked: dict[str, Any] = {"model": "large", "prompt": PROMPT, "max_tokens": 48, "seed": 7, "logprobs": 3}
    asked |= {"frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {"70": 2.5}}
    answers = []
    for speculation in ("off", {"depth": 4, "length": 3}):
        own = extra | {"speculation": speculation}
        whole = served.client.completions.create(**asked, extra_body=own).model_dump()
        chunks = [chunk.choices[0].model_dump() for chunk in served.client.completions.create(
            **asked, extra_body=own, stream=True
        )]  # fmt: skip
        (choice,) = whole["choices"]
        assert [token for chunk in chunks for token in chunk["token_ids"]] == choice["token_ids"]
        for name, values in choice["logprobs"].items():
            assert [each for chunk in chunks for each in chunk["logprobs"][name]] == values
        answers.append((whole.get("metrics"), choice["token_ids"], choice["logprobs"]))
    (off, *plain), (drafted, *same) = answers
    assert plain == same
    assert off is None
    assert drafted["speculative_decoding"]["num_accepted_draft_tokens"] > 0


def test_a_round_goes_out_as_one_chunk(served: Served) -> None:
    chunks = [
        len(choice.model_dump()["token_ids"])
        for chunk in served.complete("large", stream=True, **fields_of(GREEDY, 64))
        for choice in chunk.choices
    ]
    # A draft of 4, all accepted, and the target's own; several rounds where this process was slow to read.
    assert 5 in chunks
    assert min(chunks[1:-1], default=5) >= 5, "no round is cut in pieces"


def test_a_draft_replica_killed_in_mid_stream_changes_no_text_and_targets_share_the_other(
    served: Served, oracles: dict[str, Engine]
) -> None:
    oracle = {model: expected(oracles[model], 400, SAMPLED) for model in TARGETS}
    victim = served.target("large", "describe")["draft_replica"]
    with ThreadPoolExecutor(4) as threads:
        streams = {
            (model, copy): threads.submit(served.streamed, model, SAMPLED, 400) for model in TARGETS for copy in (1, 2)
        }
        wait_until(lambda: served.target("large", "stats")["num_running"] == 2)
        served.kill_draft_replica(victim)
        for (model, _), stream in streams.items():
            assert stream.result(timeout=60)[0] == oracle[model]
    wait_until(lambda: served.target("large", "describe")["draft_replica"] not in (None, victim))
    accepted = served.target("large", "stats")["num_accepted"]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda model: served.streamed(model, SAMPLED, 400), TARGETS))
    assert served.target("large", "stats")["num_accepted"] > accepted
    assert sum(member.stats.num_mixed_passes for member in served.pool()) > 0
    wait_until(lambda: len(served.pool()) == 2)


def test_a_client_gone_in_mid_stream_leaves_nothing_behind(served: Served) -> None:
    committed = served.target("large", "stats")["num_committed"]
    for _ in range(3):
        stream = served.complete("large", stream=True, **fields_of(SAMPLED, 400))
        next(iter(stream))
        stream.close()
    served.wait_until_idle()
    assert served.target("large", "stats")["num_committed"] - committed < 3 * 200


def test_more_requests_than_batch_and_queue_hold_are_refused_with_429(
    served: Served, oracles: dict[str, Engine]
) -> None:
    oracle = expected(oracles["small"], 200, GREEDY)
    start = threading.Barrier(12)

    def ask(_: int) -> tuple[int, ...] | openai.RateLimitError:
        start.wait()
        try:
            return served.tokens("small", GREEDY, 200)
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(12)))
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert len(refused) == 12 - 4 - 2  # max_batch and max_queue
    assert all("retry-after" in error.response.headers for error in refused)
    assert {answer for answer in answers if isinstance(answer, tuple)} == {oracle}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "huge"}, 404),
        ({"prompt": "x " * 2000}, 400),
        ({"temperature": -1}, 400),
        ({"max_tokens": 0}, 400),
        ({"max_tokens": "many"}, 400),
        ({"no_such_field": 1}, 400),
    ],
)
def test_bad_requests_get_the_right_status(served: Served, change: dict[str, Any], status: int) -> None:
    body = {"model": "small", "prompt": PROMPT, "max_tokens": 4} | change
    assert post(served, json.dumps(body).encode()) == status


def test_malformed_json_is_a_400(served: Served) -> None:
    assert post(served, b'{"model": "small", ') == 400


@pytest.mark.parametrize(("num_chars", "status"), [((4 << 20) - 1000, 400), (5 << 20, 413)])
def test_a_body_over_the_limit_is_a_413_and_one_below_it_is_read(served: Served, num_chars: int, status: int) -> None:
    assert post(served, json.dumps({"model": "small", "prompt": "x" * num_chars}).encode()) == status


def post(served: Served, body: bytes) -> int:
    request = urllib.request.Request(f"{served.url}/v1/completions", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    with refused.value as error:
        assert "message" in json.loads(error.read())["error"]
        return int(error.code)


def test_statistics_of_every_replica_are_told_over_http(served: Served) -> None:
    told = served.get("/debug/stats")
    assert {model: len(replicas) for model, replicas in told["targets"].items()} == {"large": 1, "small": 1}
    assert told["targets"]["large"][0] == served.target("large", "stats")
    steps = [counts["steps_run"] for counts in (told["targets"]["large"][0], *told["pool"])]
    assert all(one == steps[0] and one["by"] for one in steps)
    assert len(told["pool"]) == 2
    assert all(counts["num_free_pages"] == counts["num_pages"] > 0 for counts in told["pool"])


def test_metrics_have_the_counts_of_every_replica_under_its_name(served: Served) -> None:
    assert served.complete("large", **fields_of(GREEDY, 8)).usage.completion_tokens == 8
    served.wait_until_idle()
    told = served.get("/debug/stats")
    with urllib.request.urlopen(f"{served.url}/metrics") as response:
        found = Scrape(response.read().decode())
    for model in TARGETS:
        (counts,) = told["targets"][model]
        whose = {"model": model, "replica": counts["replica"]}
        assert found.value("draftpool_spec_decode_num_draft_tokens_total", **whose) == counts["num_proposed"]
        assert found.value("vllm:spec_decode_num_accepted_tokens_total", model_name=model) == counts["num_accepted"]
    assert found.value("draftpool_generation_tokens_total", model="large") >= 8
    assert found.by("draftpool_pool_sequences", "replica") == {counts["replica"]: 0 for counts in told["pool"]}
    assert len(found.by("draftpool_pool_sequences", "replica")) == 2


def test_committed_tokens_are_counted_where_the_config_says_so_and_a_head_is_trimmed_by_them(
    served: Served, family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Counter(served.get("/debug/tokens")["large"]["counts"])
    written = [served.tokens("large", sampling, 48) for sampling in (GREEDY, SAMPLED)]
    served.tokens("small", GREEDY, 8)
    told = served.get("/debug/tokens")
    assert Counter(told["large"]["counts"]) - before == Counter(str(token) for run in written for token in run)
    assert told["small"]["counts"] == {}
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(told))
    heads = []
    for given in (served.url, str(counts)):
        out, drafter = tmp_path / f"out{len(heads)}", str(family / "drafter")
        assert main(["trim", drafter, str(out), "--counts", given, "--size", "12"]) == 0
        heads.append(read_config(resolve(str(out))).head_token_ids)
    assert heads[0] == heads[1]
    assert len(heads[0]) == 12
    most = [int(token) for token, _ in Counter(told["large"]["counts"]).most_common(4)]
    assert set(most) <= set(heads[0])
    assert "rows," in capsys.readouterr().out


def test_what_the_router_does_is_told_over_http(served: Served) -> None:
    assert served.get("/debug/router") == {
        "large": [{"policy": "fixed", "depth": 4, "length": 4, "mode": "in turn"}],
        "small": [{"policy": "fixed", "depth": 2, "length": 3, "mode": "in turn"}],
    }
    assert served.target("large", "describe")["exits"] == (2, 4)


def test_a_second_serve_on_the_cluster_is_refused_and_the_first_goes_on(served: Served, family: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "cli.main", "serve", str(family / "app.yaml"), "--address", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "an application draftpool is on this cluster already (RUNNING)" in done.stderr
    assert "Traceback" not in done.stderr
    assert served.complete("small", **fields_of(GREEDY, 8)).usage.completion_tokens == 8


def test_every_replica_is_healthy(served: Served) -> None:
    app = serve.status().applications["draftpool"]
    assert {deployment.status.value for deployment in app.deployments.values()} == {"HEALTHY"}


def test_health_is_503_while_a_target_is_away(served: Served) -> None:
    served.kill_target("small")
    wait_until(lambda: served.health() == 503)
    wait_until(lambda: served.health() == 200)
    assert served.complete("small", **fields_of(GREEDY, 8)).usage.completion_tokens == 8
