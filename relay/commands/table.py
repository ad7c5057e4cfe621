"""Tables for a terminal: columns that line up, also where Chinese characters take two places."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime

_GAP = "  "


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One line a row. A cell that is empty shows as "-"; no line ends with spaces."""
    lines = [tuple(head), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        _GAP.join(cell + " " * (most - width(cell)) for cell, most in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def card(pairs: Iterable[tuple[str, str]]) -> str:
    """What is known of one thing: a name and a value on each line."""
    pairs = tuple(pairs)
    most = max(width(name) for name, _ in pairs)
    return "\n".join(f"{name}{' ' * (most - width(name))}{_GAP}{value or '-'}" for name, value in pairs)


def width(text: str) -> int:
    """How many places a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def moment(at: datetime | None) -> str:
    """To the second, in UTC."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z"


def labels(given: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in given.items())
