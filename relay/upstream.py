"""The upstreams: how they are asked, and what their answers mean. Which one is asked is for `relay.balancer` to say.

One `Upstreams` a process. The next upstream is tried only while nothing has been sent to the client, the failure is one
that the operator lists in `retry_on`, and the retries of all requests together stay a small share of them.

What is sent on: our own headers and the body, nothing of the client's. Redirects are not followed, replies are asked for
uncompressed, and aiohttp's own limits (100 connections, five minutes in all) are lifted: ours are per upstream.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final
from weakref import WeakSet

import aiohttp
import orjson
from aiohttp import hdrs
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from yarl import URL

from relay.balancer import Balancer
from relay.body import Body, PushConnector, PushProtocol
from relay.config import Upstream
from relay.errors import (
    Reject,
    RelayError,
    UpstreamError,
    forget_frames,
    upstream_malformed,
)
from relay.exchange import Exchange
from relay.log import Logger
from relay.metrics import Metrics

# uvicorn closes idle connections after 5 s; one that we give up first is never found closed.
POOL_IDLE_S: Final = 4.0
# An error body is an object of a few hundred bytes; what is longer is a page.
MAX_ERROR_BYTES: Final = 65_536
MAX_ERROR_CHARS: Final = 2_000
# aiohttp writes longer bytes in one go, and warns that this may block the loop; a file it writes in pieces.
MAX_INLINE_BYTES: Final = 2**20
# Of a body that nobody has begun to push yet, or that is read by awaiting.
READ_BUFFER_BYTES: Final = 32_768

# What an upstream may say of the client's own request.
_CLIENT_ERRORS: Final = frozenset({400, 404, 413, 422})
_SECRETS: Final = re.compile(
    r"\bhttps?://\S+|\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?|\[[0-9a-fA-F:]{3,}\](?::\d+)?|\b(?:sk|key|Bearer)[-_ ][\w.*-]{6,}|"
    r"\b[\w-]+(?:\.[\w-]+)+:\d{2,5}\b"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's reply whose head was good.

    asked_at: the loop's clock. usage_asked: by us and not by the client, so that it must not see the answer.
    """

    upstream: Upstream
    body: Body
    asked_at: float
    usage_asked: bool = False


class Upstreams:
    """An async context manager that owns the connections."""

    def __init__(
        self,
        configured: Iterable[Upstream],
        make_body: Callable[[aiohttp.ClientResponse], Body],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        upstreams = tuple(configured)
        self._make_body = make_body
        self._metrics = metrics
        self._balancer = Balancer(upstreams, metrics, log, _now())
        self._endpoints = {upstream.name: _endpoint(upstream) for upstream in upstreams}
        self._session: aiohttp.ClientSession | None = None
        self._bodies: WeakSet[Body] = WeakSet()  # one may still be waited for when its reply has long ended

    async def __aenter__(self) -> Upstreams:
        self._session = aiohttp.ClientSession(
            connector=PushConnector(limit=0, keepalive_timeout=POOL_IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            skip_auto_headers=[hdrs.USER_AGENT],
            trust_env=False,
            response_class=_Response,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        for body in tuple(self._bodies):
            body.close()
        if self._session is not None:
            await self._session.close()

    @property
    def models(self) -> tuple[str, ...]:
        """The public names, in the order of the file, without "*"."""
        return self._balancer.models

    def serving(self, model: str) -> Sequence[Upstream]:
        """Who serves a model. Raises Reject if nobody does."""
        return self._balancer.serving(model)

    async def ask(self, ex: Exchange) -> Answer:
        """The first good answer. Raises UpstreamError or Reject."""
        *others, last = self._balancer.order(ex.request.model, ex.loop.time())
        for upstream in others:
            try:
                return await self._ask_freshly(upstream, ex)
            except _Refused as refused:
                if not self._balancer.may_retry(upstream, refused.reason):
                    raise refused.error from None
        try:
            return await self._ask_freshly(last, ex)
        except _Refused as refused:
            raise refused.error from None

    async def _ask_freshly(self, upstream: Upstream, ex: Exchange) -> Answer:
        """Ask, and once more for every pooled connection that turns out to be closed."""
        while True:
            try:
                return await self._ask(upstream, ex)
            except _StaleError:
                continue

    async def _ask(self, upstream: Upstream, ex: Exchange) -> Answer:
        if self._session is None:
            raise RuntimeError("Upstreams is entered with `async with`")
        request = ex.request
        endpoint = self._endpoints[upstream.name]
        usage = ex.needs_usage and upstream.usage == "inject" and request.stream and not request.wants_usage
        sent = request.sent_on(model=upstream.model_map.get(request.model), usage=usage)
        asked_at = ex.loop.time()
        self._balancer.asked(upstream, asked_at)
        try:
            async with asyncio.timeout(upstream.first_byte_timeout_s):
                response = await self._session.post(
                    endpoint.url,
                    data=sent if len(sent) <= MAX_INLINE_BYTES else BytesIO(sent),
                    headers={**(endpoint.stream if request.stream else endpoint.whole), "x-request-id": ex.id},
                    allow_redirects=False,
                    timeout=endpoint.timeout,
                )
        except asyncio.CancelledError:
            self._metrics.upstream_request(upstream.name, "cancelled")
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as cause:
            refused = self._unanswered(upstream, cause)
            forget_frames(cause)
            raise refused from None
        try:
            if response.status == 200:
                self._metrics.upstream_request(upstream.name, "answered")
                self._check_head(upstream, response, request.stream)
                # Of replies that are not streamed the head waits for the last word: it says nothing of who is quick.
                now = ex.loop.time()
                self._balancer.answered(upstream, now, request.model, now - asked_at if request.stream else None)
                body = self._make_body(response)
                self._bodies.add(body)
                return Answer(upstream, body, asked_at, usage)
            self._metrics.upstream_request(upstream.name, "refused")
            error = await self._refusal(upstream, response)
        except BaseException:
            response.close()
            raise
        response.release()
        raise _Refused(error, str(response.status))

    def served(self, upstream: Upstream) -> None:
        """An upstream's reply has ended well."""
        self._balancer.served(upstream)

    def failed(self, upstream: Upstream, error: UpstreamError) -> None:
        """An upstream has failed inside its reply."""
        self._metrics.upstream_error(upstream.name, error.kind)
        self._balancer.broke_off(upstream, _now())

    def _check_head(self, upstream: Upstream, response: aiohttp.ClientResponse, stream: bool) -> None:
        """Raises UpstreamError if what follows cannot be what was asked for."""
        encoding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
        kind = response.content_type
        # Some servers name no type for their streams; aiohttp then says application/octet-stream.
        wrong = kind in ("application/json", "text/html") if stream else kind in ("text/event-stream", "text/html")
        if encoding != "identity" or wrong:
            error = upstream_malformed()
            self._metrics.upstream_error(upstream.name, error.kind)
            self._balancer.failed(upstream, _now())
            raise error

    def _unanswered(self, upstream: Upstream, cause: BaseException) -> _Refused:
        """What it means that no head came."""
        late = isinstance(cause, TimeoutError) and not isinstance(cause, aiohttp.ConnectionTimeoutError)
        unsent = isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        reason = "first_byte" if late else "connect" if unsent else "error"
        self._metrics.upstream_request(upstream.name, "failed")
        self._metrics.upstream_error(upstream.name, reason)
        self._balancer.failed(upstream, _now())
        if late:
            error = UpstreamError(
                "The model server did not answer in time. Ask again later.",
                code="upstream_timeout",
                status=504,
                kind=reason,
            )
        else:
            error = UpstreamError(
                "The model server cannot be reached. Ask again later.",
                code="upstream_unavailable",
                status=502,
                kind=reason,
                acted=not unsent,
            )
        return _Refused(error, reason)

    async def _refusal(self, upstream: Upstream, response: aiohttp.ClientResponse) -> RelayError:
        """The error for a status that is not 200."""
        status = response.status
        if status in _CLIENT_ERRORS:
            self._balancer.answered(upstream, _now())
            return await _client_error(response)
        self._metrics.upstream_error(upstream.name, "status")
        if status != 429:  # that is a limit, and it is well
            self._balancer.failed(upstream, _now())
        if status in (401, 403):
            return UpstreamError(
                "The model server does not accept the relay's credentials; tell the operator.",
                code="upstream_auth",
                kind="status",
            )
        if status == 429:
            retry_after = response.headers.get(hdrs.RETRY_AFTER, "")
            headers: dict[str, str] = (
                {hdrs.RETRY_AFTER: retry_after} if re.fullmatch(r"[\w,: -]{1,40}", retry_after) else {}
            )
            return Reject(
                "The model server is busy. Ask again later.",
                code="rate_limit_exceeded",
                status=429,
                type="requests",
                headers=headers,
            )
        return UpstreamError(
            "The model server failed. Ask again later.", code="upstream_error", kind="status", acted=status != 503
        )


@dataclass(frozen=True, slots=True, repr=False)
class _Endpoint:
    """What every request to an upstream has in common, and one that is streamed, or is not."""

    url: URL
    timeout: aiohttp.ClientTimeout
    stream: Mapping[str, str]
    whole: Mapping[str, str]


def _endpoint(upstream: Upstream) -> _Endpoint:
    headers: dict[str, str] = {hdrs.CONTENT_TYPE: "application/json", hdrs.ACCEPT_ENCODING: "identity"}
    if upstream.api_key is not None:
        headers[hdrs.AUTHORIZATION] = f"Bearer {upstream.api_key.reveal()}"
    return _Endpoint(
        URL(upstream.base_url + "/chat/completions"),
        aiohttp.ClientTimeout(total=None, connect=upstream.connect_timeout_s),
        {**headers, hdrs.ACCEPT: "text/event-stream"},
        {**headers, hdrs.ACCEPT: "application/json"},
    )


def _now() -> float:
    return asyncio.get_running_loop().time()


class _Response(aiohttp.ClientResponse):
    """A reply whose connection may have come from the pool, and been closed there."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        used = isinstance(protocol, PushProtocol) and protocol.used
        if isinstance(protocol, PushProtocol):
            protocol.used = True
        try:
            return await super().start(connection)
        except (aiohttp.ClientError, OSError) as cause:
            if used and _is_closed(cause):
                raise _StaleError from None
            raise


def _is_closed(cause: BaseException) -> bool:
    """Whether a connection ended, in good order or by a reset, before any byte of an answer came."""
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return not isinstance(cause.message, RawResponseMessage)  # then it has the head as far as it came
    return isinstance(cause, aiohttp.ClientOSError | ConnectionError) and not isinstance(
        cause, aiohttp.ClientConnectorError
    )


class _StaleError(Exception):
    """A pooled connection was closed before any byte came: the upstream cannot have acted."""


class _Refused(Exception):
    """One upstream did not serve. `reason` is a word of `retry_on`."""

    def __init__(self, error: RelayError, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason


async def _client_error(response: aiohttp.ClientResponse) -> Reject:
    """What the upstream says of the client's request, without addresses and keys."""
    try:
        body = b""
        async with asyncio.timeout(5):
            while len(body) < MAX_ERROR_BYTES and (part := await response.content.read(MAX_ERROR_BYTES - len(body))):
                body += part
        said = orjson.loads(body)["error"]
        message = str(said["message"])
    except (TimeoutError, aiohttp.ClientError, orjson.JSONDecodeError, KeyError, TypeError):
        said, message = {}, "The model server refuses this request."
    fields = {name: scrub(said[name]) for name in ("type", "param", "code") if isinstance(said.get(name), str)}
    return Reject(
        scrub(message),
        code=fields.get("code", "invalid_request"),
        status=response.status,
        type=fields.get("type", "invalid_request_error"),
        param=fields.get("param"),
    )


def scrub(message: str) -> str:
    """A message without what looks like an address or a key, and no longer than anybody reads."""
    return _SECRETS.sub("…", message)[:MAX_ERROR_CHARS]
