"""What the fake has seen."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from relay_plugins.tencent.fake.ask import Ask

_SECONDS_KEPT: Final = 3600


class Counts:
    """Calls and what became of them.

    calls: all that came with a good signature or without. answered: those that got a verdict. characters: of these.
    refused: by error code, and failures by kind. by_second: calls that reached the account's limit or stayed below it,
    by second of the clock, the last hour. types: calls of a second by `Type`. kept: the last calls, if asked to keep.
    """

    def __init__(self, keep_calls: int) -> None:
        self.calls = 0
        self.answered = 0
        self.characters = 0
        self.refused: Counter[str] = Counter()
        self.by_second: dict[int, int] = {}
        self.kept: deque[Ask] = deque(maxlen=keep_calls)
        self._second = -1
        self._in_second: Counter[str] = Counter()

    def in_second(self, now: float, kind: str) -> int:
        """Count one more call of a kind in the second of `now`; returns how many of that kind there are in it."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._in_second.clear()
            while len(self.by_second) >= _SECONDS_KEPT:
                del self.by_second[next(iter(self.by_second))]
        self.by_second[second] = self.by_second.get(second, 0) + 1
        self._in_second[kind] += 1
        return self._in_second[kind]

    def shown(self) -> dict[str, Any]:
        """Plain data, for the control page."""
        return {
            "calls": self.calls,
            "answered": self.answered,
            "characters": self.characters,
            "refused": dict(self.refused),
            "by_second": [[second, calls] for second, calls in self.by_second.items()],
            "most_in_a_second": max(self.by_second.values(), default=0),
            "texts": [ask.text for ask in self.kept],
        }
