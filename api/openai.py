"""OpenAI's request bodies: the supported fields, their types and defaults. `unsupported` handles all other fields.

null means the default everywhere, as in OpenAI's schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from api import unsupported
from api.logit_bias import read_bias
from api.seeds import unsigned_seed
from api.shapes import Body, JsonObject
from api.structured import ResponseFormat, StructuredOutputs, grammar_of
from api.tools import NamedChoice, Tool, ToolCall, ToolChoice, Tools
from protocol.errors import InvalidRequest
from protocol.limits import MAX_LENGTH
from protocol.logit_rules import LogitRules, check_top
from protocol.plan import Speculation
from protocol.request import MAX_PRIORITY, SamplingParams

MAX_PROMPTS = 64
MAX_CHOICES = 128
INT32_MAX = (1 << 31) - 1
OFF = Speculation(depth=0, length=0)


def _whole(value: Any) -> Any:
    """A whole float as an integer, since JSON has one type of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parts(content: Any) -> Any:
    """A plain string as one text part, so that errors in parts name their place."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


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
    """The fields of both routes.

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


class CompletionRequest(GenerationBody):
    only = unsupported.ONLY_IN_COMPLETIONS
    default_max_tokens: ClassVar[int | None] = 16  # as OpenAI's

    echo: bool = False
    prompt: str | Strings | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    add_special_tokens: bool = True
    logprobs: Whole | None = None

    @model_validator(mode="after")
    def _check_offsets(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise InvalidRequest("echo has no logprobs of the prompt to tell; send one of echo and logprobs", "echo")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> Sequence[str | Sequence[int]]:
        """Each for `n` choices. A list of integers is one prompt. Raises InvalidRequest for none or too many."""
        is_single = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        prompts: list[Any] = [self.prompt] if is_single else list(self.prompt)
        if not 0 < len(prompts) <= MAX_PROMPTS:
            raise InvalidRequest(f"{len(prompts)} prompts in one request; send 1 to {MAX_PROMPTS}", "prompt")
        if len(prompts) * self.n > MAX_CHOICES:
            raise InvalidRequest(
                f"n {self.n} for {len(prompts)} prompts are more than {MAX_CHOICES} choices; send fewer", "n"
            )
        return prompts

    def echoes(self) -> list[str | tuple[int, ...]]:
        """What the text of each prompt's choices begins with: nothing, or the prompt as it was sent."""
        prompts = self.prompts()
        if not self.echo:
            return [""] * len(prompts)
        return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


class TextPart(Body):
    dropped = unsupported.DROPPED_IN_MESSAGE

    type: Literal["text"]
    text: str


class Message(Body):
    only = unsupported.ONLY_IN_MESSAGE
    dropped = unsupported.DROPPED_IN_MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Annotated[list[TextPart], Field(fail_fast=True)], BeforeValidator(_parts)] = Field(
        default_factory=list
    )
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] = Field(default_factory=list)
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest(f"tool_calls are the assistant's, not the {self.role}'s; leave them out", "tool_calls")
        if (self.tool_call_id is not None) is not (self.role == "tool"):
            raise InvalidRequest(
                "tool_call_id belongs to messages of role tool, and each of them has one", "tool_call_id"
            )
        return self

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationBody):
    """add_generation_prompt: None means unless the last message is to be continued."""

    only = unsupported.ONLY_IN_CHAT
    prompt_field = "messages"

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    add_special_tokens: Literal[False] = False  # the template writes them
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: Whole = 0

    @model_validator(mode="after")
    def _check_ending(self) -> ChatCompletionRequest:
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message goes on with the last message, add_generation_prompt begins another; send one",
                "continue_final_message",
            )
        if self.continue_final_message and self.messages[-1].tool_calls:
            raise InvalidRequest("a message with tool_calls cannot be continued", "continue_final_message")
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> ChatCompletionRequest:
        choice = self.tool_choice
        if self.must_call and not self.tools:
            raise InvalidRequest("a call is asked for and there are no tools; send some", "tool_choice")
        if isinstance(choice, NamedChoice) and not self.callable:
            raise InvalidRequest(f"there is no function {choice.function.name!r} among the tools", "tool_choice")
        if self.must_call and super().is_shaped:
            raise InvalidRequest(
                f"{self.format_field} shapes what is said, and tool_choice asks for a call; send one", "tool_choice"
            )
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatCompletionRequest:
        check_top(self.top_logprobs, "top_logprobs")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(f"top_logprobs {self.top_logprobs} need logprobs: true", "top_logprobs")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def offered(self) -> Sequence[Tool]:
        """The tools that the model is told of. It cannot call what it does not know."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        return self.tool_choice not in ("none", "auto")

    @property
    def callable(self) -> Sequence[Tool]:
        """The tools of which one has to be called, where one has to."""
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedChoice) else None
        return [tool for tool in self.offered if named in (None, tool.function.name)]

    @property
    def is_shaped(self) -> bool:
        return self.must_call or super().is_shaped
