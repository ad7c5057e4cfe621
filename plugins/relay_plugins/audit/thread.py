"""A thread for what blocks, which holds up nobody's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Thread:
    """Does what it is given, one after the other.

    Not `asyncio.to_thread`: the ends of a loop and of a process wait for those threads, and one on a disk that hangs may never
    come back.
    """

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
