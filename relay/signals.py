"""What signals ask of a process that serves: SIGTERM and SIGINT its end, SIGHUP to read its configuration again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


class Signals:
    """Heard as soon as it is made, by the task that is to serve.

    Before `open` an end cancels that task, which may wait for what never comes, and a reload is kept. stopped: somebody has
    asked for the end.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._task = asyncio.current_task()
        self._on_stop: Callable[[], None] | None = None
        self._on_reload: Callable[[], None] | None = None
        self._kept = False
        self._had_terminal = os.isatty(2)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def open(self, on_stop: Callable[[], None], on_reload: Callable[[], None]) -> None:
        """It serves: from now on these are told, each time."""
        self._on_stop, self._on_reload = on_stop, on_reload
        if self._kept:
            on_reload()

    def _stop(self) -> None:
        self.stopped = True
        if self._on_stop is not None:
            self._on_stop()
        elif self._task is not None:
            self._task.cancel()

    def _hang_up(self) -> None:
        if self._had_terminal and not os.isatty(2):  # the terminal is gone with which the process began
            self._stop()
        elif self._on_reload is not None:
            self._on_reload()
        else:
            self._kept = True
