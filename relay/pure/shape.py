"""The shape of a stream's commonest frame: recognised in one step, and not parsed.

A server writes such frames, one choice with more `content` and nothing else that says anything, in one form for ever: the
same keys in the same order, around values of which none but the text reaches a reader. So `shape_of` makes a pattern of
one frame that `relay.pure.plain` can read: its bytes, with holes where values stand. An event that fits says the text in
its hole. It need not be parsed, nor looked for in its event stream, since it brings its borders with it. Other plugins'
streams, other requests: a server needs one pattern, and it is compiled once.

Why that is safe. A hole is the inside of a string that is some key's value, or a whole number that is one. What fits in
has no quote, no backslash and no control character, so it is the inside of a string again and ends no line; all else is
byte for byte what was read in full. So the decoder would see one event, and `plain_text` one such frame with another text
(`tests/pure/test_shape.py`). Nothing of the frame is pattern but its holes, so what an upstream sends is only compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from relay.pure.framing import SIZES
from relay.pure.plain import plain_text

# How many patterns are remembered, over all upstreams; a shape has two. One costs a compilation of half a millisecond, and some KiB.
SHAPES: Final = 512
# A frame without its text; more than this is none of a stream's commonest.
MAX_BYTES: Final = 2048

# What texts of a shape are remembered, and how many.
TOKEN_BYTES: Final = 32
TOKENS: Final = 4096

# The strings of JSON text without escapes, those that are keys with their colon; and all other values.
_PARTS: Final = re.compile(rb'"([^"\\]*+)"(\s*:)?|[-+.\w]+')
# Possessive: no hole gives back what it took, so a match takes one look at each byte.
_TEXTS: Final = frozenset({b"content", b"text"})  # under one of them it stands
_KINDS: Final = frozenset({b"type"})  # what is said here tells how the rest is read
_TEXT: Final = rb'"([^"\\\x00-\x1f]++)"'
_STRING: Final = rb'"[ !#-\[\]-~]*+"'
_NUMBER: Final = rb"(?:0|[1-9][0-9]{0,17}+)"

Match = Callable[[bytes], re.Match[bytes] | None]


class _Said(dict[bytes, tuple[int, str] | None]):
    """What texts say, in UTF-8 as they come: the index of their choice and the text; None if it is no UTF-8.

    Models speak in tokens, and in the same ones again and again: short ones stay, until they are too many.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def __missing__(self, text: bytes) -> tuple[int, str] | None:
        try:
            said = self._index, text.decode()
        except UnicodeDecodeError:
            return None
        if len(text) <= TOKEN_BYTES:
            if len(self) >= TOKENS:
                self.clear()
            self[text] = said
        return said


class Shape:
    """One form of frames. pattern: of a whole event; its first group is the text. index: of their choice."""

    __slots__ = ("_framed", "_match", "_said")

    def __init__(self, pattern: bytes, index: int) -> None:
        self._match = _compiled(pattern)
        self._framed = _compiled(rb"([0-9A-Fa-f]++)\r\n" + pattern + rb"\r\n")
        self._said = _Said(index).__getitem__

    def said(self, raw: bytes) -> tuple[int, str] | None:
        """The choice's index and its text if `raw` is one more such event; None if it is anything else."""
        found = self._match(raw)
        return self._said(found[1]) if found is not None else None

    def said_framed(self, data: bytes) -> tuple[int, str] | None:
        """The same of an event that is one whole HTTP chunk, as servers write them; None if it is anything else."""
        found = self._framed(data)
        if found is None:
            return None
        size, text = found.groups()
        return self._said(text) if SIZES.get(size) == len(data) else None


class Shapes:
    """What one server's streams have in common: their frames' shape. The newest, if it has several."""

    __slots__ = ("newest",)

    def __init__(self) -> None:
        self.newest: Shape | None = None


def shape_of(raw: bytes) -> Shape | None:
    """The shape of an event, if it is a frame of this kind. `raw` is the event as it came, of data lines only."""
    said = plain_text(raw[5:].strip())  # of another event this is no JSON
    if said is None or len(raw) > MAX_BYTES:
        return None
    pattern: list[bytes] = []
    end = 0
    key = b""
    for part in _PARTS.finditer(raw):
        value = re.escape(part[0])
        if part[2] is not None:
            key = part[1]
        elif part[1] is not None:
            value = _TEXT if key in _TEXTS else _STRING if key not in _KINDS else value
        elif part[0].isdigit() and key != b"index":
            value = _NUMBER
        pattern += re.escape(raw[end : part.start()]), value
        end = part.end()
    pattern.append(re.escape(raw[end:]))
    return Shape(b"".join(pattern), said[0])


@lru_cache(SHAPES)
def _compiled(pattern: bytes) -> Match:
    return re.compile(pattern).fullmatch
