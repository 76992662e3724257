"""What would happen: targets, a pool, policies and arrivals from cost curves and acceptance tables, without a model.

A discrete-event run in milliseconds of its own. The policies are the real ones and see what a real target would show
them; passes take what the curves say; which drafted tokens are right was decided with each text, by its seed, so two
policies meet the same luck. What is not imitated: memory (every sequence has room, in targets and pool), texts that
end early, and a target's move from one draft replica to another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import median

import numpy as np

from protocol.errors import ConfigError
from protocol.plan import DepthRule
from router.costs import CostCurves
from router.policy import Policy
from router.simulate_acceptance import Fate, Profile
from router.simulate_costs import PoolTables, TargetTables
from router.simulate_drafting import Drafting
from router.simulate_lanes import MirrorTarget
from router.simulate_mirror import MirrorDrafting, MirrorRules
from router.simulate_pool import Device, Jitter, Loop, PoolRules, Replica
from router.simulate_target import Request, Served, Target, lucky

Drafted = Mapping[tuple[DepthRule | None, int], float]
Overlap = MirrorRules | None  # None: drafts and verifies in turn


@dataclass(frozen=True, slots=True)
class SimulatedTarget:
    """policy: makes one for this run. requests: in order of arrival. shares_device: drafts are made in its own process,
    in turn with its passes and without a link. deadline_ms: for a draft. fate: of a request's text, drawn from the
    profile by its seed or known otherwise. overlap: of drafting and verifying. beside: how many times longer its passes
    take while its draft replica is busy. Raises ConfigError for overlap on one device.
    """

    name: str
    curves: CostCurves
    policy: Callable[[], Policy]
    profile: Profile
    requests: Sequence[Request]
    max_batch: int = 16
    prefill_chunk: int = 512
    shares_device: bool = False
    deadline_ms: float = math.inf
    fate: Callable[[Request], Fate] = lucky
    overlap: Overlap = None
    beside: float = 1.0

    def __post_init__(self) -> None:
        if self.overlap is not None and self.shares_device:
            raise ConfigError(f"target {self.name} drafts on its own device, so nothing can overlap; draft in turn")


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """beside: how many times longer passes take while a target of the replica is busy."""

    num_replicas: int = 1
    rules: PoolRules = field(default_factory=PoolRules)
    beside: float = 1.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles in ms."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class TargetReport:
    """tokens_per_second: all tokens over the time from the first arrival to the last token. num_decoded: of them those
    after the last sequence's first. wait_ms: at the pool, mean over the rounds that asked; missed: share of them in
    vain. exposed_ms: for drafts, mean over these rounds. hits: of the outcomes that were drafted ahead for, shares by
    source. drafted: shares of a batch's rows by rule and number of drafted tokens, (None, 0) without.
    mean_acceptance_length: tokens of a row's round, bonus included.
    """

    name: str
    num_tokens: int
    num_decoded: int
    tokens_per_second: float
    ttft_ms: Spread
    tpot_ms: Spread | None
    mean_acceptance_length: float | None
    wait_ms: float
    missed: float
    exposed_ms: float
    hits: Mapping[str, float]
    drafted: Drafted
    num_rounds: int
    served: tuple[Served, ...]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """utilisation: share of the time in passes."""

    utilisation: float
    num_passes: int
    rows_per_pass: float


@dataclass(frozen=True, slots=True)
class Report:
    """tokens_per_second: of all targets together, over the whole run."""

    span_ms: float
    tokens_per_second: float
    targets: tuple[TargetReport, ...]
    replicas: tuple[ReplicaReport, ...]


def simulate(
    targets: Sequence[SimulatedTarget], pool: SimulatedPool | None, seed: int = 0, noise: float = 0.0
) -> Report:
    """Until every request is served. noise: standard deviation of the logarithm of a pass's time.

    Raises ConfigError for targets that name different exits, and for curves without a drafter where a pool drafts.
    """
    if not any(target.requests for target in targets):
        raise ConfigError("there is nothing to simulate; give one request at least")
    loop, jitter = Loop(), jitter_of(noise, np.random.default_rng([seed, 1]))
    replicas = _replicas(loop, targets, pool, jitter) if pool else []
    running = _targets(loop, targets, replicas, jitter)
    for target, made in zip(targets, running, strict=True):
        for request in target.requests:
            loop.at(request.at_ms, lambda made=made, request=request: made.arrive(request))  # type: ignore[misc]
    loop.run()
    reports = tuple(report_of(target.name, made) for target, made in zip(targets, running, strict=True))
    served = [one for report in reports for one in report.served]
    span = max(one.last_ms for one in served) - min(one.request.at_ms for one in served)
    tokens = sum(report.num_tokens for report in reports)
    return Report(span, _per_second(tokens, span), reports, tuple(_replica_report(one, span) for one in replicas))


@dataclass(frozen=True, slots=True)
class SimulatedCell:
    """A batch that starts together and drafts in its own process, as `draftpool bench` measures one.

    num_decoded: tokens after the last sequence's first; decode_ms: that they took. TTFT and TPOT: medians.
    """

    num_decoded: int
    decode_ms: float
    total_tokens_per_second: float
    mean_acceptance_length: float | None
    ttft_ms: float
    tpot_ms: float | None
    num_rounds: int
    drafted: Drafted

    @property
    def tokens_per_second(self) -> float:
        """Of decoding: what came before came beside prompts."""
        return _per_second(self.num_decoded, self.decode_ms)


def simulate_cell(
    curves: CostCurves,
    policy: Policy,
    batch: int,
    acceptance: Profile,
    prompt_tokens: int | Sequence[int],
    max_tokens: int,
    seed: int = 0,
    noise: float = 0.0,
) -> SimulatedCell:
    """prompt_tokens: of all sequences, or of each. The policy keeps what it learns."""
    requests = closed_batch(batch, prompt_tokens, max_tokens, np.random.default_rng([seed, 0]))
    target = SimulatedTarget(
        curves.name, curves, lambda: policy, acceptance, requests, max_batch=batch, shares_device=True
    )
    report = simulate([target], SimulatedPool() if curves.drafter else None, seed, noise).targets[0]
    firsts, lasts = [one.first_ms for one in report.served], [one.last_ms for one in report.served]
    tpots = [one.tpot_ms for one in report.served if one.tpot_ms is not None]
    return SimulatedCell(
        num_decoded=report.num_decoded,
        decode_ms=max(lasts) - max(firsts),
        total_tokens_per_second=_per_second(report.num_tokens, max(lasts)),
        mean_acceptance_length=report.mean_acceptance_length,
        ttft_ms=median(one.ttft_ms for one in report.served),
        tpot_ms=median(tpots) if tpots else None,
        num_rounds=report.num_rounds,
        drafted=report.drafted,
    )


def closed_batch(
    batch: int, prompt_tokens: int | Sequence[int], max_tokens: int, rng: np.random.Generator
) -> list[Request]:
    """All at time 0. prompt_tokens: of all, or of each."""
    prompts = [prompt_tokens] * batch if isinstance(prompt_tokens, int) else list(prompt_tokens)
    if len(prompts) != batch:
        raise ConfigError(f"{len(prompts)} prompt lengths do not make a batch of {batch}; give one for each sequence")
    seeds = rng.integers(1 << 62, size=batch).tolist()
    return [Request(0.0, prompt, max_tokens, seed) for prompt, seed in zip(prompts, seeds, strict=True)]


def poisson(
    rate: float, seconds: float, prompt_tokens: Sequence[int], max_tokens: Sequence[int], rng: np.random.Generator
) -> list[Request]:
    """Arrivals at `rate` a second, for so long; lengths are drawn from those given, each as likely."""
    if rate <= 0 or seconds <= 0:
        raise ConfigError(f"nothing arrives at {rate:g} requests a second in {seconds:g} s; give more than 0 of both")
    size = int(rng.poisson(rate * seconds))
    at = np.sort(rng.uniform(0.0, 1e3 * seconds, size))
    prompts, outputs = rng.choice(prompt_tokens, size), rng.choice(max_tokens, size)
    seeds = rng.integers(1 << 62, size=size)
    rows = zip(at.tolist(), prompts.tolist(), outputs.tolist(), seeds.tolist(), strict=True)
    return [Request(*row) for row in rows]


def placed(targets: Sequence[SimulatedTarget], num_replicas: int) -> list[int]:
    """A replica for each target: the one with the least work so far, the largest targets first."""
    work = [sum(request.max_tokens for request in target.requests) for target in targets]
    load, replicas = [0] * num_replicas, [0] * len(targets)
    for index in sorted(range(len(targets)), key=lambda index: -work[index]):
        replicas[index] = min(range(num_replicas), key=load.__getitem__)
        load[replicas[index]] += work[index]
    return replicas


def jitter_of(noise: float, rng: np.random.Generator) -> Jitter:
    """Log-normal factors of mean 1."""
    return (lambda: math.exp(noise * rng.standard_normal() - noise * noise / 2)) if noise else lambda: 1.0


def report_of(name: str, target: Target) -> TargetReport:
    counts, served = target.counts, sorted(target.served, key=lambda one: one.request.at_ms)
    num_tokens = sum(one.request.max_tokens for one in served)
    span = max((one.last_ms for one in served), default=0.0) - (served[0].request.at_ms if served else 0.0)
    drafted = {key: rows / max(counts.rows, 1) for key, rows in counts.drafted.most_common()}
    return TargetReport(
        name=name,
        num_tokens=num_tokens,
        num_decoded=counts.decoded,
        tokens_per_second=_per_second(num_tokens, span),
        ttft_ms=spread([one.ttft_ms for one in served]) or Spread(0.0, 0.0, 0.0),
        tpot_ms=spread([one.tpot_ms for one in served if one.tpot_ms is not None]),
        mean_acceptance_length=counts.committed / counts.rows if counts.rows else None,
        wait_ms=counts.wait_ms / max(counts.asked, 1),
        missed=counts.missed / max(counts.asked, 1),
        exposed_ms=counts.exposed_ms / max(counts.asked, 1),
        hits=target.hits,
        drafted=drafted,
        num_rounds=counts.rounds,
        served=tuple(served),
    )


def spread(values: Sequence[float]) -> Spread | None:
    """None for no values."""
    return Spread(*np.percentile(values, (50, 90, 99)).tolist()) if values else None


def _replicas(loop: Loop, targets: Sequence[SimulatedTarget], pool: SimulatedPool, jitter: Jitter) -> list[Replica]:
    if pool.num_replicas < 1:
        raise ConfigError(f"a pool of {pool.num_replicas} replicas drafts nothing; give 1 or more, or no pool")
    exits = targets[0].profile.exits
    if any(target.profile.exits != exits for target in targets):
        raise ConfigError("the targets' acceptance names different exits, but one pool drafts for them all")
    curves = next((one.curves for one in targets if one.curves.drafter), targets[0].curves)
    tables = PoolTables(curves, exits)
    devices = [Device(loop, pool.beside) for _ in range(pool.num_replicas)]
    return [Replica(loop, device, tables, len(exits), pool.rules, jitter) for device in devices]


def _targets(
    loop: Loop, targets: Sequence[SimulatedTarget], replicas: Sequence[Replica], jitter: Jitter
) -> list[Target]:
    keys = count()
    tables: dict[int, TargetTables] = {}  # targets of one kind share what was read off their curves
    places = placed(targets, len(replicas)) if replicas else []
    made: list[Target] = []
    for index, target in enumerate(targets):
        replica = replicas[places[index]] if replicas else None
        drafting = _drafting(loop, target, replica, keys) if replica is not None else None
        device = Device(loop, target.beside)
        if replica is not None and target.shares_device:
            device, replica.eager = replica.device, False
        elif replica is not None:
            device.neighbours.append(replica.device)
            replica.device.neighbours.append(device)
        read = tables.setdefault(id(target.curves), TargetTables(target.curves))
        limits = (target.max_batch, target.prefill_chunk)
        told = (loop, device, drafting, target.policy(), read, limits, jitter, keys, target.fate)
        made.append(Target(*told) if target.overlap is None else MirrorTarget(*told, modes=target.overlap.modes))
    return made


def _drafting(loop: Loop, target: SimulatedTarget, replica: Replica, keys: Iterator[int]) -> Drafting:
    if target.overlap is not None:
        return MirrorDrafting(loop, replica, target.profile, target.deadline_ms, target.overlap, keys)
    return Drafting(loop, replica, target.profile, target.shares_device, target.deadline_ms)


def _replica_report(replica: Replica, span_ms: float) -> ReplicaReport:
    rows = replica.num_rows / max(replica.num_passes, 1)
    return ReplicaReport(replica.busy_ms / span_ms if span_ms else 0.0, replica.num_passes, rows)


def _per_second(tokens: int, ms: float) -> float:
    return 1e3 * tokens / ms if ms > 0 else 0.0
