"""How much a reply has said, counted as it passes: characters, an estimate of its tokens, and the upstream's own usage.

Counted is what the model wrote where clients show it: content, reasoning, refusals, the transcript of speech, names and
arguments of tool calls, of all choices. A character is a code point. What stands in one frame of a choice twice counts
once: servers send `reasoning` beside `reasoning_content`, and `message` beside `delta`. Log probabilities, ids and what
no table of `relay.pure.surfaces` knows do not count.

Most chunks tell what they say without being parsed (`Chunk.said`), so counting one costs a fifth of a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from relay.pure.openai import Chunk, Frame, dump
from relay.pure.tokens import MAX_TOKENS, estimate_of


class Count:
    """What has been fed so far.

    characters: all that was said. bytes: the same in UTF-8. usage: the last usage that the upstream told, as it stood.
    """

    __slots__ = ("bytes", "characters", "usage")

    def __init__(self) -> None:
        self.characters = 0
        self.bytes = 0
        self.usage: Frame | None = None

    def feed(self, chunk: Chunk) -> int:
        """How many characters this chunk says. Works for an event and for a whole body. Never raises."""
        said = chunk.said
        if said is not None:
            text = said[1]
            characters = len(text)
            self.bytes += characters if text.isascii() else len(text.encode("utf-8", "replace"))
            self.characters += characters
            return characters
        frame = chunk.json
        if frame is None:
            return 0
        usage = frame.get("usage")
        if type(usage) is dict and usage:
            self.usage = usage
        choices = frame.get("choices")
        characters = 0
        for choice in choices if type(choices) is list else ():
            if type(choice) is dict:
                size = size_of(choice)
                characters += size[0]
                self.bytes += size[1]
        self.characters += characters
        return characters

    @property
    def estimated_tokens(self) -> float:
        """Tokens of what was said, about (see `relay.pure.tokens`): for upstreams that tell no usage."""
        return estimate_of(self.characters, self.bytes)

    @property
    def reported(self) -> Reported | None:
        """What the upstream says that it took; None if it says nothing that can be.

        That there was no prompt cannot be, nor that the text which came took nothing: some servers send noughts in the
        place of what they do not count.
        """
        counted = None if self.usage is None else reported(self.usage)
        if counted is not None and (not counted.prompt or (self.characters and not counted.completion)):
            return None
        return counted


class Reported(NamedTuple):
    """An upstream's count, in tokens."""

    prompt: int
    completion: int


def reported(usage: Frame) -> Reported | None:
    """The two counts of a usage. What stands there may be anything; None if one of them is no plausible number."""
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:
        return None
    if not (0 <= prompt <= MAX_TOKENS and 0 <= completion <= MAX_TOKENS):
        return None
    return Reported(prompt, completion)


_Size = tuple[int, int]  # characters, bytes

_NOTHING: Final[_Size] = (0, 0)
_PARTS: Final = ("text", "refusal", "thinking")  # in a part of an array: text, or further parts
_REASONING: Final = ("reasoning_content", "reasoning", "reasoning_details")
_TOOL: Final = ("name", "arguments", "input")


def _text(value: object) -> _Size:
    if type(value) is not str:
        return _NOTHING
    return len(value), len(value) if value.isascii() else len(value.encode("utf-8", "replace"))


def _sum(sizes: Iterable[_Size]) -> _Size:
    characters = size = 0
    for one in sizes:
        characters += one[0]
        size += one[1]
    return characters, size


def _prose(value: object) -> _Size:
    """A string, or an array of parts."""
    if type(value) is not list:
        return _text(value)
    sizes = []
    for part in value:
        if type(part) is dict:
            sizes += [_prose(part.get(name)) for name in _PARTS]
        else:
            sizes.append(_text(part))
    return _sum(sizes)


def size_of(choice: Frame) -> tuple[int, int]:
    """The characters, and the bytes in UTF-8, of what a choice of an event or of a whole body says."""
    return max(_message(choice.get("delta")), _message(choice.get("message")), _text(choice.get("text")))


def _message(message: object) -> _Size:
    """A delta, or a whole message."""
    if type(message) is not dict:
        return _NOTHING
    sizes = [max(_prose(message.get(name)) for name in _REASONING)]
    for name, value in message.items():
        if name in ("content", "refusal"):
            sizes.append(_prose(value))
        elif name == "tool_calls" and type(value) is list:
            sizes += map(_call, value)
        elif name == "function_call":
            sizes.append(_tool(value))
        elif name == "audio" and type(value) is dict:
            sizes.append(_text(value.get("transcript")))
    return _sum(sizes)


def _call(call: object) -> _Size:
    return max(_tool(call.get("function")), _tool(call.get("custom"))) if type(call) is dict else _NOTHING


def _tool(tool: object) -> _Size:
    """A function or a custom tool. Some servers send arguments as an object: then it is the JSON that says the same."""
    if type(tool) is not dict:
        return _NOTHING
    values = [tool.get(name) for name in _TOOL]
    return _sum(_text(dump(value).decode() if type(value) is dict else value) for value in values)
