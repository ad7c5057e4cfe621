"""The newest part of a text as it was written, beside its canonical copy, and the way from one to the other.

A moderator that has to be asked is shown what was written; everything is counted in characters of the copy. An original
whose copy is empty belongs to the next one that is not; one whose copy is long is shown if any part of it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from relay.pure.fold import disguised, fold, is_even, original_length
from relay.pure.ruling import Span

# What a service takes at once (Tencent's limit).
MAX_SHOWN_CHARS: Final = 10_000


class Passage(NamedTuple):
    """A part of a text.

    start: where `copy` begins, in canonical characters of the text; before: originals of the text before `written`.
    """

    start: int
    copy: str
    before: int
    written: str

    @property
    def shown(self) -> str:
        """What a moderator is given: what was written, and the copy too if that removed something or saw through it."""
        if self.written == self.copy or not disguised(self.written):
            return self.written
        both = f"{self.written}\n{self.copy}"
        # Only a text that hides something and is longer than any normal window; then its copy says all that counts.
        return both if len(both) <= MAX_SHOWN_CHARS else self.copy

    def places(self, spans: tuple[Span, ...]) -> list[tuple[int, int]] | None:
        """Where spans of what was shown stand, in canonical characters of the text; None if one cannot be found.

        A keyword that does not stand where it is said to is looked for, however it is written: services name words as
        they stand in their lists. What covers no character of the copy is no place.
        """
        shown = self.shown
        found: list[tuple[int, int]] = []
        for start, end, keyword in spans:
            wanted = fold(keyword)
            if 0 <= start < end <= len(shown) and (not keyword or wanted == fold(shown[start:end])):
                everywhere = [self._place(shown, start, end)]
            else:
                copy = fold(self.written)  # the passage's own may end inside that of the last original
                everywhere = [(self.start + at, self.start + at + len(wanted)) for at in _occurrences(copy, wanted)]
            if not everywhere or any(first >= last for first, last in everywhere):
                return None
            found += everywhere
        return found or None

    def _place(self, shown: str, start: int, end: int) -> tuple[int, int]:
        if shown is self.copy:
            return self.start + start, self.start + end
        length = len(self.written)
        if start > length:  # in the copy that stands behind it
            return self.start + start - length - 1, self.start + end - length - 1
        if end > length:  # over the line between the two, which stands nowhere
            return self.start, self.start
        first = self.start + len(fold(shown[:start]))
        return first, first + len(fold(shown[start:end]))

    def originals(self, position: int) -> int:
        """How many originals of the text lie wholly before a canonical position in or at an end of this part."""
        return self.before + original_length(self.written, position - self.start)


def _occurrences(text: str, keyword: str) -> list[int]:
    found = []
    at = text.find(keyword) if keyword else -1
    while at >= 0:
        found.append(at)
        at = text.find(keyword, at + 1)
    return found


def len_of_written(written: str, canonical: int) -> int:
    """How many originals it takes to cover so many characters of the copy."""
    if canonical <= 0:
        return 0
    if is_even(written):
        return min(canonical, len(written))
    length = covered = 0
    for char in written:
        if covered >= canonical:
            break
        length += 1
        covered += len(fold(char))
    return length


class Transcript:
    """What is kept of a text: from `start`, in canonical characters, to its end."""

    __slots__ = ("_before", "_copy", "_even", "_written", "start")

    def __init__(self, start: int = 0, before: int = 0) -> None:
        """The text is empty from here on, `before` originals behind its beginning."""
        self.start = start
        self._before = before
        self._copy = ""
        self._written = ""
        self._even = True  # every original has a copy of one character

    @property
    def end(self) -> int:
        return self.start + len(self._copy)

    @property
    def originals(self) -> int:
        """How many originals the text has."""
        return self._before + len(self._written)

    def append(self, written: str, copy: str) -> None:
        self._written += written
        self._copy += copy
        if self._even and written != copy and not is_even(written):
            self._even = False

    def extend(self, written: str, copy: str) -> None:
        """`append`, where every original has a copy of one character."""
        self._written += written
        self._copy += copy

    def passage(self, start: int, end: int) -> Passage:
        """The part between two canonical positions, and before it what belongs to an original that it halves."""
        first, at = self._border(start - self.start)
        if self._even:
            written = self._written[first : end - self.start]
        else:
            written = self._written[first:]
            if end < self.end:
                written = written[: len_of_written(written, end - self.start - at)]
        return Passage(self.start + at, self._copy[at : end - self.start], self._before + first, written)

    def forget(self, position: int) -> None:
        """Keep only what stands from a canonical position on."""
        first, at = self._border(position - self.start)
        if first:
            self._written = self._written[first:]
            self._copy = self._copy[at:]
            self._before += first
            self.start += at
            self._even = self._even or is_even(self._written)

    def _border(self, position: int) -> tuple[int, int]:
        """How many originals stand wholly before a position of the kept copy, and how long their copies are.

        Those with an empty copy right before the position belong to what comes after it.
        """
        if position <= 0:
            return 0, 0
        if self._even:
            return position, position
        first = at = end = 0
        for length, char in enumerate(self._written, 1):
            end += len(fold(char))
            if end > position:
                break
            if end > at:
                first, at = length, end
        return first, at
