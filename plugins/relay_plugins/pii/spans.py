"""Where personal data stands in a text, and how much of the text's end may still become some.

A number stands in *groups* of digits, with single spaces or hyphens between them; which groups make a number is a table of
their lengths (`_SHAPES`). From each group on the longest row that is a number is taken. Whether it is one depends on at most
eight groups and the two characters behind them, and of what stands before on at most CONTEXT characters. An address is
looked for around each `@`, at most 64 characters before it and 253 behind. So the time is linear, what is held is bounded,
and a text that comes in pieces is decided as a whole one is.

Nothing here knows of pieces: who reads them shows the end of what has left again, and says where the rest begins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from relay_plugins.pii.kinds import (
    MAX_CARD_DIGITS,
    MAX_DOMAIN_CHARS,
    MAX_LOCAL_CHARS,
    MAX_PHONE_DIGITS,
    Kind,
    domain_chars,
    is_card,
    is_id_number,
    is_mobile,
    may_be_card,
    may_be_id_number,
    may_be_mobile,
    phone_lengths,
)
from relay_plugins.pii.reading import BREAK

# How much of what has left has to be shown again.
CONTEXT: Final = MAX_LOCAL_CHARS + 16


class Span(NamedTuple):
    """Characters from `start` to `end`."""

    start: int
    end: int
    kind: Kind


class Found(NamedTuple):
    """What stands in a text before `held`, and where what is to be held begins (the text's length: nothing is)."""

    spans: list[Span]
    held: int


def find(text: str, kinds: frozenset[Kind], start: int = 0, *, last: bool = True) -> Found:
    """Look through a text from `start` on; what stands before has left, as `left` says. last: nothing comes behind it."""
    spans: list[Span] = []
    held = len(text)
    if "email" in kinds:
        held = _addresses(text, start, last, spans)
        text = left(text, spans)
    if kinds & _SHAPES.keys():
        held = min(held, _Numbers(text, kinds, last).find(start, spans))
    spans = _apart(spans)
    held = min([held, *(span.start for span in spans if span.end > held)])
    return Found([span for span in spans if span.end <= held], held)


def left(text: str, spans: Iterable[Span]) -> str:
    """A text as what follows it has to see it: an address ends there, and nothing of it is part of another."""
    pieces: list[str] = []
    done = 0
    for span in spans:
        if span.kind == "email":
            pieces += (text[done : span.end - 1], BREAK)
            done = span.end
    return "".join((*pieces, text[done:])) if pieces else text


def _apart(spans: list[Span]) -> list[Span]:
    """The same characters, none of them twice: a number inside an address is part of that."""
    apart: list[Span] = []
    for span in sorted(spans):
        if apart and span.start < apart[-1].end:
            before = apart[-1]
            kind: Kind = "email" if "email" in (before.kind, span.kind) else before.kind
            apart[-1] = Span(before.start, max(before.end, span.end), kind)
        else:
            apart.append(span)
    return apart


# Numbers

_GROUP: Final = re.compile(r"[0-9]+[Xx]?")
_GAP: Final = re.compile(r"[ .()-]{1,2}")  # in what has a + before it; in others one space or hyphen
_POINT_ZERO: Final = re.compile(r"\.0(?![0-9A-Za-z])")  # as who keeps numbers as floats writes a whole one
_PLAIN_GAPS: Final = frozenset(" -")
_CURRENCY: Final = frozenset("$¥￥€£₹₩")
_WORD_BEFORE: Final = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2,16}\Z")
MAX_GROUPS: Final = 8

Shape = tuple[int, ...]  # how long each group is

_MOBILES: Final[tuple[Shape, ...]] = ((11,), (3, 4, 4), (4, 4, 3), (4, 3, 4), (3, 8), (7, 4))
_SHAPES: Final[Mapping[Kind, tuple[Shape, ...]]] = {
    "id_number": ((18,), (6, 8, 4), (6, 4, 4, 4), (4, 4, 4, 4, 2), (3, 3, 4, 4, 4)),
    "bank_card": (
        *((length,) for length in range(13, MAX_CARD_DIGITS + 1)),
        *((4, 4, 4, 4, *rest) for rest in ((), (1,), (2,), (3,))),
        *((4, 6, 5), (4, 6, 4), (8, 8), (6, 10), (6, 13)),
    ),
    "phone": (
        *_MOBILES,
        *((code, *shape) for code in (2, 4) for shape in _MOBILES),
        *((code + shape[0], *shape[1:]) for code in (2, 4) for shape in _MOBILES),
    ),
}
_FIRST: Final = frozenset(shape[0] for shapes in _SHAPES.values() for shape in shapes)
MAX_PLAIN_GROUPS: Final = 1 + max(
    len(shape) for shapes in _SHAPES.values() for shape in shapes
)  # and whether one more follows
_IS: Final = {"id_number": is_id_number, "bank_card": is_card, "phone": is_mobile}
_MAY_BE: Final = {"id_number": may_be_id_number, "bank_card": may_be_card, "phone": may_be_mobile}


class _Row(NamedTuple):
    """Groups that stand in a row.

    plain: how many of them are parted by no more than a space or a hyphen. open: more of the last group may come; gap: the
    text ends in what may be a gap, as long as this.
    """

    groups: list[tuple[int, int]]
    digits: list[str]  # those of each group, with its X
    plain: int
    open: bool
    gap: int


class _Numbers:
    """The numbers in one text."""

    def __init__(self, text: str, kinds: Collection[Kind], last: bool) -> None:
        self._text = text
        self._last = last
        self._kinds = [kind for kind in _SHAPES if kind in kinds]
        self._groups: list[tuple[int, int]] = []

    def find(self, start: int, spans: list[Span]) -> int:
        """Add what is found. Where what is held begins."""
        text = self._text
        if start and _is_digit(text[start - 1]):  # the rest of a number that is too long
            start = _end_of_digits(text, start)
        self._groups = [found.span() for found in _GROUP.finditer(text, start)]
        number = 0
        while number < len(self._groups):
            begin = self._groups[number][0]
            plus = "phone" in self._kinds and begin > start and self._has_plus(begin)
            if not plus and not self._may_begin(number):
                number += 1
                continue
            lead = begin - plus
            row = self._row(number, MAX_GROUPS if plus else MAX_PLAIN_GROUPS)
            if self._waits(row, plus):
                return lead
            found = self._longest(row, plus)
            if found is None:
                number += 1
            else:
                kind, groups = found
                end = row.groups[groups - 1][1]
                if _POINT_ZERO.match(text, end):
                    if end + 2 == len(text) and not self._last:  # more decimals may come
                        return lead
                    end += 2
                    number += 1
                spans.append(Span(lead if plus else begin, end, kind))
                number += groups
        if not self._last and text.endswith("+") and len(text) > start and "phone" in self._kinds:
            return len(text) - 1
        return len(text)

    def _may_begin(self, number: int) -> bool:
        """Whether a number without a + may begin with this group: what it is not, is said at one look."""
        begin, end = self._groups[number]
        if end - begin > MAX_CARD_DIGITS or (end - begin not in _FIRST and (self._last or end < len(self._text))):
            return False
        digits = self._text[begin:end]
        return any(_MAY_BE[kind](digits) for kind in self._kinds)

    def _has_plus(self, begin: int) -> bool:
        return self._text[begin - 1] == "+" and not self._text[max(0, begin - 2) : begin - 1].isalnum()

    def _row(self, number: int, most: int) -> _Row:
        """The groups from this one on that may be one number, at `most` so many."""
        text, length = self._text, len(self._text)
        groups = [self._groups[number]]
        plain, total = 1, groups[0][1] - groups[0][0]
        gap = 0
        while total <= MAX_CARD_DIGITS and len(groups) < most:
            end = groups[-1][1]
            follows = self._groups[number + len(groups)] if number + len(groups) < len(self._groups) else None
            between = text[end : min(end + 3, length) if follows is None else min(end + 3, follows[0])]
            if follows is None or follows[0] > end + 2:
                gap = len(between) if end + len(between) == length and _GAP.fullmatch(between) else 0
                break
            if _GAP.fullmatch(between) is None:
                break
            if between in _PLAIN_GAPS and plain == len(groups):
                plain += 1
            total += follows[1] - follows[0]
            groups.append(follows)
        open_ = not self._last and groups[-1][1] == length
        digits = [text[begin:end] for begin, end in groups]
        return _Row(groups, digits, plain, open_, 0 if self._last else gap)

    def _waits(self, row: _Row, plus: bool) -> bool:
        """Whether what is still to come may decide about a number that begins with this row."""
        if not (row.open or row.gap):
            return False
        if plus and self._may_be_international(row):
            return True
        count = len(row.groups)
        if row.plain < count or row.gap > 1:
            return False
        behind = self._text[row.groups[-1][1] :]
        if row.gap and behind not in _PLAIN_GAPS and behind != ".":
            return False
        digits, lengths = "".join(row.digits), [*map(len, row.digits)]
        return self._begins(row) and any(
            _MAY_BE[kind](digits)
            and any(_begins(shape, lengths, open_=row.open, gap=behind) for shape in _shapes(kind, digits))
            for kind in self._kinds
        )

    def _may_be_international(self, row: _Row) -> bool:
        digits = "".join(row.digits)
        if not digits.isdigit():
            return False
        _, most = phone_lengths(digits)
        if len(digits) < 3 and not digits.startswith("0"):
            most = MAX_PHONE_DIGITS
        return len(digits) < most or (len(digits) == most and (row.open or (len(row.groups) == 1 and row.gap == 1)))

    def _longest(self, row: _Row, plus: bool) -> tuple[Kind, int] | None:
        """The kind of the longest number that begins with this row, and of how many groups it is."""
        if plus:
            for count in range(len(row.groups), 0, -1):
                digits = "".join(row.digits[:count])
                least, most = phone_lengths(digits)
                dotted = count == 1 and self._decimals(row, 1)
                said = self._text[row.groups[0][0] : row.groups[count - 1][1]]
                if said.count("(") != said.count(")"):
                    continue  # (+86)138…: the bracket began before
                if least <= len(digits) <= most and digits.isdigit() and not dotted and not self._runs_on(row, count):
                    return "phone", count
        if not self._begins(row):
            return None
        for count in range(1 if self._hangs(row) else row.plain, 0, -1):
            lengths = tuple(map(len, row.digits[:count]))
            for kind in self._kinds:
                if lengths in _SHAPES[kind] and _IS[kind]("".join(row.digits[:count])) and self._ends(row, count):
                    return kind, count
        return None

    def _begins(self, row: _Row) -> bool:
        """Whether a number may begin here: not inside another, a word or a price."""
        text, begin = self._text, row.groups[0][0]
        before = text[begin - 1 : begin]
        if not before:
            return True
        if before in "0123456789" or before in _CURRENCY:
            return False
        if before == ".":
            return not _is_digit(text[max(0, begin - 2) : begin - 1])
        if before.isascii() and before.isalpha():
            return _WORD_BEFORE.search(text[max(0, begin - 18) : begin]) is not None
        return True

    def _hangs(self, row: _Row) -> bool:
        """Whether there is a hyphen between the row and a digit before it."""
        begin = row.groups[0][0]
        return begin > 1 and self._text[begin - 1] == "-" and _is_digit(self._text[begin - 2])

    def _ends(self, row: _Row, count: int) -> bool:
        """Whether a number of so many groups may end there: in no word, before no decimals, nor in a longer row of hyphens."""
        end = row.groups[count - 1][1]
        hyphen = count > 1 and self._text[end : end + 1] == "-" and _is_digit(self._text[end + 1 : end + 2])
        return not (hyphen or self._decimals(row, count) or self._runs_on(row, count))

    def _decimals(self, row: _Row, count: int) -> bool:
        end = row.groups[count - 1][1]
        decimals = self._text[end : end + 1] == "." and _is_digit(self._text[end + 1 : end + 2])
        return decimals and _POINT_ZERO.match(self._text, end) is None

    def _runs_on(self, row: _Row, count: int) -> bool:
        end = row.groups[count - 1][1]
        behind = self._text[end : end + 1]
        return behind.isascii() and behind.isalnum()


def _shapes(kind: Kind, digits: str) -> tuple[Shape, ...]:
    """The shapes of what begins with these digits."""
    return _MOBILES if kind == "phone" and digits.startswith("1") else _SHAPES[kind]


def _begins(shape: Shape, lengths: list[int], *, open_: bool, gap: str) -> bool:
    """Whether groups of these lengths may be the first ones of such a shape, or all of them with their end in doubt."""
    count = len(lengths)
    if count > len(shape) or tuple(lengths[:-1]) != shape[: count - 1]:
        return False
    if open_:
        return lengths[-1] <= shape[count - 1]
    if lengths[-1] != shape[count - 1]:
        return False
    return (count < len(shape) and gap != ".") or (count == len(shape) and (gap == "." or (gap == "-" and count > 1)))


def _is_digit(char: str) -> bool:
    return char.isascii() and char.isdigit()


def _end_of_digits(text: str, start: int) -> int:
    found = _GROUP.match(text, start)
    return start if found is None else found.end()


# Addresses

_ALNUM: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_ODD: Final = frozenset("._%+-")
# Rows of dots and hyphens are leaders and rules here, too.
_DOMAIN: Final = re.compile(rf"(?:(?!\.\.|[.-]{{3}})[A-Za-z0-9.-]){{0,{MAX_DOMAIN_CHARS + 1}}}")
# Nobody's: it stands in the addresses of repositories.
_NOBODY: Final = "git"


def local_start(text: str, end: int, floor: int = 0) -> int:
    """Where the local part of an address begins that ends at `end`, or may go on there; `end` if there is none.

    It does not begin before `floor`. Rows of dots and of other signs are leaders and rules, not part of it.
    """
    low, start, odd = max(floor, end - MAX_LOCAL_CHARS - 1), end, 0
    while start > low:
        char = text[start - 1]
        if char in _ALNUM:
            odd = 0
        elif char in _ODD:
            odd += 1
            if odd == 3 or (char == "." and text[start : min(start + 1, end)] == "."):
                start += odd - 1
                break
        else:
            break
        start -= 1
    else:
        if end - start > MAX_LOCAL_CHARS:
            return end
    while start < end and text[start] in _ODD:
        start += 1
    return start


def _ats(text: str, start: int) -> Iterable[int]:
    at = text.find("@", start)
    while at >= 0:
        yield at
        at = text.find("@", at + 1)


def _addresses(text: str, start: int, last: bool, spans: list[Span]) -> int:
    """Add the addresses in a text. Where what is held begins."""
    length, floor = len(text), 0
    for at in _ats(text, start):
        first = local_start(text, at, floor)
        if not start <= first < at or text[at - 1] == ".":
            continue
        domain = _DOMAIN.match(text, at + 1)
        assert domain is not None
        if domain.end() - at - 1 > MAX_DOMAIN_CHARS:
            continue
        if domain.end() == length and not last:
            return first
        chars = domain_chars(domain[0])
        if chars and text[first:at] != _NOBODY:
            floor = at + 1 + chars
            spans.append(Span(first, floor, "email"))
    return length if last else local_start(text, length, floor)
