"""OpenAI's response bodies for both routes, whole and in chunks.

Beside OpenAI's fields, a reply has the seed, so that the caller can repeat or resume it. A reply with one choice also
has statistics of speculation in `metrics.speculative_decoding`, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from api.generation import Delta, Usage
from protocol.request import SequenceStats

Json = dict[str, Any]


class Shape(Protocol):
    """The parts of a reply that differ between the two routes."""

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, text: str) -> Json: ...

    def part(self, text: str) -> Json: ...

    def opening(self) -> Json | None:
        """The choice fields of a first chunk without text, or None if the route sends none."""


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
class CompletedChoice:
    """One finished choice. last: its last delta."""

    text: str
    token_ids: tuple[int, ...]
    last: Delta

    @staticmethod
    def join(deltas: Sequence[Delta]) -> CompletedChoice:
        token_ids = tuple(token for delta in deltas for token in delta.token_ids)
        return CompletedChoice("".join(delta.text for delta in deltas), token_ids, deltas[-1])


@dataclass(frozen=True, slots=True)
class Reply:
    """Builds the bodies of one response from what is known before its first token.

    seeds: one per choice; the first is the request's. draft_length: tokens per draft that the request set, if it did.
    """

    shape: Shape
    id: str
    created: int
    model: str
    seeds: Sequence[int]
    with_token_ids: bool = False
    draft_length: int | None = None

    def whole(self, choices: Sequence[CompletedChoice]) -> Json:
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
        """The top-level fields that are known only at the end."""
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
    """Statistics of speculation, under vLLM's names. A step is one round; rounds without a draft count too.

    Entry n of the histogram counts the steps that accepted n tokens. If the request set the draft length, the histogram
    has length + 1 entries, as in vLLM; otherwise it ends at the last entry that is not 0.
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
