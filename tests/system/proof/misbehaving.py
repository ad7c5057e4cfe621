"""A plugin that goes wrong on request: the header `x-mishap` says how. It lies beside a relay.toml as anybody's would."""

import dataclasses
import time
from contextlib import asynccontextmanager

from relay.limits import NOTHING, Limiter, Rates, Scope
from relay.plugin import Plugin

BLOCKED_S = 0.5

_SCOPE = Scope("all", "", Rates(open=1_000_000))


class Misbehaving(Plugin):
    """Raises, blocks the loop, or takes a slot of the store that it never gives back."""

    _limiter: Limiter = dataclasses.field(init=False)

    @asynccontextmanager
    async def lifespan(self, services):
        self._limiter = Limiter("misbehaving", services.store)
        with services.metrics.store.promising("slot", lambda: self._limiter.slots):
            async with self._limiter.running():
                yield

    async def on_request(self, ex):
        match ex.headers.get("x-mishap"):
            case "raise":
                raise ZeroDivisionError
            case "block":
                time.sleep(BLOCKED_S)
            case "leak":
                await self._limiter.admit(ex.id, [_SCOPE], NOTHING, ex.loop.time())

    async def on_end(self, ex):
        if ex.headers.get("x-mishap") == "raise at the end":
            raise ZeroDivisionError
