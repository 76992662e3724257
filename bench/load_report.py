"""What a load run's outcomes come to.

Definitions are the field's: TTFT from due to first token; TPOT = (last - first token) / (tokens - 1), so that several
tokens in one chunk count as several; E2E from due to last token; goodput = requests a second that keep every limit.
Rates divide by the time from the run's start to its last answer. A request that failed is in no latency and no rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.load_client import Outcome


@dataclass(frozen=True, slots=True)
class Limits:
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In milliseconds, interpolated linearly."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """goodput, ttft_ms and tpot_ms are None where answers came whole, for these have no first token.

    late_ms: the longest that a due request waited for a place at the client; near 0, or the client is the limit.
    mean_acceptance_length: bonus included, None where nothing was drafted or the server does not tell.
    """

    num_requests: int
    num_completed: int
    errors: dict[str, int]
    span_s: float
    requests_per_second: float
    output_tokens_per_second: float
    goodput: float | None
    ttft_ms: Percentiles | None
    tpot_ms: Percentiles | None
    e2e_ms: Percentiles | None
    late_ms: float
    mean_acceptance_length: float | None


def summarize(outcomes: Sequence[Outcome], limits: Limits) -> Summary:
    done = [outcome for outcome in outcomes if outcome.error is None]
    span_s = max((outcome.end_s for outcome in outcomes), default=0.0)
    streamed = bool(done) and all(outcome.first_s is not None for outcome in done)
    return Summary(
        num_requests=len(outcomes),
        num_completed=len(done),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        span_s=round(span_s, 3),
        requests_per_second=_rate(len(done), span_s),
        output_tokens_per_second=_rate(sum(outcome.num_tokens for outcome in done), span_s),
        goodput=_rate(sum(meets(outcome, limits) for outcome in done), span_s) if streamed else None,
        ttft_ms=_percentiles([ttft for outcome in done if (ttft := ttft_ms(outcome)) is not None]),
        tpot_ms=_percentiles([tpot for outcome in done if (tpot := tpot_ms(outcome)) is not None]),
        e2e_ms=_percentiles([1e3 * (outcome.end_s - outcome.due_s) for outcome in done]),
        late_ms=round(max((1e3 * (outcome.sent_s - outcome.due_s) for outcome in outcomes), default=0.0), 1),
        mean_acceptance_length=_acceptance(done),
    )


def ttft_ms(outcome: Outcome) -> float | None:
    return None if outcome.first_s is None else 1e3 * (outcome.first_s - outcome.due_s)


def tpot_ms(outcome: Outcome) -> float | None:
    """None for a single token, which has no time per token after the first."""
    if outcome.first_s is None or outcome.num_tokens < 2:
        return None
    return 1e3 * (outcome.end_s - outcome.first_s) / (outcome.num_tokens - 1)


def meets(outcome: Outcome, limits: Limits) -> bool:
    ttft, tpot = ttft_ms(outcome), tpot_ms(outcome)
    return ttft is not None and ttft <= limits.ttft_ms and (tpot is None or tpot <= limits.tpot_ms)


def _rate(amount: float, span_s: float) -> float:
    return round(amount / span_s, 3) if span_s > 0 else 0.0


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Percentiles(*(round(float(value), 2) for value in (np.mean(values), p50, p90, p99)))


def _acceptance(done: Sequence[Outcome]) -> float | None:
    rounds, accepted = sum(o.num_rounds for o in done), sum(o.num_accepted for o in done)
    return round(1 + accepted / rounds, 3) if rounds else None


def table(rows: dict[str, Summary], limits: Limits) -> str:
    """One line per target and one for all."""
    goodput = f"goodput({limits.ttft_ms:g}/{limits.tpot_ms:g})"
    units = "  ".join(f"{name + ' ms':14}" for name in ("TTFT", "TPOT", "E2E"))
    lines = [f"{'p50/p99':12} {'done':>9} {'req/s':>7} {goodput:>18} {'tok/s':>8}  {units}"]
    for name, row in rows.items():
        good = "-" if row.goodput is None else f"{row.goodput:.2f}"
        times = "  ".join(_pair(value) for value in (row.ttft_ms, row.tpot_ms, row.e2e_ms))
        done = f"{row.num_completed}/{row.num_requests}"
        errors = "".join(f"  {count} {kind}" for kind, count in sorted(row.errors.items()))
        lines.append(
            f"{name:12} {done:>9} {row.requests_per_second:7.2f} {good:>18} {row.output_tokens_per_second:8.1f}  "
            f"{times}{errors}"
        )
    return "\n".join(lines) + "\n"


def _pair(value: Percentiles | None) -> str:
    return f"{'-':14}" if value is None else f"{f'{value.p50:.1f}/{value.p99:.1f}':14}"
