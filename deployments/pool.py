"""A replica of the draft pool: the drafter, its worker thread, and the server that targets connect to."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

from ray import serve

from api.trace import Track, passes
from deployments.autoscaling import BUSY, busy_share
from deployments.config import PoolConfig
from deployments.config_telemetry import TelemetryConfig
from deployments.host import resolve_host
from deployments.lasting import keep
from deployments.loading import shown
from deployments.models import load_drafter
from deployments.process import pin_process
from deployments.profiling import startup_drafter_costs
from deployments.telemetry import begin_telemetry
from drafters.limits import PoolLimits
from drafters.manifest import Manifest
from drafters.worker import DraftWorker
from link.counts import replica_name
from link.discovery import PoolMember
from link.pool_server import PoolServer
from link.pool_thread import PoolThread
from link.secret import Secret
from model.execution import Execution, runs
from model.files import resolve
from protocol.errors import NotReady
from protocol.limits import limits_of

BUSY_WINDOW_S = 2.0


class DraftPoolReplica:
    """One replica of the draft pool. Serve places and watches it; drafts travel over its own connections."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: PoolConfig, measured: bool = False, telemetry: TelemetryConfig | None = None
    ) -> None:
        """measured: whether targets need the cost of drafts."""
        context = serve.get_replica_context()
        replica = context.replica_id.unique_id
        incarnation = f"pool-{replica}"
        begin_telemetry(telemetry or TelemetryConfig(), replica_name(incarnation))
        pin_process(config)
        with shown(context.deployment, replica) as loading:
            drafter = await asyncio.to_thread(load_drafter, config)
            loading.phase("costs of drafts")
            costs = await asyncio.to_thread(startup_drafter_costs, drafter, config) if measured else None
        worker = DraftWorker(drafter, pool_limits(config), time.monotonic)
        self._thread = PoolThread(worker, time.monotonic)
        secret, limits = Secret.of(os.environ), limits_of(config.max_rows, worker.describe().max_positions)
        self._server = PoolServer(self._thread, secret, limits)
        self._thread.start()
        self._member = PoolMember(
            address=self._server.start(resolve_host(config.host), config.ports),
            incarnation=incarnation,
            exits=worker.describe().exits,
            vocabulary_hash=Manifest.load(resolve(config.path)).vocabulary_hash,
            max_positions=worker.describe().max_positions,
            stats=self._thread.stats(),
            costs=costs,
            limits=limits,
            secret=secret,
            steps=runs(drafter.decoder, Execution(config.execution)),
        )
        keep()

    async def describe(self) -> PoolMember:
        return replace(self._member, stats=self._thread.stats())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve: the share of its time that it spent in passes lately."""
        passes = [(ended_s, 1e-3 * done.pass_ms) for ended_s, done in self._thread.passes()]
        return {BUSY: busy_share(passes, self._thread.now(), BUSY_WINDOW_S)}

    async def trace(self) -> Track:
        """A track of the last passes."""
        return Track(self._member.incarnation, passes(self._thread.passes()))

    async def check_health(self) -> None:
        if stuck_s := self._thread.stuck_for_s():
            raise NotReady(f"the draft worker has not finished a step for {stuck_s:.0f} s")

    async def __del__(self) -> None:
        """Serve calls it to end the replica. Targets see the connection close and move on at once."""
        self._server.stop()
        await asyncio.to_thread(self._thread.stop)


def pool_limits(config: PoolConfig) -> PoolLimits:
    return PoolLimits(
        max_rows=config.max_rows,
        rows_of_one=config.rows_per_target,
        prefill_tokens=config.prefill_chunk,
        ttl_s=config.sequence_ttl_s,
    )
