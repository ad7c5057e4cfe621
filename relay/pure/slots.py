"""Where the texts of a choice stand that may be changed: its content, its reasoning, its refusal, the arguments of its tools.

`relay.pure.surfaces` reads a frame; here is said where each known text of it stands, so that another can be put there.
Strings that nobody has told us about are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from relay.pure.openai import Frame
from relay.pure.surfaces import PLAIN_SURFACES, IndexUnclearError, index_of

# Under these stands a text in a part of an array.
_PART_TEXTS: Final = ("text", "thinking", "summary")


class Slot(NamedTuple):
    """A text stands at `key` of `container`; it is one of its `surface`."""

    surface: str
    container: Any
    key: str | int

    @property
    def text(self) -> str:
        text: str = self.container[self.key]
        return text


def number_of(entry: Frame, position: int) -> int:
    """The index of a choice or a tool call; where readers could differ, its place."""
    try:
        return index_of(entry, position)
    except IndexUnclearError:
        return position


def slots(choice: Frame, part: str) -> Iterator[Slot]:
    """The texts of the delta or the message (`part`) of one choice, empty ones too, in the order in which they stand there."""
    message = choice.get(part)
    if type(choice.get("text")) is str and part == "delta":
        yield Slot("text", choice, "text")
    if type(message) is not dict:
        return
    for key, value in message.items():
        if key in PLAIN_SURFACES or key == "reasoning_details":
            yield from _texts(key, message, key)
        elif key == "tool_calls" and type(value) is list:
            for position, call in enumerate(value):
                if type(call) is dict:
                    yield from _tool_call(call, f"tool_calls.{number_of(call, position)}")
        elif key == "function_call":
            yield from _string("function_call.arguments", value, "arguments")
        elif key == "audio":
            yield from _string("audio.transcript", value, "transcript")


def _string(surface: str, container: Any, key: str) -> Iterator[Slot]:
    """One text, if it is one."""
    if type(container) is dict and type(container.get(key)) is str:
        yield Slot(surface, container, key)


def _texts(surface: str, container: Any, key: str | int) -> Iterator[Slot]:
    """A string, or an array of parts with texts."""
    value = container[key]
    if type(value) is str:
        yield Slot(surface, container, key)
    elif type(value) is list:
        for position, part in enumerate(value):
            if type(part) is str:
                yield Slot(surface, value, position)
            elif type(part) is dict:
                for name in _PART_TEXTS:
                    if name in part:
                        yield from _texts(surface if name == "text" else f"{surface}.{name}", part, name)


def _tool_call(call: Frame, surface: str) -> Iterator[Slot]:
    yield from _string(f"{surface}.arguments", call.get("function"), "arguments")
    yield from _string(f"{surface}.input", call.get("custom"), "input")
