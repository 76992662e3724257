"""The measuring loop: repetition by repetition, in each of them every cell once, in one order.

Neighbours in time are thus what is compared, and drift of the machine falls on all engines alike. An engine that
cannot run here, or dies on the way, loses its column and is named in the result; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.cells import OURS, BenchEngine, Cell, CellOutcome, Subject, TokenIds, Unavailable
from bench.metrics import CellResult, Repetition, summary, with_speedups
from bench.ours import DraftPoolEngine
from bench.workload import Workload

WARM_TOKENS = 12
SETTLE_S = 0.05  # lets the threads of the engine before stop spinning
Groups = list[list[tuple[int, ...]]]
Tick = Callable[[Sequence[CellResult]], object]


@dataclass(slots=True)
class Engines:
    """Open engines by mode, and why the others are not. One engine may serve several modes."""

    ours: DraftPoolEngine
    by_mode: dict[str, BenchEngine]
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def drop(self, engine: BenchEngine, reason: Unavailable) -> None:
        for mode in [mode for mode, other in self.by_mode.items() if other is engine]:
            del self.by_mode[mode]
            self.left_out[mode] = str(reason)


@contextmanager
def opened(
    subject: Subject, modes: Sequence[str], url: str | None = None, model: str | None = None
) -> Iterator[Engines]:
    """Ours in any case, since its plain loop is what all texts are compared with."""
    ours = DraftPoolEngine(subject)
    ours.open()
    engines = Engines(ours, {mode: ours for mode in modes if mode in OURS}, {ours.name: ours.version})
    with ExitStack() as stack:
        stack.callback(ours.close)
        for engine, its_modes in _peers(subject, modes, url, model):
            engines.by_mode |= dict.fromkeys(its_modes, engine)
            stack.callback(engine.close)
            try:
                engine.open()
                engines.versions[engine.name] = engine.version
            except Unavailable as reason:
                engines.drop(engine, reason)
        yield engines


def _peers(
    subject: Subject, modes: Sequence[str], url: str | None, model: str | None
) -> Iterator[tuple[BenchEngine, list[str]]]:
    """Each with those of its modes that are asked for; imported only then."""
    if generating := [mode for mode in modes if mode in ("generate", "assisted", "lookup")]:
        from bench.peers.hf import TransformersEngine

        yield TransformersEngine(subject), generating
    if "continuous" in modes:
        from bench.peers.hf import ContinuousBatching

        yield ContinuousBatching(subject), ["continuous"]
    if openvino := [mode for mode in modes if mode.startswith("openvino")]:
        from bench.peers.openvino import OpenVinoEngine

        yield OpenVinoEngine(subject, openvino), openvino
    if llamacpp := [mode for mode in modes if mode.startswith("llamacpp")]:
        from bench.peers.llamacpp import LlamaCppEngine

        yield LlamaCppEngine(subject), llamacpp
    if "url" in modes and url is not None:
        from bench.peers.url import UrlEngine

        yield UrlEngine(url, model), ["url"]


class Oracle:
    """Our plain loop's text of every prompt, one sequence and one token a step; each is made once."""

    def __init__(self, engine: DraftPoolEngine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._known: dict[tuple[float, int, tuple[int, ...]], tuple[int, ...]] = {}

    def texts(self, cell: Cell, groups: Groups) -> list[tuple[int, ...]]:
        return [self._text(cell.temperature, seed, prompt) for group in groups for seed, prompt in enumerate(group)]

    def _text(self, temperature: float, seed: int, prompt: tuple[int, ...]) -> tuple[int, ...]:
        key = (temperature, seed if temperature else 0, prompt)
        if key not in self._known:
            self._known[key] = self._engine.oracle(prompt, temperature, seed, self._max_tokens)
        return self._known[key]


def measure(
    engines: Engines,
    cells: Sequence[Cell],
    workload: Workload,
    *,
    repeat: int,
    max_tokens: int,
    tick: Tick | None = None,
) -> list[CellResult]:
    """tick is called after each cell of each repetition, and of the warm-up before them, with the results so far."""
    groups = {cell: workload.groups(cell) for cell in cells}
    oracle = Oracle(engines.ours, max_tokens)
    taken: dict[Cell, list[Repetition]] = {cell: [] for cell in cells}
    results: dict[Cell, CellResult] = {}

    def so_far() -> list[CellResult]:
        return with_speedups([result for cell, result in results.items() if cell.mode in engines.by_mode])

    for cell in cells:
        _attempt(engines, cell, groups[cell], min(WARM_TOKENS, max_tokens))
        oracle.texts(cell, groups[cell])
        if tick is not None:
            tick([])
    for cell in [*cells] * repeat:
        outcomes = _attempt(engines, cell, groups[cell], max_tokens)
        if outcomes is not None:
            taken[cell].append(outcomes)
            texts = oracle.texts(cell, groups[cell])
            results[cell] = _result(engines.by_mode[cell.mode], cell, taken[cell], groups[cell], texts)
        if tick is not None:
            tick(so_far())
    return so_far()


def _attempt(engines: Engines, cell: Cell, groups: Groups, max_tokens: int) -> list[CellOutcome] | None:
    engine = engines.by_mode.get(cell.mode)
    if engine is None:
        return None
    time.sleep(SETTLE_S)
    try:
        return [engine.run(cell, group, max_tokens) for group in groups]
    except Unavailable as reason:
        engines.drop(engine, reason)
        return None


def _result(
    engine: BenchEngine, cell: Cell, repetitions: Sequence[Repetition], groups: Groups, texts: Sequence[TokenIds]
) -> CellResult:
    outputs = [output for repetition in repetitions for outcome in repetition for output in outcome.outputs]
    # Sampled text of an engine with noise of its own is another text, and a server may not tell its token ids.
    comparable = (engine.shares_noise or not cell.temperature) and all(output.token_ids for output in outputs)
    expected = list(texts) * len(repetitions)
    same = [output.token_ids == text for output, text in zip(outputs, expected, strict=True)] if comparable else None
    prompt_tokens = sum(len(prompt) for group in groups for prompt in group)
    return summary(engine.name, cell, repetitions, prompt_tokens, same)
