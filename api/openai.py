"""OpenAI's request bodies: the supported fields and their types. `check_fields` handles all other fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from api.check_fields import DROPPED, DROPPED_IN_MESSAGE, ONLY, ONLY_IN_MESSAGE, check_fields, with_whole_numbers
from api.generation import GenerationOptions
from api.speculation import INT32_MAX, SpeculationField, parse_speculation
from protocol.errors import InvalidRequest
from protocol.plan import Speculation

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
MAX_PROMPTS = 64

Strings = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, fields: Any) -> Any:
        return check_fields(fields, {}, frozenset({"include_obfuscation"}))


class _GenerationBody(_Body):
    """The fields of both routes. null means the default everywhere, as in OpenAI's schema."""

    model: str
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = None
    seed: int | None = None
    stop: str | Strings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    speculation: Annotated[
        Speculation | None, PlainValidator(parse_speculation, json_schema_input_type=SpeculationField)
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, fields: Any) -> Any:
        return check_fields(with_whole_numbers(fields), ONLY, DROPPED)

    def options(self, default_max_tokens: int | None, seed: int) -> GenerationOptions:
        return GenerationOptions(
            max_tokens=self._max_tokens(),
            default_max_tokens=default_max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),  # -1 is off too, as in vLLM
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=0.0 if self.min_p is None else self.min_p,
            seed=seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            speculation=self.speculation,
        )

    def _max_tokens(self) -> int | None:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise InvalidRequest(f"max_tokens {old} and max_completion_tokens {new} differ; send one", "max_tokens")
        return old if new is None else new


class CompletionRequest(_GenerationBody):
    prompt: str | Strings | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    add_special_tokens: bool | None = None  # null is true, as the tokenizer's own default

    def prompts(self) -> Sequence[str | Sequence[int]]:
        """One prompt per choice. A list of integers is one prompt."""
        is_single = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        prompts: list[Any] = [self.prompt] if is_single else list(self.prompt)
        if not 0 < len(prompts) <= MAX_PROMPTS:
            raise InvalidRequest(f"{len(prompts)} prompts in one request; send 1 to {MAX_PROMPTS}", "prompt")
        return prompts


class TextPart(_Body):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, fields: Any) -> Any:
        return check_fields(fields, {}, DROPPED_IN_MESSAGE)


def _parts(content: Any) -> Any:
    """A plain string as one text part, so that errors in parts name their place."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Annotated[list[TextPart], Field(fail_fast=True)] | None, BeforeValidator(_parts)] = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, fields: Any) -> Any:
        return check_fields(fields, ONLY_IN_MESSAGE, DROPPED_IN_MESSAGE)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


class ChatCompletionRequest(_GenerationBody):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    add_special_tokens: Literal[False] | None = None  # the template writes them
