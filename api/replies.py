"""OpenAI's response bodies, whole and in chunks, for both routes.

Beyond OpenAI's fields a reply tells the seed (so that it can be repeated or resumed) and, as vLLM does, how
speculation went: `metrics.speculative_decoding`, for replies of one choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.generation import Delta, Usage
from protocol.request import SequenceStats

Json = dict[str, Any]


class Shape(Protocol):
    """What differs between the two routes."""

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, text: str) -> Json: ...

    def part(self, text: str) -> Json: ...

    def opening(self) -> Json | None:
        """The choice fields of a chunk that goes before all others."""


class TextShape:
    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, text: str) -> Json:
        return {"text": text}

    def part(self, text: str) -> Json:
        return {"text": text}

    def opening(self) -> Json | None:
        return None


class ChatShape:
    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def part(self, text: str) -> Json:
        return {"delta": {"content": text} if text else {}}

    def opening(self) -> Json | None:
        return {"delta": {"role": "assistant", "content": ""}}


@dataclass(frozen=True, slots=True)
class Choice:
    """The deltas of one choice put together."""

    text: str
    token_ids: tuple[int, ...]
    last: Delta

    @staticmethod
    def joined(deltas: Sequence[Delta]) -> Choice:
        token_ids = tuple(token for delta in deltas for token in delta.token_ids)
        return Choice("".join(delta.text for delta in deltas), token_ids, deltas[-1])


@dataclass(frozen=True, slots=True)
class Reply:
    """Everything about one response that is known before its first token.

    seeds: of each choice, the first being that of the request. draft_length: what the request asked for itself.
    """

    shape: Shape
    id: str
    created: int
    model: str
    seeds: Sequence[int]
    with_token_ids: bool = False
    draft_length: int | None = None

    def whole(self, choices: Sequence[Choice]) -> Json:
        body = self._head(self.shape.whole_object)
        body["choices"] = [
            self._choice(index, self.shape.whole(choice.text), choice.last, choice.token_ids)
            for index, choice in enumerate(choices)
        ]
        return body | self.closing([choice.last for choice in choices])

    def opening(self, index: int) -> Json | None:
        fields = self.shape.opening()
        if fields is None:
            return None
        choice = {"index": index, **fields, "logprobs": None, "finish_reason": None, "seed": self.seeds[index]}
        return self._head(self.shape.chunk_object) | {"choices": [choice]}

    def chunk(self, index: int, delta: Delta) -> Json:
        choice = self._choice(index, self.shape.part(delta.text), delta, delta.token_ids)
        return self._head(self.shape.chunk_object) | {"choices": [choice]}

    def usage_chunk(self, last: Sequence[Delta]) -> Json:
        return self._head(self.shape.chunk_object) | {"choices": []} | self.closing(last)

    def closing(self, last: Sequence[Delta]) -> Json:
        """The root fields that are known at the end only."""
        fields: Json = {"usage": usage([delta.usage for delta in last])}
        if len(last) == 1 and last[0].stats is not None and last[0].stats.drafted:
            fields["metrics"] = {"speculative_decoding": speculation(last[0].stats, self.draft_length)}
        return fields

    def _head(self, object_name: str) -> Json:
        head = {"id": self.id, "object": object_name, "created": self.created, "model": self.model}
        return head | {"seed": self.seeds[0]}

    def _choice(self, index: int, fields: Json, delta: Delta, token_ids: Sequence[int]) -> Json:
        reason = delta.finish_reason and delta.finish_reason.value
        choice = {"index": index, **fields, "logprobs": None, "finish_reason": reason, "seed": self.seeds[index]}
        return choice | {"token_ids": list(token_ids)} if self.with_token_ids else choice


def usage(counts: Sequence[Usage]) -> Json:
    return {
        "prompt_tokens": sum(count.prompt_tokens for count in counts),
        "completion_tokens": sum(count.completion_tokens for count in counts),
        "total_tokens": sum(count.total_tokens for count in counts),
    }


def speculation(stats: SequenceStats, length: int | None) -> Json:
    """vLLM's names. A step commits what was accepted and one token of the target's own; one without a draft counts too.

    Entry n of the histogram counts the steps that accepted n. With a length that the request fixed it has an entry for
    each n that can be, as in vLLM; without one it ends at the last that is not 0.
    """
    fields: Json = {
        "mean_acceptance_length": 1 + stats.accepted / max(stats.rounds, 1),
        "draft_acceptance_rate": stats.accepted / max(stats.drafted, 1),
        "num_spec_steps": stats.rounds,
        "num_draft_tokens": stats.drafted,
        "num_accepted_draft_tokens": stats.accepted,
        "acceptance_histogram": list(stats.histogram),
    }
    if length is not None:
        fields["acceptance_histogram"] += [0] * (length + 1 - len(stats.histogram))
        fields["num_spec_tokens"] = length
    return fields
