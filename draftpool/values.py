"""What a caller gets from the client, the same over HTTP and gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from draftpool.asks import Message

FinishReason = Literal["stop", "length", "tool_calls"]


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
class TokenLogprob:
    """spelling: not always whole characters. logprob: -9999 for a probability of 0."""

    spelling: bytes = field(repr=False)
    logprob: float

    @property
    def text(self) -> str:
        r"""With \xf0 for a byte of an incomplete character."""
        return self.spelling.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one place of an answer. top: the most probable tokens, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What a delta adds to a call. The first of an index has id and name; the arguments join to JSON text."""

    index: int
    id: str | None
    name: str | None
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model calls. arguments: an object as JSON text, cut off where the answer was."""

    id: str
    name: str
    arguments: str = field(repr=False)

    def parsed(self) -> Any:
        """The arguments. Raises ValueError if they were cut off."""
        return json.loads(self.arguments)

    def result(self, content: str) -> Message:
        """The message that tells the model what the function gave."""
        return {"role": "tool", "tool_call_id": self.id, "content": content}


@dataclass(frozen=True, slots=True)
class Delta:
    """What one round added. The last of an answer has a finish reason, and with it usage, acceptance and seed.

    acceptance: None if nothing was drafted, or a stop string ended the text. seed: repeats the text. logprobs,
    token_sources: of each token, where they were asked for. prompt_logprobs: of each token of the prompt behind its
    first, where both echo and logprobs were asked for.
    """

    request_id: str
    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    acceptance: Acceptance | None = None
    seed: int | None = None
    logprobs: tuple[Logprobs, ...] = field(default=(), repr=False)
    token_sources: tuple[int, ...] = field(default=(), repr=False)
    tool_calls: tuple[ToolCallDelta, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = field(default=(), repr=False)


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
    logprobs: tuple[Logprobs, ...] = field(default=(), repr=False)
    token_sources: tuple[int, ...] = field(default=(), repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = field(default=(), repr=False)

    def message(self) -> Message:
        """The answer as a message of the chat that goes on."""
        said: Message = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            said["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return said


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    max_model_len: int


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
        tuple(told for delta in deltas for told in delta.logprobs),
        tuple(source for delta in deltas for source in delta.token_sources),
        _calls(part for delta in deltas for part in delta.tool_calls),
        tuple(told for delta in deltas for told in delta.prompt_logprobs),
    )


def _calls(parts: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    calls: dict[int, list[ToolCallDelta]] = {}
    for part in parts:
        calls.setdefault(part.index, []).append(part)
    return tuple(
        ToolCall(own[0].id or "", own[0].name or "", "".join(part.arguments for part in own)) for own in calls.values()
    )
