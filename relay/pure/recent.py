"""The last of what has happened, by kind, so that a flood of one kind does not push out the others.

Everything gets a number, counted over all kinds from 1. Who has seen what came up to a number asks what came `since`, and
is told how much of that is gone. So nobody who listens needs a queue of his own, and no slow one costs memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Keeps the last `kept` of each of `kinds`. last: the number of the newest; 0 before the first."""

    __slots__ = ("_gone", "_rings", "last")

    def __init__(self, kinds: Iterable[str], kept: int) -> None:
        self.last = 0
        self._rings: dict[str, deque[tuple[int, T]]] = {kind: deque(maxlen=kept) for kind in kinds}
        self._gone = dict.fromkeys(self._rings, 0)  # the number of the last one that was let go

    def add(self, kind: str, item: T) -> int:
        """Keep it; returns its number. Raises KeyError for a kind that is none."""
        ring = self._rings[kind]
        self.last += 1
        if len(ring) == ring.maxlen:
            self._gone[kind] = ring[0][0]
        ring.append((self.last, item))
        return self.last

    def since(self, number: int, kinds: Collection[str]) -> tuple[int, list[tuple[int, T]]]:
        """What came after `number`: how much is gone, and what is kept of `kinds`, each with its number, in order.

        Gone is what came and is not kept, of whatever kind; 0 if none of `kinds` is among it.
        """
        kept = sorted((each for kind in kinds for each in self._newer(kind, number)), key=_number)
        if all(self._gone[kind] <= number for kind in kinds):
            return 0, kept
        all_kept = sum(1 for kind in self._rings for _ in self._newer(kind, number))
        return self.last - number - all_kept, kept

    def before(self, count: int, kinds: Collection[str]) -> list[tuple[int, T]]:
        """The last of `kinds`, so many or as many as are kept, each with its number, in order."""
        return self.since(0, kinds)[1][-count:] if count else []

    def _newer(self, kind: str, number: int) -> Iterable[tuple[int, T]]:
        for each in reversed(self._rings[kind]):
            if each[0] <= number:
                return
            yield each


def _number(each: tuple[int, object]) -> int:
    return each[0]
