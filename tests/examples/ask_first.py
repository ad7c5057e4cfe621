from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field

import aiohttp

from relay import CALLER, Exchange, Plugin, Reject, RelayError, Reply, Secret, Services


class AskFirst(Plugin):
    """Asks an HTTP service about every request; it answers 204 for yes, and anything else for no.

    url: of the service. token: sent to it. timeout_s: how long it may take; who cannot be asked is refused.
    """

    needs = (CALLER,)  # so `auth` has to stand before it

    url: str
    token: Secret
    timeout_s: float = 1.0

    _session: aiohttp.ClientSession = field(init=False)

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            yield

    async def on_request(self, ex: Exchange) -> Reply | None:
        asked = {"caller": ex[CALLER], "model": ex.request.model, "messages": ex.request.messages}
        headers = {"Authorization": f"Bearer {self.token.reveal()}"}
        try:
            async with self._session.post(self.url, json=asked, headers=headers) as answer:
                allowed = answer.status == 204
        except (aiohttp.ClientError, TimeoutError):
            raise RelayError("It cannot be found out whether you may ask.", code="ask_first_away", status=503) from None
        if not allowed:
            raise Reject("You may not ask this.", code="not_allowed", status=403)
        return None
