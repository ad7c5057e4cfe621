from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field

from relay import CALLER, Exchange, Plugin, RelayError, Reply, Services
from relay.store.port import Script, Store, StoreError

COUNT = Script.of("count", "return redis.call('INCR', KEYS[1])")


class Visits(Plugin):
    """Says in a header how often a key has asked, in all processes together."""

    needs = (CALLER,)
    needs_store = True

    _store: Store = field(init=False)

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        assert services.store is not None  # as needs_store says
        self._store = services.store
        yield

    async def on_request(self, ex: Exchange) -> Reply | None:
        try:
            visits = await self._store.run(COUNT, [self._store.key(ex[CALLER], "visits")])
        except StoreError:
            raise RelayError("Visits cannot be counted now.", code="visits_unavailable", status=503) from None
        ex.reply_headers["x-visits"] = str(visits)
        return None
