"""Tool calls in the text of an answer: what parsers find (api/call_parsers.py), and how callers hear of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class Text:
    """Words of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of the last call, as JSON text."""

    text: str


Event = Text | Call | Arguments


class CallParser(Protocol):
    """names: the functions that may be called. marks: what stands around calls; tokens of it have to have text."""

    marks: ClassVar[tuple[str, ...]]

    def __init__(self, names: frozenset[str]) -> None: ...

    def push(self, text: str) -> list[Event]:
        """What more text tells."""

    def finish(self) -> list[Event]:
        """What was held back, when no text follows."""


@dataclass(frozen=True, slots=True)
class BegunCall:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class MoreArguments:
    index: int
    text: str


Said = Text | BegunCall | MoreArguments


class CallReader:
    """What an answer says and calls, in order, with an index and an id for each call.

    Space before a call, and behind one unless words follow, is no text. max_calls: further ones are left out.
    """

    def __init__(self, parser: CallParser, max_calls: int | None) -> None:
        self._parser = parser
        self._max_calls = max_calls
        self._space = ""
        self.num_calls = 0

    def push(self, text: str, *, last: bool = False) -> list[Said]:
        """last: no text follows."""
        events = self._parser.push(text)
        if last:
            events += self._parser.finish()
        said = [each for event in events if (each := self._said(event)) is not None]
        if last and self._space and not self.num_calls:
            said.append(Text(self._space))
        return said

    def _said(self, event: Event) -> Said | None:
        if isinstance(event, Text):
            words = self._space + event.text
            self._space = words[len(words.rstrip()) :]
            spoken = words.rstrip()
            return Text(spoken) if spoken else None
        if isinstance(event, Call):
            self._space = ""
            self.num_calls += 1
        if self._max_calls is not None and self.num_calls > self._max_calls:
            return None
        index = self.num_calls - 1
        return BegunCall(index, call_id(), event.name) if isinstance(event, Call) else MoreArguments(index, event.text)


def call_id() -> str:
    """Nine letters and digits: Mistral's templates take no others."""
    return uuid4().hex[:9]


@dataclass(frozen=True, slots=True)
class Calling:
    """How the answers to a request may call functions. max_calls: None is any number."""

    parser: type[CallParser]
    names: frozenset[str]
    max_calls: int | None

    def reader(self) -> CallReader:
        """A reader of one answer."""
        return CallReader(self.parser(self.names), self.max_calls)
