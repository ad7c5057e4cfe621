from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field
from time import monotonic

from relay import CALLER, Exchange, Plugin, Services


class Slow(Plugin):
    """Writes a line of log for each reply that took longer than `seconds`."""

    seconds: float = 30.0

    _services: Services = field(init=False)

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._services = services
        yield

    async def on_end(self, ex: Exchange) -> None:
        took_s = monotonic() - ex.started
        if took_s > self.seconds:
            self._services.log.warning(
                "slow reply", request_id=ex.id, caller=ex.get(CALLER, ""), took_s=round(took_s, 3)
            )
