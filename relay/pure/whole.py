"""A reply that is not streamed, looked at as a whole: most say nothing that anybody finds, and leave as they came.

Only a short way, for which no runs are made: what is clean here, the guard would release as it is
(`tests/pure/test_whole.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from relay.pure.choice import MAX_SURFACES
from relay.pure.fold import fold_seen
from relay.pure.guard import MAX_CHOICES
from relay.pure.openai import Chunk, Frame, count_of, has_repeated_key
from relay.pure.surfaces import CHOICE_METADATA, FRAME_METADATA, MESSAGE_METADATA, read
from relay.pure.window import MAX_NOTHING

_FRAME: Final = (FRAME_METADATA | {"choices"}).issuperset
_CHOICE: Final = (CHOICE_METADATA | {"message", "logprobs"}).issuperset


def clean(chunk: Chunk, finds: Callable[[str], object]) -> int | None:
    """How many characters a whole reply says; None if it is not of the commonest kinds, or something is found in it.

    finds: what is true of a canonical text, there as a whole, in which something is found.
    """
    frame = chunk.json
    if frame is None or chunk.lenient or not chunk.plain:
        return None
    only = _only_text(chunk.data, frame)
    texts = (only,) if only is not None else _texts(chunk.data, frame)
    if texts is None:
        return None
    said = 0
    for text in texts:
        copy = fold_seen(text, MAX_NOTHING)
        if copy is None or finds(copy):
            return None
        said += len(text)
    return said


def _only_text(data: bytes, frame: Frame) -> str | None:
    """The content of the one message of a reply that has nothing else to read, and repeats no key; None of any other.

    `_texts` would find the same.
    """
    choices = frame.get("choices")
    if not _FRAME(frame) or type(choices) is not list or len(choices) != 1:
        return None
    choice: Any = choices[0]
    if type(choice) is not dict or not _CHOICE(choice) or choice.get("logprobs") is not None:
        return None
    index, message, usage = choice.get("index", 0), choice.get("message"), frame.get("usage")
    if type(message) is not dict or type(index) is not int or not 0 <= index < MAX_CHOICES:
        return None
    text = message.get("content")
    if type(text) is not str:
        return None
    for key, value in message.items():
        if value and key != "content" and (key not in MESSAGE_METADATA or type(value) is not str):
            return None
    # Cheaper than to write it again, and enough for most: a colon for each key, and those of the text.
    colons = count_of(data, b":") - len(frame) - len(choice) - len(message) - (len(usage) if type(usage) is dict else 0)
    if not colons or (colons == text.count(":") and b"\\u003" not in data):
        return text
    return None if has_repeated_key(data, frame) else text


def _texts(data: bytes, frame: Frame) -> Sequence[str] | None:
    """All texts of a reply; None if some are not to be read as they are, each by itself, and for a guard to look at."""
    try:
        reading = read(frame, whole=True)
    except (ValueError, RecursionError):
        return None
    parts = reading.choices
    if reading.unknown or reading.loose or has_repeated_key(data, frame):
        return None
    if len(parts) > MAX_CHOICES or _repeats([part.index for part in parts]):
        return None
    for part in parts:
        if len(part.texts) > MAX_SURFACES or _repeats([surface for surface, _, _ in part.texts]):
            return None
        if any(kind for _, kind, _ in part.texts):
            return None
    return [text for part in parts for _, _, text in part.texts]


def _repeats(items: Sequence[int | str]) -> bool:
    return len(set(items)) < len(items)
