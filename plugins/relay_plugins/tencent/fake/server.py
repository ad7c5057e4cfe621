"""The fake on a socket: an aiohttp server, as cheap as that gets, and the page by which it is switched while it runs.

`GET /control` shows settings and counts; `POST /control` takes a JSON object of settings to change, of which `reset`
(true) sets the counts to nothing and `upcoming` (a list) says how the next calls go. Everything else is a call.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Mapping
from email.utils import formatdate
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import orjson
from aiohttp import web

from relay_plugins.tencent.fake.ask import check_head, read
from relay_plugins.tencent.fake.counts import Counts
from relay_plugins.tencent.fake.mood import Mood
from relay_plugins.tencent.fake.refusal import Refusal
from relay_plugins.tencent.fake.settings import Settings, changed
from relay_plugins.tencent.fake.signature import Account, Signed, verify
from relay_plugins.tencent.fake.verdict import verdict

# Nobody has these: they open nothing but this.
SECRET_ID: Final = "AKIDofTheFakeOnly"  # noqa: S105
SECRET_KEY: Final = "key-of-the-fake-only"  # noqa: S105
_MAX_BODY_BYTES: Final = 10 * 1024 * 1024  # the service's own limit
_CONTROL: Final = "/control"


class Fake:
    """The service, on loopback unless told otherwise; an async context manager.

    settings: may be set by attribute while it runs, or together and checked by `change`. counts: what it has seen.
    upcoming: how the next calls go ("" for well, else a kind of failure), before chance has its say.
    port: 0 for any; the real one inside the block.
    """

    def __init__(
        self,
        *,
        secret_id: str = SECRET_ID,
        secret_key: str = SECRET_KEY,
        token: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        **settings: object,
    ) -> None:
        """`settings`: as in `Settings`. Raises msgspec.ValidationError for what is none."""
        self.account = Account(secret_id, secret_key, token)
        self.host = host
        self.port = port
        self.settings = changed(Settings(), settings)
        self.counts = Counts(self.settings.keep_calls)
        self._mood = Mood(self.settings.seed)
        self._closing = asyncio.Event()
        self._server: _Server | None = None
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        self._server = _Server(
            self._handle, handler_cancellation=True, request_factory=_request, access_log=None, keepalive_timeout=60
        )
        self._runner = web.ServerRunner(self._server, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def endpoint(self) -> str:
        """What stands as `endpoint` in relay.toml."""
        return f"http://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return self._server.accepted if self._server is not None else 0

    @property
    def upcoming(self) -> deque[str]:
        return self._mood.upcoming

    def change(self, **changes: object) -> None:
        """Change settings. Raises msgspec.ValidationError for what is none, and then changes nothing."""
        settings = changed(self.settings, changes)
        if "seed" in changes:
            self._mood = Mood(settings.seed)
        if settings.keep_calls != self.counts.kept.maxlen:
            self.counts.kept = deque(self.counts.kept, maxlen=settings.keep_calls)
        self.settings = settings

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.rel_url.raw_path == _CONTROL:
            return await self._control(request)
        counts, settings = self.counts, self.settings
        counts.calls += 1
        if settings.outage == "black_hole":
            counts.refused["black_hole"] += 1
            await self._closing.wait()
            return _reset(request)
        if settings.outage == "refuse":
            counts.refused["refuse"] += 1
            return _reset(request)
        request_id = str(uuid.uuid4())
        now = time.time() + settings.clock_ahead_s
        try:
            response = await self._call(request, now, request_id)
        except Refusal as refusal:
            counts.refused[refusal.code] += 1
            error = {"Code": refusal.code, "Message": refusal.message}
            response = _json({"Response": {"Error": error, "RequestId": request_id}})
        if settings.clock_ahead_s:
            response.headers["Date"] = formatdate(now, usegmt=True)
        return response

    async def _call(self, request: web.BaseRequest, now: float, request_id: str) -> web.Response:
        counts, settings = self.counts, self.settings
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise Refusal("RequestSizeLimitExceeded", "The request is larger than 10 MB.") from None
        url = request.rel_url
        verify(Signed(request.method, url.raw_path, url.raw_query_string, request.headers, body), self.account, now)
        check_head(request.method, request.headers)
        ask = read(body, settings.max_chars)
        if settings.biz_types is not None and ask.parameters.get("BizType", "") not in ("", *settings.biz_types):
            raise Refusal("InvalidParameterValue.InvalidBizType", "BizType参数错误")
        limit = settings.calls_per_second if ask.type == "TEXT" else settings.aigc_calls_per_second
        if counts.in_second(now, ask.type) > limit > 0:
            raise Refusal("RequestLimitExceeded", "请求的次数超过了频率限制。")
        if settings.keep_calls:
            counts.kept.append(ask)
        latency_s, failure = self._mood.latency_s(settings), self._mood.failure(settings)
        if latency_s:
            await asyncio.sleep(latency_s)
        if failure:
            return self._fail(request, failure, request_id)
        counts.answered += 1
        counts.characters += len(ask.text)
        return _json({"Response": verdict(ask, settings, request_id)})

    def _fail(self, request: web.BaseRequest, kind: str, request_id: str) -> web.Response:
        status = kind.removeprefix("http_")
        if kind not in ("reset", "garbage", "empty") and not status.isdecimal():
            raise Refusal(kind, "The fake was told to say so.")
        self.counts.refused[kind] += 1
        match kind:
            case "reset":
                return _reset(request)
            case "garbage":
                return web.Response(body=b'{"Response": {"Sugg\xff', content_type="application/json")
            case "empty":
                return _json({"Response": {"RequestId": request_id}})
            case _:
                return web.Response(status=int(status), text="<html>a gateway has a bad day</html>")

    async def _control(self, request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            try:
                changes = orjson.loads(await request.read())
                reset, upcoming = changes.pop("reset", False), changes.pop("upcoming", [])
                self.change(**changes)
            except (orjson.JSONDecodeError, msgspec.ValidationError, AttributeError, TypeError) as error:
                return _json({"error": f"not a JSON object of settings: {error}"}, status=400)
            self.upcoming.extend(map(str, upcoming))
            if reset:
                self.counts = Counts(self.settings.keep_calls)
        return _json({"settings": msgspec.to_builtins(self.settings), **self.counts.shown()})


class _Server(web.Server):
    """aiohttp's, and counts connections."""

    accepted = 0

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        self.accepted += 1
        super().connection_made(handler, transport)


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)


def _json(value: Mapping[str, Any], status: int = 200) -> web.Response:
    # Exactly this type: the SDK looks for errors in no other.
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _reset(request: web.BaseRequest) -> web.Response:
    """Break the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
