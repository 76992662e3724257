"""Response bodies of /v1/chat/completions whose answers may call tools."""

from __future__ import annotations

from collections.abc import Sequence

from api.calls import BegunCall, Calling, CallReader, Said, Text
from api.generation import Delta
from api.generation_body import GenerationBody
from api.replies import ChatReply, Json
from protocol.request import FinishReason

TOOL_CALLS = "tool_calls"


class CallingReply(ChatReply):
    def __init__(
        self, body: GenerationBody, seeds: Sequence[int], num_prompt_tokens: Sequence[int], how: Calling
    ) -> None:
        super().__init__(body, seeds, num_prompt_tokens)
        self._readers = [how.reader() for _ in seeds]

    def _message(self, index: int, text: str, reason: FinishReason | None) -> tuple[Json, str | None]:
        reader = self._readers[index]
        content, calls = content_and_calls(reader.push(text, last=True))
        message: Json = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if calls:
            message[TOOL_CALLS] = [{name: call[name] for name in call if name != "index"} for call in calls]
        return {"message": message}, finish_reason(reader, reason)

    def _part(self, index: int, delta: Delta) -> tuple[Json, str | None]:
        reader = self._readers[index]
        content, calls = content_and_calls(reader.push(delta.text, last=delta.finish_reason is not None))
        part: Json = {"content": content} if content else {}
        return {"delta": part | ({TOOL_CALLS: calls} if calls else {})}, finish_reason(reader, delta.finish_reason)


def finish_reason(reader: CallReader, reason: FinishReason | None) -> str | None:
    """An answer that ends by itself after a call ends for the call."""
    return TOOL_CALLS if reason is FinishReason.STOP and reader.num_calls else reason


def content_and_calls(said: Sequence[Said]) -> tuple[str, list[Json]]:
    """The words and the calls, or the parts of calls that are said here, as OpenAI spells them."""
    content = ""
    calls: dict[int, Json] = {}
    for each in said:
        if isinstance(each, Text):
            content += each.text
        elif isinstance(each, BegunCall):
            function = {"name": each.name, "arguments": ""}
            calls[each.index] = {"index": each.index, "id": each.id, "type": "function", "function": function}
        else:
            call = calls.setdefault(each.index, {"index": each.index, "function": {"arguments": ""}})
            call["function"]["arguments"] += each.text
    return content, list(calls.values())
