"""docs/metrics.md and the dashboard name the metrics that /metrics has, each with its type, labels and help."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from api import rpc
from api.meter import Meter
from api.metrics import LABELS
from link.connection import Traffic
from link.counts import told
from protocol.pb import inference_pb2 as pb
from protocol.stats import EngineStats, PoolStats, Runs, TranslationCounts
from tests.api.api_client import TEXT, Client, Context
from tests.api.api_twins import ScriptedBackend, says
from tests.api.scrape import Scrape, scrape_of

ROOT = Path(__file__).resolve().parents[2]
PAGE, DASHBOARD = ROOT / "docs" / "metrics.md", ROOT / "k8s" / "grafana.json"


class Telling(ScriptedBackend):
    """A target and a draft replica that tell all that any can."""

    async def stats(self) -> Mapping[str, Any]:
        counts = EngineStats(
            num_running=1, num_waiting=2, num_free_pages=3, num_pages=4, num_steps=5, num_accepted_by_position=(6, 5)
        )
        target = told(counts, Runs("torch, cpu"), Traffic(7, 8), TranslationCounts(9, 8)) | {"replica": "t"}
        return {"targets": {"tiny": [target]}, "pool": [asdict(PoolStats(1, 2, 3, 4, 5, 6, 7, 8.0)) | {"replica": "p"}]}


@pytest.fixture
async def scrape() -> Scrape:
    """What an application tells that has answered over HTTP and gRPC."""
    backend, meter = Telling(says(TEXT)), Meter()
    async with Client(backend, meter=meter) as client:
        await client.complete(stream=True)
        await rpc.list_models(backend, pb.ListModelsRequest(), Context(), meter)
        return scrape_of(await client.get("/metrics"))


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def row_of(family: Metric, scrape: Scrape) -> str:
    """The line of the page about a metric."""
    labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
    alias = f"vllm:{name_of(family).removeprefix('draftpool_')}"
    also = f"`{alias}`" if alias.removesuffix("_total") in scrape.families else ""
    cells = f"`{name_of(family)}`", family.type, ", ".join(sorted(labels)), also, family.documentation
    return f"| {' | '.join(cells)} |"


def test_the_page_has_a_line_for_every_metric_and_no_other(scrape: Scrape) -> None:
    ours = [family for family in scrape.families.values() if family.name.startswith("draftpool_")]
    assert all(family.samples for family in ours), "the backend tells all"
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `draftpool_")]
    assert sorted(lines) == sorted(row_of(family, scrape) for family in ours)


def test_the_page_says_what_vllm_calls_our_labels(scrape: Scrape) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for ours, theirs in LABELS.items():
        assert f"`{ours}` is `{theirs}`" in page


def queries(node: Any) -> Iterator[str]:
    """All PromQL of a dashboard: of its panels and of its variables."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("expr", "definition") and isinstance(value, str))
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from queries(each)


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return read


def test_every_query_of_the_dashboard_names_a_metric_that_exists_and_labels_that_it_has(scrape: Scrape) -> None:
    known, found = scrape.labels, list(queries(dashboard()))
    assert len(found) > 20
    for query in found:
        names = re.findall(r"\b(?:draftpool_|vllm:)\w+", query)
        assert names, query
        assert set(names) <= known.keys(), query
        used = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
        used += [
            label
            for group in re.findall(r"(?:by|on|ignoring|group_left) \(([^)]*)\)", query)
            for label in group.split(", ")
            if label
        ]
        used += re.findall(r"^label_values\(\w+, (\w+)\)$", query)
        assert set(used) <= set.union(*(known[name] for name in names)), query


def test_the_panels_of_the_dashboard_have_names_places_and_a_source_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${source}"


def test_the_dashboard_shows_every_metric_of_the_pool_and_of_speculation(scrape: Scrape) -> None:
    shown = {name for query in queries(dashboard()) for name in re.findall(r"\bdraftpool_\w+", query)}
    wanted = {name_of(family) for family in scrape.families.values() if "_spec_decode_" in family.name}
    wanted |= {name for name in map(name_of, scrape.families.values()) if name.startswith("draftpool_pool_")}
    wanted -= {"draftpool_pool_kv_pages", "draftpool_pool_branches_total"}
    assert {name for name in wanted if name.startswith("draftpool_")} <= shown
