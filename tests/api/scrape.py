"""What /metrics tells, read with the Prometheus client's own parser."""

from __future__ import annotations

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """families: by the name that the format gives them."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.families: dict[str, Metric] = {family.name: family for family in families}
        assert len(self.families) == len(families), "each metric comes once"
        self.samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels."""
        found = [one for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(one.value for one in found)

    def by(self, name: str, label: str) -> dict[str, float]:
        return {one.labels[label]: one.value for one in self.samples if one.name == name}

    @property
    def labels(self) -> dict[str, set[str]]:
        """The names of the labels that the samples of a name have."""
        found: dict[str, set[str]] = {}
        for sample in self.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        return found


def scrape_of(response: httpx.Response) -> Scrape:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(response.text)
