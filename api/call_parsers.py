"""The parsers of tool calls: one for each way that models write them.

    Hermes, Qwen    <tool_call>{"name": "f", "arguments": {...}}</tool_call>, any number of times
    Llama 3         {"name": "f", "parameters": {...}}, first in the text or behind <|python_tag|>, more behind ";"
    Mistral         [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]

A call is one as soon as it names a function of the request and its arguments begin; until then its text is held back,
and given back if it turns out to be something else. Arguments pass on as the model writes them, so they may be cut off
or broken. Each parser reads one character at a time, so what it finds does not depend on how the text is cut.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from typing import ClassVar, NoReturn

from api.calls import Arguments, Call, Event, Text

WHITE = " \t\r\n"

Steps = Generator[None, str, None]  # takes a character at a time
Reading = Generator[None, str, str]  # and returns one


class _NoCall(Exception):
    """The text is no call after all."""


class Parser(ABC):
    """names: the functions that may be called."""

    marks: ClassVar[tuple[str, ...]]

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._events: list[Event] = []
        self._held = ""  # text that is a call or not
        self._again = ""  # a character to read once more
        self._is_call = False
        self._steps = self._read()
        next(self._steps)

    def push(self, text: str) -> list[Event]:
        for char in text:
            self._steps.send(char)
        events, self._events = self._events, []
        return _joined(events)

    def finish(self) -> list[Event]:
        self._release()
        return self.push("")

    @abstractmethod
    def _read(self) -> Steps: ...

    def _next(self) -> Reading:
        char, self._again = self._again, ""
        char = char or (yield)
        if not self._is_call:
            self._held += char
        return char

    def _skip(self, ignored: str = WHITE) -> Reading:
        """The next character that is not to be ignored."""
        while (char := (yield from self._next())) in ignored:
            pass
        return char

    def _text_to(self, mark: str) -> Steps:
        """Text up to a mark, whose first character does not come again in it."""
        while self._held != mark:
            char = yield from self._next()
            if not mark.startswith(self._held):
                kept = char if mark.startswith(char) else ""
                self._release(kept)

    def _past(self, mark: str) -> Steps:
        """Drops a mark and the space before it; what else stands there is text."""
        seen = ""
        while seen.strip() != mark:
            char = yield from self._next()
            self._held = ""
            if not mark.startswith((seen + char).strip()):
                self._emit(Text(seen))
                self._again = char
                return
            seen += char

    def _call(self, before: str = WHITE) -> Generator[None, str, bool]:
        """Reads a call that stands behind any of these characters. False: there is none, and it was text so far."""
        try:
            yield from self._object(before)
        except _NoCall:
            if not self._is_call:
                self._held = self._held[: -len(self._again)]
                self._release()
        found, self._is_call = self._is_call, False
        return found

    def _object(self, before: str) -> Steps:
        """Reads an object that has a name and arguments, in either order, and maybe more."""
        end = yield from self._skip(before)
        if end != "{":
            self._fail(end)
        name = ""
        early: list[str] = []  # arguments that come before the name
        while end in "{,":
            key, char = yield from self._key()
            if key == "name" and not name:
                spelled: list[str] = []
                end = yield from self._value(char, spelled.append)
                name = self._known("".join(spelled), end)
                if early:
                    self._begin(name)
                    self._emit(Arguments("".join(early)))
            elif key in ("arguments", "parameters") and char == "{" and not self._is_call and not early:
                if name:
                    self._begin(name)
                take = (lambda piece: self._emit(Arguments(piece))) if name else early.append
                end = yield from self._value(char, take)
            else:
                end = yield from self._value(char, lambda _: None)
        if end != "}" or not self._is_call:
            self._fail(end)

    def _key(self) -> Generator[None, str, tuple[str, str]]:
        """A key of the object, and the first character of its value."""
        char = yield from self._skip()
        if char != '"':
            self._fail(char)
        spelled: list[str] = []
        char = yield from self._value(char, spelled.append)
        if char != ":":
            self._fail(char)
        return "".join(spelled)[1:-1], (yield from self._skip())

    def _value(self, char: str, take: Callable[[str], None]) -> Reading:
        """Reads a value from its first character; returns the first one behind it that is no space."""
        is_scalar = char.isalnum() or char == "-"
        if not is_scalar and char not in '"{[':
            self._fail(char)
        depth, in_string, escaped = 0, False, False
        while True:
            take(char)
            if in_string:
                in_string, escaped = escaped or char != '"', char == "\\" and not escaped
            elif char == '"':
                in_string = True
            else:
                depth += (char in "{[") - (char in "}]")
            if depth <= 0 and not in_string:
                break
            char = yield from self._next()
        char = yield from self._next()
        while is_scalar and (char.isalnum() or char in "+-."):
            take(char)
            char = yield from self._next()
        return char if char not in WHITE else (yield from self._skip())

    def _known(self, spelled: str, end: str) -> str:
        try:
            name = json.loads(spelled)
        except ValueError:
            name = None
        if not isinstance(name, str) or name not in self._names:
            self._fail(end)
        return str(name)

    def _begin(self, name: str) -> None:
        self._is_call, self._held = True, ""
        self._emit(Call(name))

    def _fail(self, char: str) -> NoReturn:
        """Ends the object before a character, which is read again."""
        self._again = char
        raise _NoCall

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _release(self, kept: str = "") -> None:
        """Gives back held text, but for its end."""
        self._emit(Text(self._held.removesuffix(kept)))
        self._held = kept


def _joined(events: Sequence[Event]) -> list[Event]:
    """Neighbours of one kind as one event, without empty ones."""
    joined: list[Event] = []
    for kind, group in groupby(events, type):
        if kind is Call:
            joined += group
        elif text := "".join(each.text for each in group if not isinstance(each, Call)):
            joined.append(Text(text) if kind is Text else Arguments(text))
    return joined


class Hermes(Parser):
    marks = ("<tool_call>", "</tool_call>")

    def _read(self) -> Steps:
        while True:
            yield from self._text_to("<tool_call>")
            if (yield from self._call()):
                yield from self._past("</tool_call>")


class Llama3(Parser):
    marks = ("<|python_tag|>",)

    def _read(self) -> Steps:
        before = WHITE
        while True:
            if (yield from self._call(before)):
                before = WHITE + ";"
            else:
                yield from self._text_to("<|python_tag|>")
                before = WHITE


class Mistral(Parser):
    marks = ("[TOOL_CALLS]",)

    def _read(self) -> Steps:
        while True:
            yield from self._text_to("[TOOL_CALLS]")
            if (yield from self._call(WHITE + "[")):
                while (yield from self._call(WHITE + ",")):
                    pass
                yield from self._past("]")


def parser_of(template: str) -> type[Parser] | None:
    """The parser for the calls that a chat template teaches, by the template's own text."""
    if "<tool_call>" in template and "<function=" not in template:
        return Hermes
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return Mistral
    return Llama3 if "<|python_tag|>" in template or '"parameters": dictionary' in template else None
