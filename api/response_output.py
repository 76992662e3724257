"""The output of a response, as items, and the events that tell how it grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from api.calls import BegunCall, Said, Text

Json = dict[str, Any]


class Output:
    """The items of one answer: messages and calls, in order. Only the last one may be open.

    Each method yields events without a sequence number.
    """

    def __init__(self) -> None:
        self.items: list[Json] = []
        self._is_open = False

    def add(self, said: Sequence[Said]) -> Iterator[Json]:
        for each in said:
            if isinstance(each, Text):
                if not self._is_open or self.items[-1]["type"] != "message":
                    yield from self._open_message()
                self._text["text"] += each.text
                yield self._event("output_text.delta", delta=each.text, logprobs=[], **self._part_place)
            elif isinstance(each, BegunCall):
                yield from self._open({"type": "function_call", "call_id": each.id, "name": each.name, "arguments": ""})
            else:
                self.items[-1]["arguments"] += each.text
                yield self._event("function_call_arguments.delta", delta=each.text)

    def finish(self, status: str) -> Iterator[Json]:
        """status: of the last item. An answer without a word is an empty message."""
        if not self.items:
            yield from self._open_message()
        yield from self._close(status)

    def _open_message(self) -> Iterator[Json]:
        yield from self._open({"type": "message", "role": "assistant", "content": []})
        self.items[-1]["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        yield self._event("content_part.added", part=dict(self._text), **self._part_place)

    def _open(self, item: Json) -> Iterator[Json]:
        yield from self._close("completed")
        prefix = "msg" if item["type"] == "message" else "fc"
        self.items.append({"id": f"{prefix}_{uuid4().hex}", "status": "in_progress"} | item)
        self._is_open = True
        yield self._item_event("output_item.added")

    def _close(self, status: str) -> Iterator[Json]:
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        if item["type"] == "message":
            yield self._event("output_text.done", text=self._text["text"], logprobs=[], **self._part_place)
            yield self._event("content_part.done", part=dict(self._text), **self._part_place)
        else:
            yield self._event("function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        item["status"] = status
        yield self._item_event("output_item.done")

    @property
    def _text(self) -> Json:
        part: Json = self.items[-1]["content"][0]
        return part

    @property
    def _part_place(self) -> Json:
        return {"content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Json:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **fields}

    def _item_event(self, kind: str) -> Json:
        item = self.items[-1]
        copied = item | {"content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)
        return {"type": f"response.{kind}", "output_index": len(self.items) - 1, "item": copied}
