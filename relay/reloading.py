"""relay.toml is read again while the relay serves, and what it says takes the place of what it said.

On any error nothing changes, and whoever asked is told which line is wrong; so are the log, the events and the metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from relay.config import Config, parse, takes_restart, text_of
from relay.events import Publisher
from relay.log import Logger
from relay.options import ConfigError
from relay.watch import Watch

# A change counts when two looks in a row have seen the same.
LOOK_S: Final = 0.5


class Counted(Protocol):
    """Where reloads are counted."""

    def reloaded(self, well: bool) -> None: ...


class Reloader:
    """Made inside a running loop.

    config: what is served now. serve: has another one served in its place, and returns by how many processes; called in the
    order in which they were read. Raises ConfigError, and then it is not.
    """

    def __init__(
        self,
        config: Config,
        serve: Callable[[Config], Awaitable[int]],
        log: Logger,
        metrics: Counted,
        events: Publisher,
    ) -> None:
        self._first: Final = config
        self._serve = serve
        self._log = log
        self._metrics = metrics
        self._events = events
        self._one_by_one = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._asked: set[asyncio.Task[None]] = set()
        self._closed = False

    def ask(self) -> None:
        """Reload, if the relay is not stopping; nobody waits for it."""
        if not self._closed:
            self._reading().add_done_callback(_is_told)

    async def reload(self) -> None:
        """Returns when what stands in the file now is served. Raises ConfigError: it is not, and nothing has changed."""
        await asyncio.shield(self._reading())

    def _reading(self) -> asyncio.Task[None]:
        """The next reading of the file. All who ask before it has begun share it: later it may have changed."""
        if self._closed:
            raise ConfigError("the relay is stopping")
        if self._next is None:
            self._next = asyncio.create_task(self._read())
            self._asked.add(self._next)
            self._next.add_done_callback(self._asked.discard)
        return self._next

    async def _read(self) -> None:
        self._log.info("reloading")
        self._events.publish("reload", state="begun")
        try:
            async with self._one_by_one:
                self._next = None
                config = await asyncio.to_thread(_read, self._first.path)
            if kept := takes_restart(self._first, config):
                self._log.warning("takes a restart", what=kept)
            workers = await self._serve(config)
        except Exception as cause:  # noqa: BLE001 - whatever it is, nothing has changed, and whoever asked is told
            error = cause if isinstance(cause, ConfigError) else ConfigError(_unforeseen(self._first.path, cause))
            if error is not cause:
                self._log.error("reload failed", exc_info=cause)
            self._log.error("not reloaded", problems=list(error.problems))
            self._events.publish("reload", state="refused", reason="; ".join(error.problems))
            self._metrics.reloaded(well=False)
            raise error from None
        self._log.info("reloaded", workers=workers)
        self._events.publish("reload", state="done", workers=workers)
        self._metrics.reloaded(well=True)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """While this is open, reload whenever the file has changed. What it names is watched by whoever reads that."""
        path = self._first.path
        watching = asyncio.create_task(self._watch(await asyncio.to_thread(Watch, (path,))))
        if not await asyncio.to_thread(_still_says, path, self._first.text):
            self.ask()  # it was changed while the relay started
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait((watching,))

    async def _watch(self, file: Watch) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if await asyncio.to_thread(file.changed):
                self.ask()

    async def close(self) -> None:
        """Give up what is being read, and wait for its end."""
        self._closed = True
        for task in self._asked:
            task.cancel()
        if self._asked:
            await asyncio.wait(tuple(self._asked))


def _read(path: Path) -> Config:
    return parse(text_of(path), path)


def _still_says(path: Path, text: str) -> bool:
    try:
        return text_of(path) == text
    except ConfigError:
        return True  # what is wrong with it is told when it has changed again


def _unforeseen(path: Path, cause: Exception) -> str:
    return f"{path}: cannot be served ({type(cause).__name__}); the log says more"


def _is_told(reading: asyncio.Task[None]) -> None:
    if not reading.cancelled():
        reading.exception()
