"""Names the plugin that holds up the loop, by a look at what the loop's thread is doing while it does.

The look is taken by a thread of its own, which sleeps otherwise; nothing is added to what a request or an event costs.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic
from types import FrameType
from typing import Final, NamedTuple

from relay.log import Logger

# Looks are counted, not seconds: while the whole process stands still nobody looks. After so many without a beat between
# them, a quarter of a second at least, everybody waits for whoever has the loop.
LOOKS: Final = 5
BEAT_S: Final = 0.05
# One line about a plugin in so many seconds.
QUIET_S: Final = 10.0

OnBlock = Callable[[str], None]
"""Told the name of a plugin that has blocked the loop."""

Names = Callable[[], Mapping[str, str]]
"""Plugins that may run now: the modules in which they are, and their names in the chain."""


class Seen(NamedTuple):
    """What a plugin was doing: where in its own code, whatever that had called."""

    plugin: str
    function: str
    line: int


@asynccontextmanager
async def watched(names: Names, log: Logger, on_block: OnBlock = lambda plugin: None) -> AsyncIterator[None]:
    """While the block runs, a plugin that blocks the running loop is told to `on_block` when the loop goes on, and named in the log."""
    watchdog = _Watchdog(names, log, on_block)
    thread = threading.Thread(target=watchdog.watch, name="relay-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watchdog.stop()
        await asyncio.to_thread(thread.join)


class _Watchdog:
    """The loop's side beats, the thread's looks when no beat has come for too long."""

    def __init__(self, names: Names, log: Logger, on_block: OnBlock) -> None:
        self._names = names
        self._on_block = on_block
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._beat_at = monotonic()
        self._seen: Seen | None = None
        self._said: dict[str, float] = {}
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def stop(self) -> None:
        self._timer.cancel()
        self._stopped.set()

    def _beat(self) -> None:
        now = monotonic()
        seen, self._seen = self._seen, None
        if seen is not None:
            self._on_block(seen.plugin)
        if seen is not None and now >= self._said.get(seen.plugin, -math.inf) + QUIET_S:
            self._said[seen.plugin] = now
            held_s = round(now - self._beat_at - BEAT_S, 2)
            self._log.error(
                "plugin blocks", plugin=seen.plugin, function=seen.function, line=seen.line, held_up_s=held_s
            )
        self._beat_at = now
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def watch(self) -> None:
        """What the thread does."""
        looks, last = 0, 0.0
        while not self._stopped.wait(BEAT_S):
            beat_at = self._beat_at
            looks = looks + 1 if beat_at == last else 0
            last = beat_at
            if looks >= LOOKS and self._seen is None:
                self._seen = found(sys._current_frames().get(self._loop_thread), self._names())


def found(frame: FrameType | None, names: Mapping[str, str]) -> Seen | None:
    """The plugin in whose code a thread is, the innermost one; None if it is in no plugin's."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        while module:
            name = names.get(module)
            if name is not None:
                return Seen(name, frame.f_code.co_qualname, frame.f_lineno)
            module = module.rpartition(".")[0]
        frame = frame.f_back
    return None
