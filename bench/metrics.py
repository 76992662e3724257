"""From tokens and their arrival times to figures: the one place where a rate or an acceptance is defined.

rate              tokens after the last first token / the time from then to the last token; prefill apart
rate, kept full   all tokens / the window from the batch's filling up to its first slot left empty; prefill inside
prompt rate       tokens of the prompts / the time from hand-over to the last one's first token, its sampling included
TTFT, TPOT        first token - hand-over; (last - first token) / (tokens - 1). Medians over prompts and repetitions
acceptance length tokens of a verifying pass, its bonus included, mean over passes
acceptance rate   accepted / drafted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median

from bench.cells import Cell, CellOutcome, Timed
from bench.stats import Ratio, best, paired_ratio

Repetition = Sequence[CellOutcome]  # one for each group of prompts


@dataclass(frozen=True, slots=True)
class CellResult:
    """One value a repetition in the lists; None where an engine does not tell, or there is nothing to compare with.

    prompt_tokens_per_second: empty for a batch kept full, where prompts come beside other tokens.
    draft_ms_per_token: layers, head, noise, bookkeeping, all but the drafter's prefill; empty where not known.
    identical: share of prompts whose tokens equal our plain loop's, over all repetitions.
    speedup: of `tokens_per_second` over our plain loop's in the same repetition, of those that both have.
    """

    engine: str
    cell: Cell
    tokens_per_second: list[float]
    prompt_tokens_per_second: list[float]
    ttft_ms: float
    tpot_ms: float | None
    mean_acceptance_length: float | None
    acceptance_rate: float | None
    draft_ms_per_token: list[float]
    identical: float | None
    speedup: Ratio | None = None

    def as_json(self) -> dict[str, object]:
        """The cell's settings stand beside the figures."""
        fields = asdict(self)
        return {**fields.pop("cell"), **fields}


def summary(
    engine: str, cell: Cell, repetitions: Sequence[Repetition], prompt_tokens: int, same: Sequence[bool] | None
) -> CellResult:
    """prompt_tokens: of all prompts of a repetition. same: for every output whether it is our plain loop's, None where
    that cannot be.
    """
    outcomes = [outcome for repetition in repetitions for outcome in repetition]
    outputs = [output for outcome in outcomes for output in outcome.outputs]
    passes = [size for output in outputs for size in output.verified]
    drafted = _total([output.drafted for output in outputs])
    tpots = [_span_ms(output) / (len(output.arrived) - 1) for output in outputs if len(output.arrived) > 1]
    return CellResult(
        engine=engine,
        cell=cell,
        tokens_per_second=[round(rate(repetition, cell), 2) for repetition in repetitions],
        prompt_tokens_per_second=[
            round(prompt_tokens / prefill_s(repetition), 2) for repetition in repetitions if not cell.queue
        ],
        ttft_ms=round(median(1e3 * (output.arrived[0] - output.started) for output in outputs), 3),
        tpot_ms=round(median(tpots), 4) if tpots else None,
        mean_acceptance_length=round(fmean(passes), 4) if passes else None,
        acceptance_rate=round((sum(passes) - len(passes)) / drafted, 4) if drafted else None,
        draft_ms_per_token=[round(ms, 4) for ms in map(draft_ms, repetitions) if ms is not None],
        identical=sum(same) / len(same) if same else None,
    )


def rate(repetition: Repetition, cell: Cell) -> float:
    """Tokens per second of one repetition."""
    if cell.queue:
        return full_rate(repetition[0].outputs, cell.batch)
    decoded = [decode(outcome) for outcome in repetition]
    return _per_second(sum(tokens for tokens, _ in decoded), sum(seconds for _, seconds in decoded))


def decode(outcome: CellOutcome) -> tuple[int, float]:
    """Tokens after the last prompt's first, and the seconds that they took: what came before came beside prompts."""
    start = max(output.arrived[0] for output in outcome.outputs)
    tokens = sum(now > start for output in outcome.outputs for now in output.arrived)
    return tokens, max(output.arrived[-1] for output in outcome.outputs) - start


def prefill_s(repetition: Repetition) -> float:
    """Of groups that start together: until the last prompt of each has its first token."""
    return sum(max(output.arrived[0] - output.started for output in outcome.outputs) for outcome in repetition)


def full_rate(outputs: Sequence[Timed], batch: int) -> float:
    """Over the window that starts once `batch` prompts have their first token and ends when nothing refills a slot."""
    start = sorted(output.arrived[0] for output in outputs)[batch - 1]
    end = sorted(output.arrived[-1] for output in outputs)[len(outputs) - batch]
    return _per_second(sum(start < now <= end for output in outputs for now in output.arrived), end - start)


def draft_ms(repetition: Repetition) -> float | None:
    """Mean over groups of the cost of a drafted token; None where the engine did not draft, or does not tell."""
    known = [outcome.draft_ms for outcome in repetition if outcome.draft_ms is not None]
    return fmean(known) if known else None


def with_speedups(results: Sequence[CellResult]) -> list[CellResult]:
    """Each result beside our plain loop's of the same batch, temperature, queue and category."""
    plain = {_peers(result): result.tokens_per_second for result in results if result.cell.mode == "plain"}
    return [
        replace(result, speedup=_speedup(result.tokens_per_second, plain[_peers(result)]))
        if _peers(result) in plain
        else result
        for result in results
    ]


def fastest(results: Sequence[CellResult], mode: str) -> Cell:
    """The setting of a mode."""
    return best({result.cell: result.tokens_per_second for result in results if result.cell.mode == mode})


def _speedup(rates: Sequence[float], plain: Sequence[float]) -> Ratio:
    common = min(len(rates), len(plain))
    return paired_ratio(rates[:common], plain[:common])


def _peers(result: CellResult) -> Cell:
    return replace(result.cell, mode="", depth=None, length=0)


def _per_second(tokens: int, seconds: float) -> float:
    """0 where all tokens came at once, as from a server that joins them."""
    return tokens / seconds if seconds > 0 else 0.0


def _span_ms(output: Timed) -> float:
    return 1e3 * (output.arrived[-1] - output.arrived[0])


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
