"""Logs and traces of a replica's process, as its config and its environment say."""

from __future__ import annotations

import os
import sys

from api.logs import log_as_json
from api.spans import Spans, open_spans
from deployments.config import AppConfig
from deployments.config_telemetry import TelemetryConfig

PACKAGES = ("protocol", "router", "model", "targets", "drafters", "link", "api", "deployments")


def begin_telemetry(config: TelemetryConfig, replica: str) -> Spans:
    """replica: the name of this process. Raises ConfigError where traces are asked for that cannot be made."""
    if config.logs == "json":
        log_as_json(sys.stderr, PACKAGES, replica=replica)
    return open_spans(config.otlp_endpoint, os.environ, replica)


def check_telemetry(config: AppConfig) -> None:
    """Raises ConfigError if the replicas of this machine would have to refuse it."""
    open_spans(config.telemetry.otlp_endpoint, os.environ, "check").close()
