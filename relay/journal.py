"""Settlements that the store could not take: kept in a file until it can, and brought to it then.

`put` never waits and never fails. What was put is written and fsynced by a thread within milliseconds; from then on it
outlives the process. Each process has a file of its own (`relay.journal_file`). That of a process that died is taken over
by whoever finds it: any relay with the same folder, when it starts, when its own journal is empty, and once a minute.

Nothing is charged twice: the ledger knows the ids of the last 24 hours. What is older is not brought any more: its lease
ended long ago, and was charged what was last known to be spent.

Bounded in entries and bytes. What does not fit is lost; so is what is too old, what the ledger refuses, and the half line
of a process that was killed while it wrote. Each is counted (`relay_journal_lost_total`) and logged with its amount.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from relay.failpoint import hit
from relay.journal_file import JournalFile, Line, Settlement, line_of
from relay.ledger import REMEMBERED_S, Ledger
from relay.log import Logger
from relay.metrics import Metrics
from relay.store.port import StoreError

ENTRIES_MAX: Final = 10_000
BYTES_MAX: Final = 4 * 1024 * 1024

# An hour less than the ledger remembers, for clocks that differ.
_TOO_OLD_S = REMEMBERED_S - 3600
# Between attempts while the store is away: doubled up to the second.
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.05, 5.0
# How often an idle journal looks for files of processes that died beside it.
_LOOK_ROUND_S = 60.0
# For how long the end of a process waits for a store that takes settlements.
_CLOSING_S = 1.0


class Journal:
    """One process's. Open inside `async with`; `put` belongs to the loop's thread."""

    def __init__(
        self,
        folder: Path,
        ledger_of: Callable[[str], Ledger],
        log: Logger,
        metrics: Metrics,
        *,
        entries_max: int = ENTRIES_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """folder: made when it is needed. ledger_of: by a unit's name; raises for one that is not kept any more."""
        self._ledger_of = ledger_of
        self._log = log
        self._metrics = metrics.journal
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._file = JournalFile(folder)
        self._waiting: deque[Line] = deque()  # for the store, the oldest first
        self._bytes = 0
        self._unsaved: list[Line] = []  # those of them that are in no file yet
        self._unwritable = False  # the last attempt to write failed, as the log says
        self._wake = asyncio.Event()
        self._closing_by: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._open = False

    async def __aenter__(self) -> Journal:
        self._open = True
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What the store takes at once is brought to it; the rest stays in the file."""
        assert self._task is not None
        self._closing_by = asyncio.get_running_loop().time() + _CLOSING_S
        self._wake.set()
        await self._task

    def put(self, unit: str, account: str, id: str, amount: int, note: Mapping[str, str | int]) -> None:
        """Keep a settlement until the store takes it. Neither waits nor raises."""
        settlement = Settlement(unit=unit, account=account, id=id, amount=amount, put_at=time.time(), note=dict(note))
        try:
            line = line_of(settlement)
        except (ValueError, TypeError, OverflowError):
            self._lose(settlement, "unwritable")
            return
        if not self._open:
            self._lose(settlement, "closed")
        elif len(self._waiting) >= self._entries_max or self._bytes + len(line.raw) > self._bytes_max:
            self._lose(settlement, "full")
        else:
            if not self._waiting:
                self._log.warning("journal in use")
            self._unsaved.append(line)
            self._take([line])
            self._wake.set()
            hit("journal_put")

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        pause, due = _PAUSE_FIRST_S, now()
        try:
            while self._closing_by is None:
                self._wake.clear()
                if not self._waiting:
                    await self._tidy()
                await self._save()
                if self._waiting and now() >= due:
                    if await self._bring_all():
                        pause = _PAUSE_FIRST_S
                    if not self._waiting:
                        continue
                    due, pause = now() + pause, min(2 * pause, _PAUSE_MAX_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(due - now() if self._waiting else _LOOK_ROUND_S):
                        await self._wake.wait()
            await self._save()
            await self._bring_all()
        finally:
            self._open = False
            await self._leave()

    async def _bring_all(self) -> bool:
        """Bring the store what it takes, one by one; whether it took any."""
        some = False
        while self._waiting and await self._bring():
            some = True
            await self._save()
            if self._closing_by is not None and asyncio.get_running_loop().time() > self._closing_by:
                break
        return some

    async def _bring(self) -> bool:
        """Bring the oldest to the store. False: not now."""
        line = self._waiting[0]
        settlement = line.settlement
        if time.time() - settlement.put_at > _TOO_OLD_S:
            self._lose(settlement, "too_old")
        else:
            try:
                ledger = self._ledger_of(settlement.unit)
                await ledger.settle(settlement.account, settlement.id, settlement.amount, settlement.note)
            except StoreError as error:
                if error.trouble == "error":  # may be about this account alone: let the next one try
                    self._waiting.rotate(-1)
                return False
            except Exception:  # noqa: BLE001 - whatever it is, it would be the same the next time
                self._log.exception("settlement refused", unit=settlement.unit, id=settlement.id)
                self._lose(settlement, "refused")
            else:
                hit("journal_replayed")
                self._metrics.replayed()
        self._waiting.popleft()
        self._bytes -= len(line.raw)
        self._metrics.waiting(-1)
        if not self._waiting:
            self._log.info("journal empty")
        return True

    async def _save(self) -> None:
        """Have the thread write what is in no file yet. What cannot be written is brought to the store all the same."""
        if not self._unsaved:
            return
        lines, self._unsaved = self._unsaved, []
        # The file grows as long as the store takes some and not others: then it begins anew with those that wait.
        anew = not self._file.sound or self._file.size > 2 * self._bytes_max
        try:
            if anew:
                await asyncio.to_thread(self._file.replace, tuple(self._waiting))
            else:
                await asyncio.to_thread(self._file.append, lines)
        except OSError as error:
            self._unsaved = lines + self._unsaved
            if not self._unwritable:
                self._log.error("journal not written", error=type(error).__name__, errno=error.errno)
            self._unwritable = True
        else:
            self._unwritable = False

    async def _tidy(self) -> None:
        """Nothing waits: remove the file, and take over what the dead left."""
        self._unsaved.clear()
        try:
            await asyncio.to_thread(self._file.remove)
            lines, broken = await asyncio.to_thread(self._file.take_over, self._entries_max, self._bytes_max)
        except OSError as error:
            self._log.error("journal not read", error=type(error).__name__, errno=error.errno)
            return
        if lines:
            self._take(lines)
            self._log.warning("journal taken over", entries=len(lines))
        for _ in range(broken):
            self._metrics.lost()
            self._log.error("settlement lost", why="half_a_line")

    async def _leave(self) -> None:
        if self._waiting:
            await self._save()
            self._log.warning("journal left", entries=len(self._waiting))
            self._metrics.waiting(-len(self._waiting))  # in a file that is nobody's now
        else:
            with suppress(OSError):
                await asyncio.to_thread(self._file.remove)
        self._file.close()

    def _take(self, lines: list[Line]) -> None:
        self._waiting += lines
        self._bytes += sum(len(line.raw) for line in lines)
        self._metrics.waiting(len(lines))

    def _lose(self, settlement: Settlement, why: str) -> None:
        self._metrics.lost()
        self._log.error("settlement lost", why=why, unit=settlement.unit, id=settlement.id, amount=settlement.amount)
