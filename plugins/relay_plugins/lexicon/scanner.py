"""The reader that finds phrases in a text that is still coming."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from relay.pure.window import Hit, Ways
from relay_plugins.lexicon.phrases import Phrases, Place


class PhraseScanner:
    """Reads one text as it comes. Positions are counted from its beginning."""

    __slots__ = ("_end", "_phrases", "held", "ways")

    def __init__(self, phrases: Phrases) -> None:
        self.held = 0
        self._phrases = phrases
        self.ways = phrases.place("", "")
        self._end = 0  # how much was read

    def take(self, text: str) -> int:
        """Text as it was written. How long its copy is; 0 if nothing was read, since there is more to say: `feed` it."""
        move = self.ways.get(text) or self._phrases.move(self.ways, text)  # never empty, so never false
        if move is None:
            return 0
        self.ways, length, self.held = move
        self._end += length
        return length

    def walk(self, ways: Ways, length: int) -> None:
        """Whoever has followed has come here, by texts whose copies have this length in all."""
        self.ways = cast(Place, ways)
        self._end += length
        self.held = len(self.ways.tail)

    def feed(self, text: str) -> Sequence[Hit]:
        if not text:
            return ()
        position = self._end - len(self.ways.tail)
        self.ways, hits = self._phrases.go(self.ways, text)
        self._end += len(text)
        self.held = len(self.ways.tail)
        return _placed(hits, position)

    def finish(self) -> Sequence[Hit]:
        self.held = 0
        place = self.ways
        tail, before = place.tail, place.before
        if not tail or place.decided:
            return ()
        self.ways = Place(tail, before, decided=True)
        if place.quiet:
            return ()
        hits = self._phrases.hits(tail, before, "", len(tail), waited=True)
        if not hits:
            place.quiet = True
            return ()
        return _placed(hits, self._end - len(tail))


def _placed(hits: Iterable[Hit], position: int) -> Sequence[Hit]:
    return [hit._replace(start=hit.start + position, end=hit.end + position) for hit in hits]
