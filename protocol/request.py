"""A request after validation and tokenizing, and what comes back: runs of tokens.

Token ids are left out of every repr, so that no log or traceback carries a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from protocol.errors import InvalidRequest, PromptTooLong
from protocol.logit_rules import MAX_TOLD, NO_RULES, LogitRules, TokenLogprobs, check_top
from protocol.plan import Speculation

SEED_BITS = 64
MAX_PRIORITY = 1000  # and its negative
MIN_TEMPERATURE = 1e-5
OWN = 0  # the source of a token that nobody drafted


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"  # cancelled by the caller
    CLOSED = "closed"  # the engine was stopped; another one can go on with the request
    ERROR = "error"  # the engine failed; the log says why
    UNDEFINED = "undefined"  # the model's scores are no numbers: there is no next token


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is sampled. With the target and the prompt it determines the text.

    temperature 0 is argmax, and so is one too small to divide by in float32. top_k 0, top_p 1 and min_p 0 are off;
    order and meaning as in transformers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise InvalidRequest(f"temperature {self.temperature} is not in [0, 100]", "temperature")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k {self.top_k} is negative; 0 turns it off", "top_k")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequest(f"top_p {self.top_p} is not in (0, 1]; 1 turns it off", "top_p")
        if not 0.0 <= self.min_p <= 1.0:
            raise InvalidRequest(f"min_p {self.min_p} is not in [0, 1]; 0 turns it off", "min_p")
        if not 0 <= self.seed < 1 << SEED_BITS:
            raise InvalidRequest(f"seed {self.seed} does not fit {SEED_BITS} unsigned bits", "seed")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_filters(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a sequence ends. `stop_token_ids` holds EOS too, unless the request ignores it."""

    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens {self.max_tokens} is below 1", "max_tokens")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """resume_ids: the answer's first tokens, which another replica gave. The answer goes on behind them; they count for
    max_tokens, and the index of its next token is their number. priority: the lower, the earlier its turn.
    traceparent: the span that the request belongs to, as W3C's header names it; empty: it is not traced.
    """

    request_id: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    sampling: SamplingParams
    stop: StopRules
    speculation: Speculation | None = None  # None: as the target's policy decides
    rules: LogitRules = NO_RULES
    logprobs: int | None = None  # how many of the most probable tokens to tell at each place; None: no logprobs
    resume_ids: tuple[int, ...] = field(default=(), repr=False)
    grammar: str = field(default="", repr=False)  # of the text, as llguidance reads it; empty: none
    priority: int = 0
    traceparent: str = ""
    tells_sources: bool = False  # whether its runs say where each token came from
    tells_prompt: bool = False  # whether logprobs are told of the prompt's tokens too

    def __post_init__(self) -> None:
        if self.logprobs is not None:
            check_top(self.logprobs, "logprobs")
            most = MAX_TOLD // (1 + self.logprobs) - len(self.prompt_ids) * self.tells_prompt
            if most < 1:
                raise InvalidRequest(
                    f"a prompt of {len(self.prompt_ids)} tokens with {self.logprobs} top logprobs each is too much to "
                    "tell; send a shorter one, or fewer logprobs",
                    "echo",
                )
            if self.stop.max_tokens > most:
                raise InvalidRequest(
                    f"max_tokens {self.stop.max_tokens} with {self.logprobs} top logprobs is too long an answer; ask "
                    f"for {most} tokens at most",
                    "max_tokens",
                )
        if self.rules.min_tokens > self.stop.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.rules.min_tokens} exceeds max_tokens {self.stop.max_tokens}; send less, or a larger "
                "max_tokens",
                "min_tokens",
            )


@dataclass(frozen=True, slots=True)
class SequenceTimes:
    """Seconds of a sequence at its target: in the queue, from there to the first token, from there to the last.

    draft_s: of its rounds, until the proposals of all their rows were there.
    """

    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """rounds counts decode steps (prefill gives the first token): tokens = 1 + rounds + accepted, before the cut."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    histogram: tuple[int, ...] = ()  # [n]: rounds in which n drafted tokens were accepted
    times: SequenceTimes = field(default=SequenceTimes(), compare=False)


@dataclass(frozen=True, slots=True)
class TokenRun:
    """The tokens that one round committed; `index` is the position of the first among the generated tokens.

    logprobs, sources: of each token if the request asks for them, else empty. A source is OWN for the target's own
    pick, the exit (in layers) at which an accepted token was drafted, and that exit below 0 if it was drafted ahead.
    num_cached: tokens of the prompt whose KV was kept from requests before, so that they were not read. of_prompt: the
    logprobs of the prompt's tokens behind its first, with the first run, if the request asks for them.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    stats: SequenceStats | None = None  # set with finish_reason
    logprobs: tuple[TokenLogprobs, ...] = field(default=(), repr=False)
    num_cached: int = 0
    sources: tuple[int, ...] = ()
    of_prompt: tuple[TokenLogprobs, ...] = field(default=(), repr=False)


def check_prompt(request: GenerateRequest, max_length: int, vocab_size: int) -> None:
    """Raises InvalidRequest or PromptTooLong unless the prompt leaves room for one token and fits the vocabulary."""
    num_prompt = len(request.prompt_ids)
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty; send at least one token", "prompt")
    num_resumed, stop = len(request.resume_ids), request.stop
    if num_resumed >= stop.max_tokens or not stop.stop_token_ids.isdisjoint(request.resume_ids):
        raise InvalidRequest(f"the answer ended within the {num_resumed} tokens that it is to go on from", "resume_ids")
    if num_prompt + num_resumed >= max_length:
        raise PromptTooLong(
            f"the prompt has {num_prompt + num_resumed} tokens and this model holds {max_length}, one for the answer "
            "at least; shorten the prompt",
            "prompt",
        )
    token_ids = request.prompt_ids + request.resume_ids
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise InvalidRequest(f"a prompt token is outside the vocabulary of {vocab_size}", "prompt")
