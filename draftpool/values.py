"""What a caller gives to the client and gets from it, the same over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from protocol.errors import InvalidRequest
from protocol.plan import Speculation
from protocol.request import FinishReason

DEFAULT_MAX_TOKENS = 16  # of a completion, as in OpenAI's API; a chat has all the room


class Message(TypedDict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Options(TypedDict, total=False):
    """All may be left out. docs/api.md says what they mean; timeout_s is of the whole call, in seconds."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    speculation: Literal["off"] | Speculation
    priority: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """cached_tokens: of the prompt's, those that the target did not have to read."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = field(default=0, compare=False)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What speculation did for one answer. rounds: decode steps, each with one token of the target's own."""

    rounds: int
    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        return self.accepted / max(self.drafted, 1)

    @property
    def mean_length(self) -> float:
        """Tokens per round."""
        return 1 + self.accepted / max(self.rounds, 1)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one round added. The last of an answer has a finish reason, and with it the fields below.

    acceptance: None if nothing was drafted, or a stop string ended the text. seed: repeats the text.
    """

    request_id: str
    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    acceptance: Acceptance | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; the fields are those of its deltas."""

    request_id: str
    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    usage: Usage
    acceptance: Acceptance | None
    seed: int


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as both transports take it. Either prompt or messages is set."""

    model: str
    options: Mapping[str, Any]
    prompt: str | Sequence[int] | None = field(default=None, repr=False)
    messages: Sequence[Message] | None = field(default=None, repr=False)


def completion_of(deltas: Sequence[Delta]) -> Completion:
    """The answer that the deltas make. The last one has a finish reason."""
    last = deltas[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    assert last.seed is not None
    return Completion(
        last.request_id,
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        last.finish_reason,
        last.usage,
        last.acceptance,
        last.seed,
    )


def ask_completion(model: str, prompt: str | Sequence[int], options: Options) -> Ask:
    return Ask(model, {"max_tokens": DEFAULT_MAX_TOKENS} | _sent(options), prompt=prompt)


def ask_chat(model: str, messages: Sequence[Message], options: Options) -> Ask:
    return Ask(model, _sent(options), messages=messages)


def _sent(options: Options) -> dict[str, Any]:
    """What goes to the server as a field. Raises InvalidRequest for a name that is none."""
    fields: dict[str, Any] = dict(options)
    if unknown := sorted(fields.keys() - Options.__annotations__.keys()):
        raise InvalidRequest(f"unknown option {unknown[0]}; leave it out", unknown[0])
    return {name: value for name, value in fields.items() if name != "timeout_s"}
