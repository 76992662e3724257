"""OpenAI's response bodies for both routes, whole and in chunks.

Beside OpenAI's fields, a reply has the seed, so that the caller can repeat or resume it. A reply with one choice also
has statistics of speculation in `metrics.speculative_decoding`, as in vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from api.generation import Delta
from api.generation_body import DepthAndLength, GenerationBody, StreamOptions
from api.logprobs import chat_logprobs, completion_logprobs
from api.scores import Score
from protocol.request import FinishReason, SequenceStats

Json = dict[str, Any]


class Reply:
    """Builds the bodies of one response of /v1/completions.

    seeds: of each choice; the first is the request's. num_prompt_tokens: of each prompt; it has `n` choices in a row.
    """

    prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, body: GenerationBody, seeds: Sequence[int], num_prompt_tokens: Sequence[int]) -> None:
        self.id = f"{self.prefix}{uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": body.model, "seed": seeds[0]}
        self._seeds, self._num_prompt_tokens, self._n = seeds, num_prompt_tokens, body.n
        self._with_usage = body.stream_options or StreamOptions()
        self._body = body

    def whole(self, choices: Sequence[Sequence[Delta]]) -> Json:
        """The body of a response that is not streamed, from the deltas of each choice."""
        joined = []
        for index, deltas in enumerate(choices):
            one = join(deltas)
            joined.append(self._choice(index, *self._message(index, one.text, one.finish_reason), one))
        last = {index: deltas[-1] for index, deltas in enumerate(choices)}
        return self._head | {"object": self.whole_object, "choices": joined} | self._totals(last)

    def opening(self, index: int) -> Json | None:
        """The chunk before the first text of a choice, if the route has one."""
        return None

    def chunk(self, index: int, delta: Delta) -> Json:
        return self._chunk(index, *self._part(index, delta), delta)

    def closing(self, last: Mapping[int, Delta]) -> Json | None:
        """The chunk after all choices, if the caller asked for it. last: the last delta of each choice."""
        if not self._with_usage.include_usage:
            return None
        return self._head | {"object": self.chunk_object, "choices": []} | self._totals(last)

    def _logprobs(self, scores: Sequence[Score]) -> Json:
        return completion_logprobs(scores)

    def _message(self, index: int, text: str, reason: FinishReason | None) -> tuple[Json, str | None]:
        """What a choice with this text says, and the finish reason to tell."""
        return {"text": text}, reason

    def _part(self, index: int, delta: Delta) -> tuple[Json, str | None]:
        """The same for what a delta adds."""
        return {"text": delta.text}, delta.finish_reason

    def _choice(self, index: int, fields: Json, reason: str | None, delta: Delta) -> Json:
        """delta: whose tokens and scores it tells."""
        told = delta.of_prompt + delta.scores
        logprobs = self._logprobs(told) if told else None
        choice = {"index": index, **fields, "logprobs": logprobs, "finish_reason": reason, "seed": self._seeds[index]}
        if self._body.return_token_ids:
            choice["token_ids"] = list(delta.token_ids)
        if self._body.return_token_sources:
            choice["token_sources"] = list(delta.sources)
        return choice

    def _chunk(self, index: int, fields: Json, reason: str | None, delta: Delta) -> Json:
        """usage is null, as in OpenAI's API, if the last chunk has the totals."""
        choice = self._choice(index, fields, reason, delta)
        chunk = self._head | {"object": self.chunk_object, "choices": [choice]}
        if self._with_usage.continuous_usage_stats:
            return chunk | {"usage": self._usage({index: delta})}
        return chunk | {"usage": None} if self._with_usage.include_usage else chunk

    def _totals(self, last: Mapping[int, Delta]) -> Json:
        """The fields that are known only at the end."""
        return {"usage": self._usage(last)} | statistics([*last.values()], self._body)

    def _usage(self, last: Mapping[int, Delta]) -> Json:
        cached: dict[int, int] = {}  # by prompt; the choice that had to read it had the least
        for index, delta in last.items():
            number = index // self._n
            cached[number] = min(cached.get(number, delta.num_cached), delta.num_cached)
        prompt = sum(self._num_prompt_tokens[number] for number in cached)
        completion = sum(delta.num_tokens for delta in last.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        }


class ChatReply(Reply):
    """Builds the bodies of one response of /v1/chat/completions."""

    prefix = "chatcmpl-"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, Delta(0, (), ""))

    def _logprobs(self, scores: Sequence[Score]) -> Json:
        return chat_logprobs(scores)

    def _message(self, index: int, text: str, reason: FinishReason | None) -> tuple[Json, str | None]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}, reason

    def _part(self, index: int, delta: Delta) -> tuple[Json, str | None]:
        return {"delta": {"content": delta.text} if delta.text else {}}, delta.finish_reason


def join(deltas: Sequence[Delta]) -> Delta:
    """All of a choice as one."""
    token_ids = tuple(token for each in deltas for token in each.token_ids)
    scores = tuple(score for each in deltas for score in each.scores)
    sources = tuple(source for each in deltas for source in each.sources)
    of_prompt = tuple(score for each in deltas for score in each.of_prompt)
    text = "".join(each.text for each in deltas)
    told: dict[str, Any] = {"scores": scores, "sources": sources, "of_prompt": of_prompt}
    return replace(deltas[-1], index=0, token_ids=token_ids, text=text, **told)


def statistics(last: Sequence[Delta], body: GenerationBody) -> Json:
    """The field `metrics`, if there is one choice and tokens were drafted for it. last: each choice's last delta."""
    if len(last) != 1 or (stats := last[0].stats) is None or not stats.drafted:
        return {}
    length = body.speculation.length if isinstance(body.speculation, DepthAndLength) else None
    return {"metrics": {"speculative_decoding": speculation(stats, length)}}


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
