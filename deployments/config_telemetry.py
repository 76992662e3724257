"""The config section about what the processes of an application tell of their work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deployments.config_section import Section

Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+(/\S*)?$")]


class TelemetryConfig(Section):
    """Logs and traces.

    logs: json: every record is an object on a line of its own. otlp_endpoint: URL of an OpenTelemetry collector that
    takes traces over HTTP; null: as OTEL_EXPORTER_OTLP_ENDPOINT says, without which there are no traces.
    """

    logs: Literal["text", "json"] = "text"
    otlp_endpoint: Url | None = None
