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

A pattern looks at each byte by itself. In one stream nearly all holes hold the same again and again, so a `Stencil` keeps
what stands around the text, and compares that as a whole: in a third of the time.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from relay.pure.framing import LINES, SIZES
from relay.pure.plain import plain_text

# How many patterns are remembered, over all upstreams; a shape has two. One costs a compilation of half a millisecond, and some KiB.
SHAPES: Final = 512
# A frame without its text; more than this is none of a stream's commonest.
MAX_BYTES: Final = 2048
# How many pairs of events of one stream are compared for what they repeat: some servers tell the time, to the second.
LESSONS: Final = 64

# What texts of a shape are remembered, and how many.
TOKEN_BYTES: Final = 32
TOKENS: Final = 4096

# The strings of JSON text without escapes, those that are keys with their colon; and all other values.
_PARTS: Final = re.compile(rb'"([^"\\]*+)"(\s*:)?|[-+.\w]+')
# Possessive: no hole gives back what it took, so a match takes one look at each byte.
_TEXTS: Final = frozenset({b"content", b"text"})  # under one of them it stands
_KINDS: Final = frozenset({b"type"})  # what is said here tells how the rest is read
_INSIDE: Final = rb'([^"\\\x00-\x1f]++)'  # of the text
_TEXT: Final = rb'"' + _INSIDE + rb'"'
_STRING: Final = rb'"([ !#-\[\]-~]*+)"'
_NUMBER: Final = rb"(?:0|[1-9][0-9]{0,17}+)"

_ALNUM: Final = (string.digits + string.ascii_letters).encode()

Match = Callable[..., re.Match[bytes] | None]


class _Told(dict[bytes, tuple[int, str] | None]):
    """What texts tell, in UTF-8 as they come: the index of their choice and the text; None for what can stand in no hole.

    Models speak in tokens, and in the same ones again and again: short ones stay, until they are too many.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self._index = index

    def __missing__(self, text: bytes) -> tuple[int, str] | None:
        if _is_inside(text) is None:
            return None
        try:
            told = self._index, text.decode()
        except UnicodeDecodeError:
            return None
        if len(text) <= TOKEN_BYTES:
            if len(self) >= TOKENS:
                self.clear()
            self[text] = told
        return told


class Shape:
    """One form of frames.

    match: of a whole event; its groups are the strings that are holes. text: which of them is the text. told: what a text
    tells, in bytes; None if it is none.
    """

    __slots__ = ("match", "text", "told")

    def __init__(self, pattern: bytes, text: int, index: int) -> None:
        self.match = _compiled(pattern)
        self.text = text
        self.told = _Told(index).__getitem__

    def said(self, raw: bytes) -> tuple[int, str] | None:
        """The choice's index and its text if `raw` is one more such event; None if it is anything else."""
        found = self.match(raw)
        return self.told(found[self.text]) if found is not None else None


class Stencil:
    """What the events of one stream repeat around their text, each in an HTTP chunk: a shape with only its text for a hole.

    Or with one hole more: servers put noise into a string, to hide how long the text is. It is the end of that string
    that differs, of letters and digits. So an event is a head, text, middle, noise and tail; or head, noise, middle,
    text, tail, the noise always as long; or, as most are, head, text, tail. What repeats is found by comparing two
    events that the shape has matched, so whatever has a text between the same bytes, and its noise, matches too.
    """

    __slots__ = (
        "_gap", "_head", "_last", "_lessons", "_lines", "_longest", "_middle", "_noise", "_shape", "_start", "_stop",
        "_tail",
    )  # fmt: skip

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._lessons = LESSONS
        self._last: re.Match[bytes] | None = None  # of an event that was not known
        self._lines = LINES[False]
        self._longest = 0  # chunks that are as long, or longer, are not known
        self._head = self._middle = self._tail = b""
        self._start = self._gap = self._stop = 0  # how long these three are; the last from the end on
        self._noise = 0  # how long the noise before the text is; -1 if it stands behind

    def said(self, chunk: bytes) -> tuple[int, str] | None:
        """The choice's index and its text, if the event in this HTTP chunk is known; if None, it has to be `read`."""
        size = len(chunk)
        if size >= self._longest:
            return None
        line, at = self._lines[size]
        # To put it together again takes one look at all of it, and says whether what was cut out stands where it must.
        if not self._noise:
            text = chunk[at + self._start : self._stop]
            if chunk == b"".join((line, self._head, text, self._tail)):
                return self._shape.told(text)
            return None
        at += self._start
        if self._noise > 0:
            end = at + self._noise
            noise = chunk[at:end]
            text = chunk[end + self._gap : self._stop]
            whole = line, self._head, noise, self._middle, text, self._tail
        else:
            end = chunk.find(b'"', at)
            text = chunk[at:end]
            noise = chunk[end + self._gap : self._stop]
            whole = line, self._head, text, self._middle, noise, self._tail
        return self._shape.told(text) if noise.isalnum() and chunk == b"".join(whole) else None

    def read(self, chunk: bytes) -> tuple[int, str] | None:
        """The same of any event of the shape; None if it is anything else."""
        at = chunk.find(b"\r\n")
        if SIZES.get(chunk[:at]) != len(chunk) or not chunk.endswith(b"\r\n"):
            return None
        found = self._shape.match(chunk, at + 2, len(chunk) - 2)
        if found is None:
            return None
        text = found[self._shape.text]
        if self._lessons:
            self._learn(found)
        return self._shape.told(text)

    def _learn(self, found: re.Match[bytes]) -> None:
        """Look for what an event has in common with the one that was not known before it."""
        last, self._last = self._last, found
        if last is None:
            return
        self._lessons -= 1
        text = self._shape.text
        noises = [group for group in range(1, found.re.groups + 1) if group != text and found[group] != last[group]]
        if len(noises) <= 1:
            self._cut(found, noises)
            if self.said(last.string) is None:  # something else differs, a number for one
                self._longest = 0
            else:
                self._last = None
        if not self._lessons:
            self._last = None

    def _cut(self, found: re.Match[bytes], noises: list[int]) -> None:
        chunk = found.string
        start = chunk.index(b"\n") + 1
        line = chunk[: start - 2]
        if not line.isdigit():
            self._lines = LINES[line.isupper()]
        begin, end = found.span(self._shape.text)
        self._noise = 0
        self._head, self._middle, self._tail = chunk[start:begin], b"", chunk[end:]
        for noise in noises:
            first, last = found.span(noise)
            first += len(found[noise].rstrip(_ALNUM))
            if last < begin:
                self._noise = last - first
                self._head, self._middle = chunk[start:first], chunk[last:begin]
            else:
                self._noise = -1
                self._middle, self._tail = chunk[end:first], chunk[last:]
        self._start, self._gap, self._stop = len(self._head), len(self._middle), -len(self._tail)
        self._longest = len(self._lines)


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
    end = text = strings = 0
    key = b""
    for part in _PARTS.finditer(raw):
        value = re.escape(part[0])
        if part[2] is not None:
            key = part[1]
        elif part[1] is not None:
            if key not in _KINDS:
                strings += 1
                if key in _TEXTS:
                    value, text = _TEXT, strings
                else:
                    value = _STRING
        elif part[0].isdigit() and key != b"index":
            value = _NUMBER
        pattern += re.escape(raw[end : part.start()]), value
        end = part.end()
    pattern.append(re.escape(raw[end:]))
    return Shape(b"".join(pattern), text, said[0])


@lru_cache(SHAPES)
def _compiled(pattern: bytes) -> Match:
    return re.compile(pattern).fullmatch


_is_inside: Final = re.compile(_INSIDE).fullmatch
