"""The fields that every body has which asks for text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from api import unsupported
from api.logit_bias import read_bias
from api.seeds import unsigned_seed
from api.shapes import Body, JsonObject
from api.structured import ResponseFormat, StructuredOutputs, grammar_of
from protocol.errors import InvalidRequest
from protocol.limits import MAX_LENGTH
from protocol.logit_rules import LogitRules
from protocol.plan import Speculation
from protocol.request import MAX_PRIORITY, SamplingParams

MAX_CHOICES = 128
INT32_MAX = (1 << 31) - 1
OFF = Speculation(depth=0, length=0)


def _whole(value: Any) -> Any:
    """A whole float as an integer, since JSON has one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Strings = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[Whole], Field(fail_fast=True)]


class StreamOptions(Body):
    dropped = unsupported.DROPPED_IN_STREAM_OPTIONS

    include_usage: bool = False
    continuous_usage_stats: bool = False


class DepthAndLength(Body):
    depth: Annotated[Whole, Field(ge=1, le=INT32_MAX)]
    length: Annotated[Whole, Field(ge=1, le=MAX_LENGTH)]


class GenerationBody(Body):
    """What a request for text may say.

    default_max_tokens: tokens if the body has no limit, less if the context has less room; None: all the room.
    prompt_field, format_field: the caller's names for the prompt and for response_format.
    """

    only = unsupported.ONLY
    dropped = unsupported.DROPPED
    default_max_tokens: ClassVar[int | None] = None
    prompt_field: ClassVar[str] = "prompt"
    format_field: ClassVar[str] = "response_format"

    model: str
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Annotated[Whole, Field(ge=-1, le=INT32_MAX)] = 0
    min_p: float = 0.0
    seed: Whole | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: str | Strings = Field(default_factory=list)
    stop_token_ids: TokenIds = Field(default_factory=list)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    min_tokens: Whole = 0
    logit_bias: dict[str, float] = Field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    return_token_sources: bool = False
    speculation: Literal["auto", "off", False] | DepthAndLength = "auto"
    priority: Annotated[Whole, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0

    @model_validator(mode="after")
    def _check_pairs(self) -> GenerationBody:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(f"max_tokens {old} and max_completion_tokens {new} differ; send one", "max_tokens")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options need stream: true", "stream_options")
        return self

    @model_validator(mode="after")
    def _check_grammar(self) -> GenerationBody:
        if self.is_shaped:
            for name, value in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens)):
                if value:
                    raise InvalidRequest(f"{name} {value} and an answer that ends by its form; leave {name} out", name)
        return self

    @property
    def is_shaped(self) -> bool:
        asked = self.response_format
        return self.structured_outputs is not None or (asked is not None and asked.type != "text")

    @property
    def wanted(self) -> JsonObject | None:
        """The JSON Schema of the answer; None: it has none."""
        asked = (each for each in (self.response_format, self.structured_outputs) if each is not None)
        return next((each.wanted for each in asked if each.wanted is not None), None)

    def grammar(self) -> str:
        """Of the answer; empty: none. A large one takes seconds to check. Raises InvalidRequest."""
        return grammar_of(self.response_format, self.structured_outputs, self.format_field)

    @property
    def limit(self) -> int | None:
        """The tokens to generate at most, if the body says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def drafting(self) -> Speculation | None:
        """How to draft; None: as the target's policy decides."""
        if isinstance(self.speculation, DepthAndLength):
            return Speculation(self.speculation.depth, self.speculation.length)
        return None if self.speculation == "auto" else OFF

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most probable tokens to tell with each token; None: no logprobs."""
        return None

    def sampling(self, seed: int) -> SamplingParams:
        """Raises InvalidRequest for a value out of range. A top_k of -1 is off too, as in vLLM."""
        return SamplingParams(self.temperature, max(self.top_k, 0), self.top_p, self.min_p, unsigned_seed(seed))

    def rules(self, stop_ids: frozenset[int]) -> LogitRules:
        """stop_ids: the tokens that end the text. Raises InvalidRequest for a value out of range."""
        penalties = self.frequency_penalty, self.presence_penalty, self.repetition_penalty
        return LogitRules(
            read_bias(self.logit_bias), *penalties, self.min_tokens, stop_ids if self.min_tokens else frozenset()
        )
