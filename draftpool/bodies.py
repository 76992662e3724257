"""What the client says in bodies of OpenAI's API: an ask becomes one, and an answer or a chunk becomes a delta."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from draftpool.asks import Ask
from draftpool.errors import ConnectionLost, Refused, event_error
from draftpool.values import (
    Acceptance,
    Completion,
    Delta,
    FinishReason,
    Logprobs,
    Model,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    completion_of,
)

Json = dict[str, Any]
REASONS = (None, *get_args(FinishReason))
BROKEN = "bytes:"  # begins the name of a token that is not whole characters
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def body_of(ask: Ask, *, stream: bool) -> Json:
    text = {"prompt": ask.prompt} if ask.messages is None else {"messages": ask.messages}
    body = {"model": ask.model, **text, **ask.options, "return_token_ids": True}
    return body | {"stream": True, "stream_options": {"include_usage": True}} if stream else body


def answer_of(body: Json, ask: Ask) -> Completion:
    return completion_of([_with_totals(_delta(body, ask), body)])


def models_of(body: Json) -> tuple[Model, ...]:
    return tuple(Model(card["id"], card["max_model_len"]) for card in body["data"])


class Events:
    """Turns the lines of an event stream into deltas. The last one waits for the usage, which follows it."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._last: Delta | None = None
        self._is_done = False

    def push(self, line: str) -> Delta | None:
        if not line.startswith("data:"):  # a comment, or the end of an event
            return None
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._is_done = True
            return self._last
        event = json.loads(data)
        if "error" in event:
            raise Refused(event_error(event["error"]))
        if not event["choices"]:
            assert self._last is not None
            self._last = _with_totals(self._last, event)
            return None
        delta = _delta(event, self._ask)
        if delta.finish_reason is not None:
            self._last = delta
            return None
        return delta if delta.text or delta.token_ids or delta.prompt_logprobs else None

    def end(self) -> None:
        if not self._is_done or self._last is None:
            raise Refused(ConnectionLost("the stream broke off before its end"))


def _delta(body: Json, ask: Ask) -> Delta:
    """The delta of a chunk, or of a whole answer, but for its totals."""
    (choice,) = body["choices"]
    part = choice.get("delta") or choice.get("message") or {}
    if (reason := choice["finish_reason"]) not in REASONS:
        raise ValueError(f"finish reason {reason}")
    told = _logprobs(choice.get("logprobs"), ask.options.get("logprobs", 0))
    num_of_prompt = max(len(told) - len(choice["token_ids"]), 0)
    return Delta(
        body["id"],
        choice.get("text") or part.get("content") or "",
        tuple(choice["token_ids"]),
        reason,
        seed=None if reason is None else choice["seed"],
        logprobs=told[num_of_prompt:],
        prompt_logprobs=told[:num_of_prompt],
        token_sources=tuple(choice.get("token_sources", ())),
        tool_calls=tuple(_call(place, call) for place, call in enumerate(part.get("tool_calls", ()))),
    )


def _call(place: int, call: Json) -> ToolCallDelta:
    """place: the index of a whole call, which has none of its own."""
    function = call["function"]
    return ToolCallDelta(call.get("index", place), call.get("id"), function.get("name"), function["arguments"])


def _logprobs(told: Json | None, num_top: int) -> tuple[Logprobs, ...]:
    """In the shape of chats, or of completions. num_top: of completions, how many most probable tokens to tell.

    Without the first token of a prompt, which has none.
    """
    if told is None:
        return ()
    if "content" in told:
        return tuple(Logprobs(_entry(each), tuple(map(_entry, each["top_logprobs"]))) for each in told["content"])
    places = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    return tuple(
        Logprobs(_named((name, logprob)), _top([*map(_named, top.items())], num_top))
        for name, logprob, top in places
        if logprob is not None
    )


def _top(named: Sequence[TokenLogprob], num_top: int) -> tuple[TokenLogprob, ...]:
    """Of the entries of a place, which has the best last, and behind it the chosen one if that is not among them."""
    return tuple(named[num_top - 1 :: -1]) if num_top else ()


def _entry(told: Json) -> TokenLogprob:
    return TokenLogprob(bytes(told["bytes"]), told["logprob"])


def _named(told: tuple[str, float]) -> TokenLogprob:
    """By the name that a completion has for it."""
    name, logprob = told
    spelling, num_escaped = _ESCAPED.subn(lambda byte: bytes.fromhex(byte[1].decode()), name.encode())
    is_broken = name.startswith(BROKEN) and num_escaped
    return TokenLogprob(spelling.removeprefix(BROKEN.encode()) if is_broken else name.encode(), logprob)


def _with_totals(delta: Delta, body: Json) -> Delta:
    usage, metrics = body["usage"], (body.get("metrics") or {}).get("speculative_decoding")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    spent = Usage(usage["prompt_tokens"], usage["completion_tokens"], cached)
    return replace(delta, usage=spent, acceptance=_acceptance(metrics) if metrics else None)


def _acceptance(told: Json) -> Acceptance:
    return Acceptance(told["num_spec_steps"], told["num_draft_tokens"], told["num_accepted_draft_tokens"])
