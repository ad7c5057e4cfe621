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

from relay.pure.framing import LINED, LINES, SIZES, Lines
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
Told = Callable[[bytes], "tuple[int, str] | None"]


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


Said = Callable[[bytes], "tuple[int, str] | None"]


class Stencil:
    """What the events of one stream repeat around their text, each in an HTTP chunk: a shape with only its text for a hole.

    Or with one hole more: servers put noise into a string, to hide how long the text is. It is the end of that string
    that differs, of letters and digits. So an event is a head, text, middle, noise and tail; or head, noise, middle,
    text, tail, the noise always as long; or, as most are, head, text, tail. What repeats is found by comparing two
    events that the shape has matched, so whatever has a text between the same bytes, and its noise, matches too.

    said: the choice's index and the text of the event in an HTTP chunk, if it is known; if None, it has to be `read`.
    """

    __slots__ = ("_last", "_lessons", "_lines", "_shape", "said")

    def __init__(self, shape: Shape) -> None:
        self.said: Said = unknown
        self._shape = shape
        self._lessons = LESSONS
        self._last: re.Match[bytes] | None = None  # of an event that was not known
        self._lines = LINES[False]  # how sizes are written

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
            line = found.string[: found.string.index(b"\r")]
            if not line.isdigit():
                self._lines = LINES[line.isupper()]
            said = _cut(found, text, noises, self._lines, self._shape.told)
            if said(last.string) is not None:  # else something differs beside, a number for one
                self.said = said
                self._last = None
            else:
                self.said = unknown
        if not self._lessons:
            self._last = None


def unknown(chunk: bytes) -> None:
    """Of no event is anything known."""


def _cut(found: re.Match[bytes], text: int, noises: list[int], lines: Lines, told: Told) -> Said:
    """What tells events like the one that was found: `text` and the noises are the groups that differ."""
    chunk = found.string
    start = chunk.index(b"\n") + 1
    begin, end = found.span(text)
    if not noises:
        return _with_text(lines, chunk[start:begin], chunk[end:], told)
    [noise] = noises
    first, last = found.span(noise)
    first += len(found[noise].rstrip(_ALNUM))
    if last < begin:
        return _with_noise_before(lines, chunk[start:first], last - first, chunk[last:begin], chunk[end:], told)
    return _with_noise_behind(lines, chunk[start:begin], chunk[end:first], chunk[last:], told)


# An event is put together again from what it repeats and what was cut out of it. To compare that with the event takes one
# look at all of it, and says whether what was cut out stands where it must.


def _with_text(lines: Lines, head: bytes, tail: bytes, told: Told) -> Said:
    """Of an event that is head, text and tail."""
    start, stop = len(head), -len(tail)

    def said(chunk: bytes) -> tuple[int, str] | None:
        size = len(chunk)
        if size < LINED:
            line, at = lines[size]
            text = chunk[at + start : stop]
            if chunk == b"".join((line, head, text, tail)):
                return told(text)
        return None

    return said


def _with_noise_before(lines: Lines, head: bytes, length: int, middle: bytes, tail: bytes, told: Told) -> Said:
    """Of an event that is head, noise of this length, middle, text and tail."""
    start, between, stop = len(head), length + len(middle), -len(tail)

    def said(chunk: bytes) -> tuple[int, str] | None:
        size = len(chunk)
        if size < LINED:
            line, at = lines[size]
            at += start
            noise, text = chunk[at : at + length], chunk[at + between : stop]
            if chunk == b"".join((line, head, noise, middle, text, tail)) and noise.isalnum():
                return told(text)
        return None

    return said


def _with_noise_behind(lines: Lines, head: bytes, middle: bytes, tail: bytes, told: Told) -> Said:
    """Of an event that is head, text, middle, noise and tail."""
    start, between, stop = len(head), len(middle), -len(tail)

    def said(chunk: bytes) -> tuple[int, str] | None:
        size = len(chunk)
        if size < LINED:
            line, at = lines[size]
            at += start
            end = chunk.find(b'"', at)
            text, noise = chunk[at:end], chunk[end + between : stop]
            if chunk == b"".join((line, head, text, middle, noise, tail)) and noise.isalnum():
                return told(text)
        return None

    return said


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
