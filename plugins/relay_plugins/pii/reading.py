"""How a text is read: in the characters in which personal data is looked for, with the way back to those that were written.

Full-width and mathematical letters and digits, the decimal digits of all scripts, and the spaces and hyphens that look like
ours are read as ASCII. What is not seen (zero-width characters, selectors) is read over, up to MAX_NOTHING in a row. An
escape of JSON is read as its character: results of tools are often JSON in which Chinese stands as \\u4f60, or JSON in a
string of JSON, where it stands as \\\\u4f60.

Not folded: ① and ², which are marks of lists and footnotes and stand beside numbers.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

# More of what is not seen in a row ends whatever stands before it, so that what is held is bounded.
MAX_NOTHING: Final = 16
BREAK: Final = "\n"
"""Stands for characters that are no part of anything."""

# Where in Unicode there is something to fold; a test looks at all of it.
_BLOCKS: Final = (
    range(0x80, 0x3100),
    range(0xA620, 0xAC00),
    range(0xFE00, 0x10000),
    range(0x104A0, 0x12000),
    range(0x13430, 0x13460),
    range(0x16A00, 0x16C00),
    range(0x16D00, 0x16E00),
    range(0x1BCA0, 0x1BCB0),
    range(0x1CCF0, 0x1CD00),
    range(0x1D100, 0x1D800),
    range(0x1E000, 0x1F200),
    range(0x1FBF0, 0x1FC00),
    range(0xE0000, 0xE0200),
)
_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@._%+-")
_HYPHENS: Final = frozenset("\u2010\u2011\u2012\u2013\u2212")
_UNSEEN: Final = frozenset("\u034f\u20e3")  # the joiner of graphemes, and the frame of a keycap
_MARKS: Final = ("<circle>", "<super>", "<sub>")


def _folded(char: str) -> str | None:
    """What a character is read as; None: as itself."""
    category = unicodedata.category(char)
    if category == "Cf" or char in _UNSEEN or unicodedata.name(char, "").startswith("VARIATION SELECTOR"):
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Zs":
        return " "
    if char in _HYPHENS:
        return "-"
    if unicodedata.decomposition(char).startswith(_MARKS):
        return None
    folded = unicodedata.normalize("NFKC", char)
    return folded if folded in _LETTERS else None


def _table(codes: Iterable[int]) -> Iterator[tuple[str, str]]:
    for char in map(chr, codes):
        folded = _folded(char)
        if folded is not None:
            yield char, folded


_FOLDED: Final = dict(pair for block in _BLOCKS for pair in _table(block))


def _in_ranges(chars: Iterable[str]) -> str:
    """The characters as the inside of a set in a pattern."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


FOLDED_SET: Final = _in_ranges(_FOLDED)
# JSON inside JSON has its backslashes twice, and so on. More of them than this are read two by two.
_SLASHES: Final = r"\\{1,16}"
_CUT: Final = rf"{_SLASHES}(?:u[0-9A-Fa-f]{{0,3}})?\Z"
_UNIT: Final = re.compile(rf'{_SLASHES}(?:u[0-9A-Fa-f]{{4}}|[bfnrt])|(?P<cut>{_CUT})|\\["\\/]|[{FOLDED_SET}]')


class Reading:
    """A text as it is read.

    text: what is read. end: how much of what was written that is; behind it stands an escape that is not whole.
    nothing: how many unseen characters stand at the end.
    """

    __slots__ = ("_ends", "_read", "_written", "end", "nothing", "text")

    def __init__(self, written: str, nothing: int = 0, *, last: bool = True) -> None:
        """`nothing`: how many unseen characters stood directly before. last: nothing comes behind it."""
        self.end = len(written)
        self.nothing = 0
        # From the character at `_read[n]` of what is read on, those written at `_written[n]` and behind are read as they are.
        self._read = [0]
        self._written = [0]
        self._ends: dict[int, int] = {}  # where in what was written a character ends that is not read as it is
        unit = _UNIT.search(written)
        if unit is None:
            self.text = written
        else:
            self.text = self._folded(written, unit, nothing, last)

    def _folded(self, written: str, unit: re.Match[str] | None, nothing: int, last: bool) -> str:
        pieces: list[str] = []
        length = done = 0
        while unit is not None:
            start, end = unit.span()
            if unit.lastgroup == "cut":
                if last:
                    break
                self.end = start
                break
            if start > done:
                pieces.append(written[done:start])
                length += start - done
                nothing = 0
            char = _unit(unit[0])
            if char == "":
                nothing += 1
                char = BREAK if nothing == MAX_NOTHING + 1 else ""
            else:
                nothing = 0
            if char:
                pieces.append(char)
                self._ends[length] = end
                length += 1
            self._read.append(length)
            self._written.append(end)
            done = end
            unit = _UNIT.search(written, done)
        if self.end > done:
            pieces.append(written[done : self.end])
            nothing = 0
        self.nothing = nothing
        return "".join(pieces)

    def place(self, index: int) -> int:
        """Where the character at `index` of what is read begins in what was written."""
        if index >= len(self.text):
            return self.end
        nearest = bisect_right(self._read, index) - 1
        return self._written[nearest] + index - self._read[nearest]

    def place_after(self, index: int) -> int:
        """Where it ends."""
        return self._ends.get(index) or self.place(index) + 1


def _unit(written: str) -> str:
    """What an escape or a character that is folded is read as."""
    if written[0] != "\\":
        return _FOLDED[written]
    escaped = written.lstrip("\\")
    if escaped.startswith("u"):
        char = chr(int(escaped[1:], 16))
        # A quote in a string of JSON is no end of it, and half of a pair no character.
        return BREAK if char in '"\\' or "\ud800" <= char <= "\udfff" else _FOLDED.get(char, char)
    return "/" if escaped == "/" else BREAK
