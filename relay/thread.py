"""Threads for what blocks and may never come back, such as a disk that hangs: they hold up nobody's end.

Not those of `asyncio.to_thread`: the ends of a loop and of a process wait for them, and others who need one have to share them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Thread:
    """Does what it is given, one after the other, until it is told to `stop`."""

    def __init__(self, name: str) -> None:
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` gives. If this is cancelled, what has begun goes on, and what has not is left out."""
        done: Future[T] = Future()

        def do() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    result = work(*given)
                except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                    done.set_exception(error)
                else:
                    done.set_result(result)

        self._todo.put(do)
        return await asyncio.wrap_future(done)

    def stop(self, last: Callable[[], None] | None = None) -> None:
        """End when all is done, and `last` too, of which nobody hears."""
        if last is not None:
            self._todo.put(last)
        self._todo.put(None)

    def _run(self) -> None:
        while (work := self._todo.get()) is not None:
            work()
            del work  # which holds what it was given


async def aside(name: str, work: Callable[..., T], *given: Any) -> T:
    """What `work` gives, done in a thread of its own that has this name. If this is cancelled, it goes on there."""
    thread = Thread(name)
    try:
        return await thread.run(work, *given)
    finally:
        thread.stop()
