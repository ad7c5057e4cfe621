"""The second listener: what operators and their tools ask of a relay. Clients never reach it.

    /metrics    for Prometheus                                                          no token
    /healthz    200 as long as the process answers: restart me if not                   no token
    /readyz     200, or 503 with the reasons: send me no new requests                   no token
    /admin/…    with the bearer token of `[admin] token`; without one configured, closed (`relay.admin_api`)

Answers for aiohttp's low-level `web.Server`; it keeps no state but the token's digest. Whether the relay is ready is
somebody else's knowledge: `ready` is asked at each request.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

import orjson
from aiohttp import hdrs, web

from relay.admin_api import AdminApi
from relay.admin_events import PATH as EVENTS
from relay.admin_events import AdminEvents
from relay.admin_openapi import PATH as OPENAPI
from relay.admin_openapi import rendered
from relay.admin_reload import PATH as RELOAD
from relay.admin_reload import Reload, answer
from relay.errors import RelayError
from relay.events import Events
from relay.metrics import Exposition
from relay.pure.openai import error_body
from relay.secret import Secret

_HEADERS = {
    # These answers are true for the moment they are given.
    hdrs.CACHE_CONTROL: "no-store",
    "X-Content-Type-Options": "nosniff",
    # In place of aiohttp's, which names the versions of Python and of itself.
    hdrs.SERVER: "relay",
}

_READ_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)


class Readiness(NamedTuple):
    """Whether new requests should come here; `reasons` say in plain words why not."""

    ready: bool
    reasons: tuple[str, ...] = ()


class Admin:
    """The handler of the second listener: `web.Server(Admin(metrics, ready, token, api).handle)`.

    Without `api`, as when the store is not open yet, /admin/ says that the relay is starting, until `serve` is called.
    /admin/events tells `events` at any time; without them nothing ever happens.
    """

    def __init__(
        self,
        metrics: Exposition,
        ready: Callable[[], Readiness],
        token: Secret | None,
        api: AdminApi | None = None,
        events: Events | None = None,
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._api = api
        self._events = AdminEvents(events or Events())
        self._reload: Reload | None = None
        self._openapi = rendered()
        self._token_digest = None if token is None else _digest(token.reveal())

    def serve(self, api: AdminApi) -> None:
        """Answer what is asked under /admin/ from now on."""
        self._api = api

    def reloads(self, reload: Reload) -> None:
        """Have relay.toml read again by this, from now on, when that is asked for."""
        self._reload = reload

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Every error has the shape of an OpenAI error body."""
        path = request.path
        if path == "/admin" or path.startswith("/admin/"):
            return self._refusal(request) or await self._administer(request)
        if path not in ("/metrics", "/healthz", "/readyz"):
            return _not_found()
        if refusal := _read_only(request):
            return refusal
        if path == "/metrics":
            return await self._exposition(request)
        if path == "/readyz":
            return self._readiness()
        return web.Response(text="ok", headers=_HEADERS)

    async def _exposition(self, request: web.BaseRequest) -> web.Response:
        # In a thread: tens of milliseconds of pure Python, between whose steps the loop gets its turns.
        accept = ",".join(request.headers.getall(hdrs.ACCEPT, ()))
        body, content_type = await asyncio.to_thread(self._metrics.render, accept)
        return web.Response(body=body, headers={**_HEADERS, hdrs.CONTENT_TYPE: content_type})

    def _readiness(self) -> web.Response:
        state = self._ready()
        body = orjson.dumps({"ready": state.ready, "reasons": state.reasons})
        return _json(200 if state.ready else 503, body)

    async def _administer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == OPENAPI:
            return _read_only(request) or _json(200, self._openapi)
        if request.path == EVENTS:
            return _read_only(request) or await self._follow(request)
        if request.path == RELOAD:
            return await self._answer_reload(request)
        if self._api is None:
            message = "The relay is starting; try again in a moment."
            return _error(503, message, code="starting", headers={hdrs.RETRY_AFTER: "1"})
        try:
            status, body, headers = await self._api.handle(request)
        except RelayError as error:
            return _json(error.status, error.body, error.headers)
        if status == 204:
            return web.Response(status=status, headers=_HEADERS)
        return _json(status, body, headers)

    async def _answer_reload(self, request: web.BaseRequest) -> web.Response:
        try:
            return _json(200, await answer(request, self._reload))
        except RelayError as error:
            return _json(error.status, error.body, error.headers)

    async def _follow(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._events.handle(request)
        except RelayError as error:
            return _json(error.status, error.body, error.headers)

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        """Why this request may not enter /admin/; None if it may."""
        if self._token_digest is None:
            message = (
                "/admin/ is closed because no token is configured. Set one in relay.toml: "
                '[admin] token = { env = "RELAY_ADMIN_TOKEN" }, and start the relay with that variable set.'
            )
            return _error(403, message, code="admin_token_not_configured")
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(given.strip()), self._token_digest):
            return None
        message = "This needs the header `Authorization: Bearer …` with the token of `[admin] token` in relay.toml."
        return _error(401, message, code="invalid_admin_token", headers={hdrs.WWW_AUTHENTICATE: "Bearer"})


def _digest(token: str) -> bytes:
    """Of one length whatever the token's, so that comparing two does not tell it."""
    # A header may hold bytes that are no UTF-8; aiohttp decodes them to surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read_only(request: web.BaseRequest) -> web.Response | None:
    """The refusal of a method that would not only read."""
    if request.method in _READ_METHODS:
        return None
    allowed = ", ".join(_READ_METHODS)
    message = f"{request.path} answers {allowed} only."
    return _error(405, message, code="method_not_allowed", headers={hdrs.ALLOW: allowed})


def _not_found() -> web.Response:
    return _error(404, "There is nothing here. Try /metrics, /healthz or /readyz.", code="not_found")


def _error(status: int, message: str, *, code: str, headers: dict[str, str] | None = None) -> web.Response:
    body = error_body(message, type="invalid_request_error", code=code)
    return _json(status, body, headers)


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=body, headers={**_HEADERS, **(headers or {})}, content_type="application/json"
    )
