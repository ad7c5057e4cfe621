"""Lets requests begin few at a time, so that the events of streams pass between them.

A request that begins costs as much as ten events or twenty. When very many come in one instant (a hundred streams that
have ended together, a client that was cut off from all of its own), a loop that begins them all before it looks at its
sockets again keeps every open stream waiting until the last of them has begun, and the first of them for its first event.
Where nobody streams yet they begin by eights: what they do is the same, the processor remembers it, and it is cheaper so.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

# How many may begin in a turn of the loop.
AMONG_STREAMS: Final = 1
AMONG_NONE: Final = 8
# A turn that took longer than this has more to do than to let requests begin: then one more may for each START_S of what
# it took beyond. A beginning takes about a third of that, so that a loop which is busy with events gives a good part of
# its time to those who wait to begin.
CALM_S: Final = 0.0025
START_S: Final = 0.0006
# For so long after the last stream the next ones are expected: clients that stream ask again.
QUIET_S: Final = 1.0


class Turnstile:
    """Whoever enters begins at once, or as soon as it is his turn."""

    __slots__ = ("_before", "_clock", "_left", "_loop", "_quiet_at", "_streams", "_turned_at", "_turning", "_waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = monotonic,
        *,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """clock: in seconds. The loop's own stands still in a turn, and may count milliseconds.

        before: called in each turn before those who have been let in do anything: what is ready leaves first.
        """
        self._loop = loop
        self._clock = clock
        self._before = before
        self._streams = 0
        self._quiet_at = 0.0  # the loop's clock
        self._left = 0  # who may still begin in this turn
        self._turning = False
        self._turned_at = 0.0
        self._waiting: deque[Callable[[], None]] = deque()

    def stream_opened(self) -> None:
        """Events are to pass from now on."""
        self._streams += 1
        self._quiet_at = math.inf

    def stream_closed(self) -> None:
        """Once for each that was opened."""
        self._streams -= 1
        if not self._streams:
            self._quiet_at = self._loop.time() + QUIET_S

    def enter(self, begin: Callable[[], None]) -> None:
        """Have `begin` called. It does not raise."""
        if not self._turning:
            self._turning = True
            self._turned_at = self._clock()
            self._left = self._at_once()
            self._loop.call_soon(self._turn)
        if self._left:
            self._left -= 1
            begin()
        else:
            self._waiting.append(begin)

    def _at_once(self) -> int:
        return AMONG_NONE if self._loop.time() >= self._quiet_at else AMONG_STREAMS

    def _turn(self) -> None:
        """The loop has looked at its sockets."""
        self._before()
        now = self._clock()
        left = self._at_once() + int(max(0.0, now - self._turned_at - CALM_S) / START_S)
        self._turned_at = now
        self._turning = bool(self._waiting)
        if self._turning:
            self._loop.call_soon(self._turn)
        while left and self._waiting:
            left -= 1
            self._waiting.popleft()()
        self._left = left
