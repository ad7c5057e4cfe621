"""What nobody caught, and what libraries log by themselves: a line of our log in place of a text on standard error.

Python's own texts hold the messages of exceptions, and libraries log what they were sent; both may quote a prompt or a key.
A line says what it was and where, as `relay.log` has it; and the same again not within a minute, since a library may have
reason to complain at every request.
"""

from __future__ import annotations

import logging
import sys
import threading
from time import monotonic
from types import TracebackType
from typing import Any, Final

from relay.log import Logger

# How soon a library is heard again that says the same.
AGAIN_S: Final = 60.0


def told_to(log: Logger) -> None:
    """From now on, in this whole process; for one that serves and does nothing else."""

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.error("unhandled", what="the process ends", exc_info=error)

    def of_thread(ended: threading.ExceptHookArgs) -> None:
        log.error("unhandled", what="a thread ends", exc_info=ended.exc_value)

    def unraisable(ignored: Any) -> None:
        log.error("unhandled", what="nobody to be told", exc_info=ignored.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = excepthook, of_thread, unraisable
    logging.getLogger().addHandler(_Handler(log))


class _Handler(logging.Handler):
    """Warnings and worse, without their words."""

    def __init__(self, log: Logger) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._told: dict[tuple[str, object], tuple[float, int]] = {}  # when, and how often since; by what was said

    def emit(self, record: logging.LogRecord) -> None:
        at = f"{record.pathname}:{record.lineno}"
        said = (at, record.exc_info[0] if record.exc_info else None)
        now = monotonic()
        since, times = self._told.get(said, (now - AGAIN_S, 0))
        if now - since < AGAIN_S:
            self._told[said] = since, times + 1
            return
        self._told[said] = now, 0
        told = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        told("library", logger=record.name, at=at, unsaid=times, exc_info=record.exc_info)
