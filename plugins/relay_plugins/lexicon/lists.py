"""Word lists: tables of the configuration, and the files that they name.

A file has one phrase a line, UTF-8. A comment begins with # at the beginning of a line, or with two spaces and # after a
phrase (one space is no mark: "topic #1" is a phrase). A phrase that begins with # is written \\#.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from relay.options import Table
from relay_plugins.lexicon.phrases import Manner, canonical

_COMMENT = re.compile(r"(?:^\s*|\s\s+)#.*")


class WordList(Table, frozen=True, kw_only=True):
    """Phrases of which one thing is wanted. label: what a hit is called. whole_words: of Latin phrases."""

    words: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    label: Annotated[str, Meta(min_length=1)] = "lexicon"
    action: Literal["block", "mask", "review"] = "block"
    whole_words: bool = True

    def phrases(self) -> Iterator[tuple[str, Manner]]:
        """Its phrases in canonical text, read now. Raises ValueError with file, line and remedy."""
        manner = Manner(self.label, self.action, self.whole_words)
        for phrase in self.words:
            yield canonical(phrase), manner
        for path in self.files:
            for phrase in read(path):
                yield phrase, manner


def read(path: Path) -> list[str]:
    """The phrases of a file in canonical text. Raises ValueError if it cannot be read, has a bad phrase, or none."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path in `files`") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    phrases = list(_parse(path, io.StringIO(text, newline=None)))
    if not phrases:
        raise ValueError(f"{path}: there is no phrase in it; write one a line, or remove the file from `files`")
    return phrases


def _parse(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        phrase = _COMMENT.sub("", line).strip()
        if phrase.startswith("\\#"):
            phrase = phrase[1:]
        if phrase:
            try:
                yield canonical(phrase)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
