"""A target in virtual time: the real step loop, fed with requests as they arrive."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from protocol.record import RoundRecord
from protocol.request import FinishReason, GenerateRequest, SamplingParams, StopRules, TokenRun
from simulation.loop import Loop
from simulation.text import mix, seed_of
from targets.sequence import Sequence
from targets.step import Stepper


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it comes, and its lengths. stops: ids that end it."""

    at_s: float
    num_prompt: int
    max_tokens: int
    stops: frozenset[int] = frozenset()


@dataclass(slots=True)
class Served:
    """What came of a request. Moments in seconds; tokens as they were handed over."""

    arrival: Arrival
    request: GenerateRequest
    first_s: float | None = None
    ended_s: float | None = None
    tokens: list[int] = field(default_factory=list, repr=False)
    reason: FinishReason | None = None

    def take(self, run: TokenRun, now: float) -> None:
        assert run.index == len(self.tokens), "a run is missing, or came twice"
        self.tokens += run.token_ids
        if self.first_s is None and self.tokens:
            self.first_s = now
        self.reason = run.finish_reason
        self.ended_s = now if run.finish_reason else None


def requests_of(target: int, arrivals: Several[Arrival], vocab_size: int) -> list[Served]:
    """Prompts are drawn from the number of the sequence."""
    return [Served(one, _request(target, number, one, vocab_size)) for number, one in enumerate(arrivals)]


def _request(target: int, number: int, arrival: Arrival, vocab_size: int) -> GenerateRequest:
    seed = seed_of(target, number)
    prompt = tuple(mix(seed, at) % vocab_size for at in range(arrival.num_prompt))
    stop = StopRules(arrival.max_tokens, arrival.stops)
    return GenerateRequest(f"{target}-{number}", prompt, SamplingParams(seed=seed), stop)


@dataclass(slots=True)
class Target:
    """served: in order of arrival. overhead_ms: of a round, by decoding rows. records: of the rounds so far."""

    name: str
    loop: Loop
    stepper: Stepper
    served: list[Served]
    overhead_ms: Several[float]
    records: list[RoundRecord] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(one.tokens) for one in self.served)

    @property
    def elapsed_s(self) -> float:
        """Until its last text ended."""
        return max((one.ended_s or 0.0 for one in self.served), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s if self.elapsed_s else 0.0

    def run(self) -> None:
        """Until all requests have ended. For an actor."""
        scheduler, coming = self.stepper.scheduler, 0
        live = {one.request.request_id: one for one in self.served}
        max_length = self.stepper.model.max_length
        while True:
            while coming < len(self.served) and self.served[coming].arrival.at_s <= self.loop.now:
                scheduler.add(Sequence(coming, self.served[coming].request, max_length))
                coming += 1
            if scheduler.has_work:
                self._step(live)
            elif coming == len(self.served):
                return
            else:
                self.loop.wait(self.served[coming].arrival.at_s)

    def _step(self, live: dict[str, Served]) -> None:
        num_rows = len(self.stepper.scheduler.decoding)
        runs, record = self.stepper.step()
        self.records.append(record)
        self.loop.sleep(1e-3 * self.overhead_ms[num_rows])
        for run in runs:
            live[run.request_id].take(run, self.loop.now)
