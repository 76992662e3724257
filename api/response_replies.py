"""Response bodies and events of /v1/responses. Beside OpenAI's fields they have the seed and statistics, like chats."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from uuid import uuid4

from api.calls import Calling, Said, Text
from api.errors import Problem, to_problem
from api.generation import Delta
from api.replies import Json, statistics
from api.response_output import Output
from api.responses import ResponsesRequest
from api.streams import Indexed
from protocol.request import FinishReason


class ResponseReply:
    """Builds the body of one response, or its events."""

    def __init__(self, body: ResponsesRequest, seed: int, num_prompt_tokens: int, how: Calling | None) -> None:
        self.id = f"resp_{uuid4().hex}"
        self._body, self._seed, self._num_prompt_tokens = body, seed, num_prompt_tokens
        self._created_at = int(time.time())
        self._reader = how.reader() if how else None
        self._output = Output()

    def whole(self, choices: Sequence[Sequence[Delta]]) -> Json:
        (deltas,) = choices
        for delta in deltas:
            _ = [*self._add(delta)]
        return self._response(deltas[-1])

    async def events(self, deltas: AsyncIterator[Indexed], request_id: str) -> AsyncGenerator[str, None]:
        """The events of a response that is streamed, numbered from 0."""
        number = 0
        async for event in self._all(deltas, request_id):
            event = {"type": event["type"], "sequence_number": number} | event
            yield f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"
            number += 1

    async def _all(self, deltas: AsyncIterator[Indexed], request_id: str) -> AsyncGenerator[Json, None]:
        yield {"type": "response.created", "response": self._response(None)}
        yield {"type": "response.in_progress", "response": self._response(None)}
        try:
            async for _, last in deltas:
                for event in self._add(last):
                    yield event
            kind = "incomplete" if last.finish_reason is FinishReason.LENGTH else "completed"
            yield {"type": f"response.{kind}", "response": self._response(last)}
        except Exception as error:
            for event in self._failure(to_problem(error, request_id)):
                yield event

    def _add(self, delta: Delta) -> Iterator[Json]:
        """The events of a delta; the last one's finish the output."""
        is_last = delta.finish_reason is not None
        yield from self._output.add(self._said(delta.text, is_last))
        if is_last:
            yield from self._output.finish(_status(delta))

    def _said(self, text: str, is_last: bool) -> Sequence[Said]:
        if self._reader is not None:
            return self._reader.push(text, last=is_last)
        return [Text(text)] if text else []

    def _failure(self, problem: Problem) -> Iterator[Json]:
        yield {"type": "error", "code": problem.row.code, "message": problem.message, "param": problem.param}
        error = {"code": "server_error", "message": problem.message}
        yield {"type": "response.failed", "response": self._response(None) | {"status": "failed", "error": error}}

    def _response(self, last: Delta | None) -> Json:
        """The response so far. last: the last delta, if there is one."""
        body = self._body
        status = "in_progress" if last is None else _status(last)
        fields: Json = {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": body.model,
            "seed": self._seed,
            "output": [] if last is None else self._output.items,
            "usage": None if last is None else self._usage(last),
        }
        return fields | _asked(body) | ({} if last is None else statistics([last], body))

    def _usage(self, last: Delta) -> Json:
        return {
            "input_tokens": self._num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": last.num_cached, "cache_write_tokens": 0},
            "output_tokens": last.num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._num_prompt_tokens + last.num_tokens,
        }


def _status(last: Delta) -> str:
    return "incomplete" if last.finish_reason is FinishReason.LENGTH else "completed"


def _asked(body: ResponsesRequest) -> Json:
    """What the request asked for, as a response repeats it."""
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": [{"type": "function", **tool.model_dump(exclude={"type"})} for tool in body.tools],
        "tool_choice": _choice(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "text": {"format": _format(body)},
        "truncation": "disabled",
        "metadata": body.metadata,
        "store": False,
        "background": False,
        "previous_response_id": None,
    }


def _choice(body: ResponsesRequest) -> str | Json:
    choice = body.tool_choice
    return choice if isinstance(choice, str) else {"type": "function", "name": choice.function.name}


def _format(body: ResponsesRequest) -> Json:
    asked = body.text.format
    return {"type": "text"} if asked is None else asked.model_dump(exclude_none=True, by_alias=True)
