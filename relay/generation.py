"""One configuration as it is served: opened as a whole, beside another one if there is one, and closed when nobody needs it.

A request ends on the generation on which it began, its whole chain, its upstreams and its limits of time. So a new one may
take the place of an old one at any moment, and no stream notices.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Final

from relay.chain import Chain
from relay.config import Config
from relay.plugin import Services
from relay.pure.shape import Shapes
from relay.routes import CHAT, ROUTES
from relay.section import Link
from relay.upstream import Upstreams

# Who does not end by then, although everything that was open is to be closed, is left behind.
CLOSE_TIMEOUT_S: Final = 10.0


class NotOpenedError(Exception):
    """A plugin has raised what is no error while it was opened: that it is cancelled, or that the process is to end."""


class Generation:
    """Made inside a running loop. `open` it, count the requests in and out, `retire` it, wait until it is `closed`.

    requests: those that began on it and are not settled. shapes: what the events of each upstream look like. opening: the
    plugin that is being opened, or was last; None before the first. closing: the name of the one that is closed. life: as
    long as it is open; one that ends before `retire` has broken.
    """

    __slots__ = (
        *("_retired", "_unused", "chain", "closing", "config", "life", "opening"),
        *("requests", "routes", "server", "shapes", "upstreams"),
    )

    def __init__(self, config: Config, chain: Chain, upstreams: Upstreams) -> None:
        self.config: Final = config
        self.server: Final = config.server
        self.chain: Final = chain
        self.upstreams: Final = upstreams
        self.routes: Final = {**ROUTES, **dict.fromkeys(chain.routes, CHAT)}
        self.shapes: Final = defaultdict[str, Shapes](Shapes)
        self.requests = 0
        self.opening: Link | None = None
        self.closing = ""
        self._retired = False
        self._unused = asyncio.Event()
        self.life: asyncio.Task[None] | None = None

    async def open(self, services: Services) -> None:
        """Whole, or not at all: raises what the opening of a part raised, when all that was open is closed."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.life = asyncio.create_task(self._live(services, opened))
        try:
            await opened
        except BaseException:
            self._unused.set()  # for one who does not hear that he is cancelled
            self.life.cancel()
            await asyncio.wait((self.life,), timeout=CLOSE_TIMEOUT_S)
            if self.life.done() and not self.life.cancelled():
                self.life.exception()  # has been told
            raise

    async def _live(self, services: Services, opened: asyncio.Future[None]) -> None:
        """In a task of its own: who closes what was opened has to be who opened it, for a task group or a time-out in it."""
        cause: BaseException | None = None  # without what the others make of it that are open
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.upstreams)
                stack.callback(self._closes, "(upstreams)")
                for link in self.chain.links:
                    self.opening = link
                    try:
                        await stack.enter_async_context(link.plugin.lifespan(services))
                        stack.callback(self._closes, link.name)
                    except BaseException as error:
                        cause = error
                        raise
                if not opened.done():
                    opened.set_result(None)
                await self._unused.wait()
        except BaseException as error:
            if opened.done():
                raise
            # Of a task that is ended by what a plugin raises nobody would hear, and the process would end by a SystemExit.
            cause = cause or error
            opened.set_exception(cause if isinstance(cause, Exception) else NotOpenedError(type(cause).__name__))

    def _closes(self, plugin: str) -> None:
        self.closing = plugin

    @property
    def over(self) -> bool:
        """Whether it is to close, or has."""
        return self._unused.is_set()

    def settled(self) -> None:
        """One of its requests is."""
        self.requests -= 1
        if self._retired and not self.requests:
            self._unused.set()

    def retire(self) -> None:
        """No request begins on it any more; it closes when the last one is settled."""
        self._retired = True
        if not self.requests:
            self._unused.set()

    async def closed(self) -> str:
        """Returns when nobody needs it any more and it is closed. Raises what its closing raised.

        If that takes too long it is cancelled; returns the plugin that held it up, "" if none did.
        """
        assert self.life is not None
        await self._unused.wait()
        await asyncio.wait((self.life,), timeout=CLOSE_TIMEOUT_S)
        late = "" if self.life.done() else self.closing
        if late:
            self.life.cancel()  # so what else is open is closed
            await asyncio.wait((self.life,), timeout=CLOSE_TIMEOUT_S)
        if self.life.done() and not self.life.cancelled():
            self.life.result()
        return late

    def abandon(self) -> None:
        """It closes now, whoever still uses it."""
        self._unused.set()
