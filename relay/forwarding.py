"""A worker's events on their way to its supervisor, which numbers them and has the listeners.

The way is bounded: what is published in one `SPAN_S` goes in one message, at most `MOST` of each kind, so that a flood of
refusals pushes out nothing else and costs neither process more than a little. What does not go is counted and told as
missed. When nothing is published, nothing is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import Final

from relay.control import News
from relay.events import Event, Kind, plain

SPAN_S: Final = 0.1
MOST: Final = 100
# Of what waits for a supervisor that does not read.
MAX_BACKLOG_BYTES: Final = 2**20


class Forwarding:
    """A publisher. send: says it to the supervisor; backlog: how many bytes it has not taken yet."""

    def __init__(self, send: Callable[[News], None], backlog: Callable[[], int]) -> None:
        self._send = send
        self._backlog = backlog
        self._loop = asyncio.get_running_loop()
        self._happened: list[Event] = []
        self._counts: dict[Kind, int] = {}
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None

    def publish(self, kind: Kind, **fields: object) -> None:
        count = self._counts.get(kind, 0)
        if count >= MOST:
            self._dropped += 1
            return
        self._counts[kind] = count + 1
        self._happened.append(Event(time(), kind, plain(fields)))
        if self._timer is None:
            self._timer = self._loop.call_later(SPAN_S, self.flush)

    def flush(self) -> None:
        """Send what there is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        happened, self._happened = self._happened, []
        self._counts.clear()
        if self._backlog() > MAX_BACKLOG_BYTES:
            self._dropped += len(happened)
            self._timer = self._loop.call_later(SPAN_S, self.flush)  # that they are lost is told all the same
            return
        if self._dropped:
            happened.append(Event(time(), "missed", {"count": self._dropped, "reason": "flood"}))
            self._dropped = 0
        if happened:
            self._send(News(tuple(happened)))
