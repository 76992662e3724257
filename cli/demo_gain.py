"""Measures every target with drafts and without, in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from cli.demo_asking import DemoRequest
from cli.demo_streams import StreamedCompletion
from cli.output import listed, table
from deployments.config import AppConfig

WITH, WITHOUT = "auto", "off"  # values of a request's speculation field

Pair = tuple[StreamedCompletion, StreamedCompletion]  # (with drafts, without) for one target


def describe_run(config: AppConfig, num_cores: int, steps: Collection[str]) -> str:
    """A line about cores, replicas and threads. steps: how the models run."""
    parts = [(target.name, target.num_replicas, target.threads) for target in config.targets]
    if config.pool is not None and config.placement == "separate":
        parts.append(("drafter", config.pool.num_replicas, config.pool.threads))
    replicas = listed(f"{name} {count} x {plural(threads, 'thread')}" for name, count, threads in parts)
    return f"{plural(num_cores, 'core')}; replicas: {replicas}; steps by {' and '.join(sorted(steps))}"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def measure(ask_all: Callable[[DemoRequest], Sequence[StreamedCompletion]], ask: DemoRequest, index: int) -> list[Pair]:
    """Measures a pair for each target. The order of the two alternates with `index`.

    ask_all: sends a request to every target at the same time.
    """
    streamed = {way: ask_all(replace(ask, speculation=way)) for way in (WITH, WITHOUT)[:: 1 if index % 2 else -1]}
    return list(zip(streamed[WITH], streamed[WITHOUT], strict=True))


@dataclass(frozen=True, slots=True)
class Gain:
    """Results of one target.

    with_drafts, without: tokens per second, medians. gain: median of the ratio of each pair. accepted_per_round: of
    drafted tokens.
    same_text: whether both texts of every pair are equal.
    """

    model: str
    with_drafts: float
    without: float
    gain: float
    accepted_per_round: float
    same_text: bool

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Gain:
        return cls(
            model=pairs[0][0].model,
            with_drafts=statistics.median(on.tokens_per_second for on, _ in pairs),
            without=statistics.median(off.tokens_per_second for _, off in pairs),
            gain=statistics.median(on.tokens_per_second / (off.tokens_per_second or 1.0) for on, off in pairs),
            accepted_per_round=sum(on.num_accepted for on, _ in pairs) / max(1, sum(on.num_rounds for on, _ in pairs)),
            same_text=all(on.text == off.text for on, off in pairs),
        )


def gain_table(gains: Sequence[Gain], num_pairs: int) -> Table:
    heads = ("without drafts", "with drafts", "gain", "accepted a round", "text")
    title = f"tokens per second, medians of {plural(num_pairs, 'pair')}"
    return table(title, ("target",), heads, map(_cells, gains))


def _cells(gain: Gain) -> Iterator[str]:
    yield from (gain.model, f"{gain.without:.0f}", f"{gain.with_drafts:.0f}", f"{gain.gain:.2f}x")
    yield from (f"{gain.accepted_per_round:.2f}", "the same" if gain.same_text else "differs")
