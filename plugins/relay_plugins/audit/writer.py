"""Records on their way to the disk: `put` never waits for them; a thread writes what has come since it last wrote.

What is put is in the kernel's hands within milliseconds, so it outlives the process, and on the disk within a second. While
it cannot be written it waits, up to a bound, and is tried again every second; what is beyond the bound is counted, and the
count is a line of its own where the records would stand.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from relay.log import Logger
from relay.reading import dump
from relay.thread import Thread
from relay_plugins.audit.file import SYNC_S, AuditFile
from relay_plugins.audit.record import Record, stamp

MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
RETRY_S: Final = 1.0
# A write that takes longer is one that may never end, as on a network's disk.
STUCK_S: Final = 5.0
# What has not been written so long after the end is given up: whoever stops the relay waits for it.
CLOSE_S: Final = 5.0


@dataclass(slots=True)
class _Lost:
    """Records that found no room. since, until: Unix time of the first and the last."""

    since: float
    until: float
    count: int = 0


class Writer:
    """One chain's. `open` it, then `put` inside `async with`, on the loop's thread."""

    def __init__(self, file: AuditFile, log: Logger, *, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._file = file
        self._log = log
        self._max_bytes = max_bytes
        self._waiting: deque[bytes | _Lost] = deque()
        self._lost: _Lost | None = None  # the last of `_waiting`, if that is one
        self._writing: list[bytes] = []  # what is written now, or has to be tried again
        self._bytes = 0  # of both
        self._failing = False
        self._since: float | None = None  # the loop's time, when a write under way began
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._closed = False  # nothing is written any more
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Raises OSError if there cannot be a file."""
        self._thread = Thread("audit")
        try:
            await self._thread.run(self._file.open)
        except BaseException:
            self._thread.stop()
            raise
        self._log.info("audit file begun", file=self._file.name)

    async def __aenter__(self) -> Self:
        self._task = self._loop.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, if it can be, and end the file; a disk that hangs is not waited for."""
        assert self._task is not None
        self._closing.set()
        self._wake.set()
        _, late = await asyncio.wait((self._task,), timeout=CLOSE_S)
        if not late:
            self._thread.stop()
            await self._task
            return
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._closed = True
        self._thread.stop(self._abandon)
        self._log.error(
            "audit file not ended", reason=f"the disk hangs; waited {CLOSE_S:g} s", folder=str(self._file.folder)
        )
        if left := self._left():
            self._tell_lost(left)

    @property
    def sound(self) -> bool:
        """Whether what is put now will be on the disk in a moment, as far as can be known.

        Half of the room is for the records of requests that are under way.
        """
        if self._task is None or self._task.done():
            return False
        stuck = self._since is not None and self._loop.time() - self._since > STUCK_S
        return not (self._failing or stuck) and self._bytes < self._max_bytes // 2

    def put(self, record: Record) -> None:
        """Have it written. Does not wait. Raises TypeError or ValueError if JSON cannot say it, and nothing else."""
        data = dump(record)
        if self._closed:
            self._tell_lost(1)  # of a request that outlived its chain
        elif self._bytes + len(data) <= self._max_bytes:
            self._waiting.append(data)
            self._bytes += len(data)
            self._lost = None
        else:
            if self._lost is None:
                self._lost = _Lost(since=time.time(), until=0.0)
                self._waiting.append(self._lost)
            self._lost.count += 1
            self._lost.until = time.time()
        self._wake.set()

    def _abandon(self) -> None:
        """End the file, should its disk come back."""
        self._file.close()

    def _left(self) -> int:
        """Records that are not written, as far as is known."""
        return len(self._writing) + sum(each.count if isinstance(each, _Lost) else 1 for each in self._waiting)

    async def _run(self) -> None:
        while not self._closing.is_set():
            await self._woken()
            await self._write()
        while not self._failing and (self._waiting or self._writing):
            await self._write()
        self._closed = True
        problem = await self._thread.run(self._file.close)
        self._tell_closed()
        if left := self._left():
            self._tell_lost(left)
        elif problem is not None:
            self._log.error("audit file not ended", reason=_reason(problem), folder=str(self._file.folder))

    async def _woken(self) -> None:
        """Wait until there is something to do. While nothing can be written, what comes waits with the rest."""
        timeout = RETRY_S if self._failing else SYNC_S if self._file.dirty else None
        try:
            async with asyncio.timeout(timeout):
                await (self._closing if self._failing else self._wake).wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _write(self) -> None:
        """Have the thread write all that there is, or sync what there was."""
        if not self._writing:
            self._take()
        self._since = self._loop.time()
        written, problem = 0, None
        try:
            if self._writing or self._failing:  # then it is found out whether there is a file to write to
                written, problem = await self._thread.run(self._file.append, self._writing)
            else:
                problem = await self._thread.run(self._file.sync)
        except Exception as error:  # noqa: BLE001 - as when there is no thread; what dies of it would write nothing any more
            problem = error
        self._since = None
        self._bytes -= sum(map(len, self._writing[:written]))
        del self._writing[:written]
        self._tell_closed()
        if problem is not None:
            if not self._failing:
                self._failing = True
                self._log.error(
                    "audit records cannot be written", reason=_reason(problem), folder=str(self._file.folder)
                )
        elif self._failing:
            self._failing = False
            self._log.warning("audit records are written again", file=self._file.name)
            if self._waiting:
                self._wake.set()

    def _take(self) -> None:
        """What waits is to be written next."""
        while self._waiting:
            each = self._waiting.popleft()
            if isinstance(each, _Lost):
                lost: Record = {
                    "kind": "lost",
                    "count": each.count,
                    "since": stamp(each.since),
                    "until": stamp(each.until),
                }
                self._tell_lost(each.count)
                data = dump(lost)
                self._bytes += len(data)
            else:
                data = each
            self._writing.append(data)
        self._lost = None

    def _tell_lost(self, count: int) -> None:
        self._log.error("audit records lost", count=count, folder=str(self._file.folder))

    def _tell_closed(self) -> None:
        """An audit of the files begins with these lines of the log, which is kept elsewhere."""
        closed, self._file.closed = self._file.closed, []
        for name, lines, last in closed:
            self._log.info("audit file ended", file=name, lines=lines, last=last)


def _reason(problem: Exception) -> str:
    """What it is called; not what it says, unless the system says it."""
    return (problem.strerror if isinstance(problem, OSError) else None) or type(problem).__name__
