"""What a message says, for those who count: its texts, and how many things in it are no text.

Text is every string of a message but its role and its ids. What is no text (an image, sound, a file) is counted by the
piece: what it costs is up to the model, and what its bytes are long says nothing. The arguments of a tool call are text
as they stand; where they came as an object, which some servers take, it is the JSON that says the same.

Cheap rather than exact: nothing is joined, decoded or looked for in two readings, as moderation has to
(`ChatRequest.texts`). Numbers are not text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from relay.pure.openai import dump
from relay.pure.surfaces import is_opaque

MESSAGE_TOKENS: Final = 4
"""What a message costs beside its text: three tokens around it and its role, by OpenAI's published formula
(https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken)."""

MEDIA_TOKENS: Final = 765
"""What is taken for an image, a sound or a file: an image of 1024 × 1024 in high detail costs gpt-4o that much."""

# Under these keys stand names out of a list or somebody's numbering, unless they are long.
_LISTED: Final = frozenset("role type id tool_call_id call_id detail format status".split())
_LISTED_CHARS: Final = 64
# Under these stands text, however it looks; under others a long value may be an image.
_PROSE: Final = frozenset(
    "content text name arguments refusal reasoning reasoning_content thinking input output".split()
)
# A part of a content with one of these, and without text, is a thing.
_MEDIA: Final = ("image_url", "image", "input_audio", "audio", "video_url", "file")


class Said(NamedTuple):
    """texts: nothing empty, in no order; media: how many things are no text."""

    texts: list[str]
    media: int


def said(message: Mapping[str, Any]) -> Said:
    """What one message says. Linear in its size."""
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2 and "role" in message:
        return Said([content] if content else [], 0)  # as most are
    texts: list[str] = []
    media = 0
    todo: list[tuple[str, Any]] = [*message.items()]
    while todo:
        key, value = todo.pop()
        if isinstance(value, str):
            if not value or (key in _LISTED and len(value) <= _LISTED_CHARS):
                continue
            if key in _PROSE or not is_opaque(value):
                texts.append(value)
            else:
                media += 1
        elif isinstance(value, dict):
            if key == "arguments":
                texts.append(dump(value).decode())
            elif key == "content" and not isinstance(value.get("text"), str) and any(name in value for name in _MEDIA):
                media += 1
            else:
                todo += value.items()
        elif isinstance(value, list):
            strings = [below for below in value if type(below) is str]
            if key in _PROSE:
                strings = ["".join(strings)]  # as servers join them
            todo += [(key, text) for text in strings]
            todo += [(key, below) for below in value if type(below) is dict or type(below) is list]
    return Said(texts, media)
