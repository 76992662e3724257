"""A replica of one target: its engine, and its streams to the draft pool and to the ingresses."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from ray import serve

from api.logs import request_logged
from api.trace import Track, rounds
from deployments.autoscaling import BUSY
from deployments.colocated import open_colocated
from deployments.config import PoolConfig, TargetConfig
from deployments.config_replica import Weights
from deployments.config_speculation import AdaptiveSpeculation
from deployments.config_telemetry import TelemetryConfig
from deployments.descriptions import key_of, remember
from deployments.handles import discover
from deployments.lasting import keep
from deployments.loading import Loading, shown
from deployments.local import LocalDrafter
from deployments.models import load_model, translation_to
from deployments.policies import adaptive, drafts_ahead, longest_draft, needed_exits, policy
from deployments.process import pin_process
from deployments.profiling import startup_target_costs
from deployments.telemetry import begin_telemetry
from drafters.manifest import vocabulary_hash
from drafters.translated import TranslatedDraftClient
from link.counts import replica_name, told
from link.discovery import Need
from link.links import TransportConfig
from link.token_sink import SinkAddress
from link.token_stream import TokenStreams
from link.transport import LinkedDraftClient
from model.execution import Execution, runs
from model.files import TEXT_FILES, resolve
from protocol.errors import DraftPoolError, NotReady
from protocol.request import GenerateRequest, TokenRun
from router.explain import describe
from router.policy import Policy
from targets.engine import Engine, EngineConfig
from targets.linked_policy import LinkedPolicy
from targets.model import TargetModel

HEARTBEAT_LIMIT_S = 60.0


class TargetReplica:
    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: TargetConfig,
        pool: Any = None,
        drafter: PoolConfig | None = None,
        telemetry: TelemetryConfig | None = None,
    ) -> None:
        """pool: the Serve handle of the draft pool; None: the drafter runs inside this replica. drafter: its config.

        Without either, or without speculation, decoding is plain.
        """
        self._config = config
        context = serve.get_replica_context()
        replica = context.replica_id.unique_id
        self._incarnation = f"{config.name}-{replica}"
        self._spans = begin_telemetry(telemetry or TelemetryConfig(), replica_name(self._incarnation))
        pin_process(config)
        with shown(context.deployment, replica) as loading:
            await self._start(config, pool, drafter, loading)
        await asyncio.to_thread(remember, key_of(config), await self.describe())
        keep()

    async def _start(self, config: TargetConfig, pool: Any, drafter: PoolConfig | None, loading: Loading) -> None:
        translation = await asyncio.to_thread(translation_to, drafter, config) if drafter else None
        ahead = drafts_ahead(config, apart=pool is not None, translates=translation is not None)
        model = await asyncio.to_thread(load_model, config, loading.weights)
        self._decoder = model.decoder.config
        self._constraint = model.constraint
        self._steps = runs(model.decoder, Execution(config.execution))
        self._policy: Policy = policy(config.speculation)
        if isinstance(config.speculation, AdaptiveSpeculation) and drafter is not None:
            loading.phase("costs of passes")
            costs = await asyncio.to_thread(startup_target_costs, model, config)
            make_policy = partial(adaptive, config.speculation, max_rows=config.max_batch)
            self._policy = LinkedPolicy(config.name, costs, make_policy)
        loading.phase("drafter")
        self._colocated = await asyncio.to_thread(self._open_colocated, model, None if pool else drafter)
        self._client = self._draft_client(pool, drafter if drafter and translation else config)
        if self._client is not None:
            await self._client.start()
        client = self._colocated.client if self._colocated else self._client
        self._translated = TranslatedDraftClient(client, translation) if client and translation else None
        settings = engine_config(config, self._incarnation)
        self._engine = Engine(model, self._policy, self._translated or client, settings, ahead)
        self._streams = TokenStreams()
        self._engine.start()

    def _open_colocated(self, model: TargetModel, pool: PoolConfig | None) -> LocalDrafter | None:
        speculation = self._config.speculation
        if speculation is None or pool is None:
            return None
        adaptive_policy = self._policy if isinstance(self._policy, LinkedPolicy) else None
        deadline_s, measured = speculation.deadline_ms / 1e3, adaptive_policy is not None
        drafter = open_colocated(model, self._config, pool, self._incarnation, deadline_s, measured=measured)
        if adaptive_policy is not None and drafter.costs is not None:
            adaptive_policy.drafted_by(drafter.costs, drafter.exits)
        return drafter

    def _draft_client(self, pool: Any, reads: Weights) -> LinkedDraftClient | None:
        """reads: the checkpoint whose vocabulary the drafter must have."""
        speculation = self._config.speculation
        if speculation is None or pool is None:
            return None
        need = Need(vocabulary_hash(resolve(reads.path, TEXT_FILES)), needed_exits(speculation))
        timing = TransportConfig(deadline_s=speculation.deadline_ms / 1e3)
        on_link = self._policy.linked if isinstance(self._policy, LinkedPolicy) else None
        return LinkedDraftClient(self._incarnation, partial(discover, pool), need, timing, on_link=on_link)

    async def generate(self, request: GenerateRequest, sink: SinkAddress | None = None) -> TokenRun | DraftPoolError:
        """Returns all tokens at the end; sends them to the sink, if there is one, as they are committed.

        Returns a refusal of the engine instead of raising it, because Serve logs exceptions with their tracebacks.
        """
        with (
            request_logged(request.request_id),
            self._spans.answering(self._config.name, request) as tell,
            self._streams.answer(request.request_id, sink) as answer,
        ):
            try:
                if request.grammar:
                    await asyncio.to_thread(self._constraint, request)  # compiled for the engine, beside the loop
                self._engine.submit(request, answer.add)
            except DraftPoolError as refusal:
                tell(refusal)
                return refusal
            try:
                tell(await answer.ended)
                return answer.ended.result()
            except asyncio.CancelledError:
                self._engine.cancel(request.request_id)
                raise

    async def open_requests(self) -> tuple[str, ...]:
        """Ids of the requests that are running or queued here. A frozen replica does not answer."""
        return self._engine.open_requests

    async def describe(self) -> dict[str, object]:
        """What the ingress needs to know, in plain values."""
        member = self._client.member if self._client else None
        drafter = self._colocated or member
        return {
            "name": self._config.name,
            "incarnation": self._incarnation,
            "max_model_len": self._engine.max_length,
            "max_batch": self._config.max_batch,
            "longest_draft": longest_draft(self._config.speculation),
            "vocab_size": self._decoder.vocab_size,
            "eos_token_ids": tuple(self._decoder.eos_token_ids),
            "draft_replica": self._incarnation if self._colocated else member.incarnation if member else None,
            "exits": drafter.exits if drafter else (),
            "ready": self._engine.heartbeat_age_s() <= HEARTBEAT_LIMIT_S,
        }

    async def stats(self) -> dict[str, Any]:
        traffic = self._client.traffic if self._client else None
        translated = self._translated.counts if self._translated else None
        return told(self._engine.stats(), self._steps, traffic, translated) | {
            "replica": replica_name(self._incarnation)
        }

    async def token_counts(self) -> tuple[str, dict[int, int]]:
        """The hash of the vocabulary, and how often each token was written here."""
        directory = resolve(self._config.path, TEXT_FILES)
        return await asyncio.to_thread(vocabulary_hash, directory), self._engine.token_counts()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve: requests over those that are decoded at once."""
        return {BUSY: len(self._engine.open_requests) / self._config.max_batch}

    async def trace(self, num_rounds: int) -> Track:
        """A track of the last rounds."""
        return Track(self._incarnation, rounds(self._engine.last_rounds(num_rounds)))

    async def router(self) -> dict[str, Any]:
        """The belief of the router and its last arms, in plain values."""
        return self._policy.describe() if isinstance(self._policy, LinkedPolicy) else describe(self._policy)

    async def check_health(self) -> None:
        age = self._engine.heartbeat_age_s()
        if age > HEARTBEAT_LIMIT_S:
            raise NotReady(f"the engine of {self._config.name} has not turned for {age:.0f} s")

    async def __del__(self) -> None:
        """Serve calls it to end the replica, after the requests in flight have finished."""
        await asyncio.to_thread(self._engine.stop)
        await asyncio.to_thread(self._spans.close)
        await self._streams.stop()
        if self._client is not None:
            await self._client.stop()


def engine_config(config: TargetConfig, incarnation: str) -> EngineConfig:
    return EngineConfig(
        max_batch=config.max_batch,
        max_queue=config.max_queue,
        max_wait_s=config.max_wait_s,
        prefill_chunk=config.prefill_chunk,
        max_model_len=config.max_model_len,
        incarnation=incarnation,
        count_tokens=config.count_tokens,
    )
