"""On which line of a TOML file something stands that a sentence is about.

`tomllib` tells no places. But a file that is cut off after a line is a document as far as it goes, or none in the midst of
a value: so the shortest beginning that has what is looked for ends with the statement that says it, and the longest that
has not ends before it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Final

Path = Sequence[str | int]

# As messages write it: `plugins[2].moderators[0].words`.
_WRITTEN: Final = re.compile(r"""[A-Za-z0-9_-]+(?:\[[0-9]+\]|\.[A-Za-z0-9_-]+|\."[^"]*")*""")
_PART: Final = re.compile(r"""\[([0-9]+)\]|"([^"]*)"|([A-Za-z0-9_-]+)""")
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")  # as TOML has them; str.splitlines knows of others
# So many are read at most to find one, a fifth of a second: the end of a value of very many lines is found slowly.
_BUDGET_LINES: Final = 100_000
_UNKNOWN: Final = re.compile(r"unknown (?:option|key) '([^']*)'")


def path_of(problem: str) -> list[str | int]:
    """What a sentence is about that begins with it; no more than the sentence's first word if it does not."""
    written = _WRITTEN.match(problem)
    if written is None:
        return []
    path: list[str | int] = [
        int(index) if index else quoted or bare for index, quoted, bare in _PART.findall(written[0])
    ]
    unknown = _UNKNOWN.search(problem)
    return [*path, unknown[1]] if unknown else path


def line_of(text: str, path: Path) -> int:
    """The line, from 1, where the statement begins that says what `path` leads to, or as far as it leads; 0 for nowhere,
    and for what is too much to read.

    Raises ValueError if the text is no TOML.
    """
    found = _reach(tomllib.loads(text), path)
    if not found:
        return 0
    path = path[:found]
    lines = _LINE.findall(text)
    budget = _BUDGET_LINES
    before, after, unknown = 0, len(lines), len(lines)  # without it, with it, and up to where no line is known
    while unknown - before > 1:
        middle = (before + unknown) // 2
        whole = None
        for end in range(middle, unknown):
            budget -= end
            if budget < 0:
                return 0
            if _read(lines[:end]) is not None:
                whole = end
                break
        if whole is None or _reach(_read(lines[:whole]), path) == found:
            after, unknown = whole or after, middle
        else:
            before = whole
    said = (number for number, line in enumerate(lines[before:after], before + 1) if line.strip()[:1] not in ("", "#"))
    return next(said)


def _read(lines: Sequence[str]) -> object:
    """The document; None if it is none."""
    try:
        return tomllib.loads("".join(lines))
    except tomllib.TOMLDecodeError:
        return None


def _reach(document: object, path: Path) -> int | None:
    """How many parts of a path are there; None in no document."""
    if document is None:
        return None
    for reached, part in enumerate(path):
        match document, part:
            case dict(), str() if part in document:
                document = document[part]
            case list(), int() if part < len(document):
                document = document[part]
            case _:
                return reached
    return len(path)
