"""The reader that finds phrases in a text that is still coming."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relay.pure.window import Hit
from relay_plugins.lexicon.phrases import Phrases


class PhraseScanner:
    """Reads one text as it comes. Positions are counted from its beginning."""

    __slots__ = ("_before", "_decided", "_phrases", "_position", "_step", "_tail", "held")

    def __init__(self, phrases: Phrases) -> None:
        self.held = 0
        self._phrases = phrases
        self._step = phrases.step
        self._tail = ""  # what is held, or was held when the last run ended
        self._before = ""  # the character before the tail
        self._position = 0  # where the tail begins
        self._decided = False  # the last run has ended, and with it the words at its end

    def feed(self, text: str) -> Sequence[Hit]:
        if not text:
            return ()
        tail = self._tail
        text = tail + text
        hits: Sequence[Hit] = ()
        step = self._step(text)
        if step is None:
            phrases = self._phrases
            hits = self._placed(phrases.hits(text, self._before, None, len(tail), waited=not self._decided))
            step = phrases.split(text)
        self._decided = False
        self._tail, self.held, passed, before = step
        if passed:
            self._position += passed
            self._before = before
        return hits

    def finish(self) -> Sequence[Hit]:
        self.held = 0
        if not self._tail or self._decided:
            return ()
        self._decided = True
        return self._placed(self._phrases.hits(self._tail, self._before, "", len(self._tail), waited=True))

    def _placed(self, hits: Iterable[Hit]) -> list[Hit]:
        return [hit._replace(start=hit.start + self._position, end=hit.end + self._position) for hit in hits]
