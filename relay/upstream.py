"""The upstreams: how they are asked, and what their answers mean. Which one is asked is for `relay.balancer` to say.

One `Upstreams` a process. The next upstream is tried only while nothing has been sent to the client, the failure is one
that the operator lists in `retry_on`, and the retries of all requests together stay a small share of them.

What is sent on: our own headers and the body, nothing of the client's. Redirects are not followed, replies are asked for
uncompressed, and aiohttp's own limits (100 connections, five minutes in all) are lifted: ours are per upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final
from weakref import WeakSet

import aiohttp
from aiohttp import hdrs
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from yarl import URL

from relay.balancer import Balancer
from relay.body import Body, PushConnector, PushProtocol
from relay.config import Upstream
from relay.errors import NO_RETRY, RelayError, UpstreamError, forget_frames
from relay.events import NOWHERE, Publisher
from relay.exchange import Exchange
from relay.log import Logger
from relay.metrics import Metrics
from relay.pure.request import ChatRequest
from relay.refusal import CLIENT_ERRORS, refusal, unanswered, wrong_head

# uvicorn closes idle connections after 5 s; one that we give up first is never found closed.
POOL_IDLE_S: Final = 4.0
# aiohttp writes longer bytes in one go, and warns that this may block the loop; a file it writes in pieces.
MAX_INLINE_BYTES: Final = 2**20
# How soon a pooled connection is found closed that was closed before the request came: some round trips.
STALE_S: Final = 1.0
# Of a body that nobody has begun to push yet, or that is read by awaiting.
READ_BUFFER_BYTES: Final = 32_768


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
        events: Publisher = NOWHERE,
    ) -> None:
        upstreams = tuple(configured)
        self._make_body = make_body
        self._metrics = metrics
        self._balancer = Balancer(upstreams, metrics, log, _now(), events)
        self._endpoints = {upstream.name: _endpoint(upstream) for upstream in upstreams}
        self._log = log
        self._tells_no_usage: set[str] = set()
        self._bodies: WeakSet[Body] = WeakSet()  # one may still be waited for when its reply has long ended

    async def __aenter__(self) -> Upstreams:
        self._connector = PushConnector(limit=0, keepalive_timeout=POOL_IDLE_S)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
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
        acted = False  # one of them may have
        for upstream in (*others, last):
            try:
                return await self._ask_again(upstream, ex)
            except _Refused as refused:
                error = refused.error
                acted = acted or NO_RETRY.items() <= error.headers.items()
                if upstream is last or not self._balancer.may_retry(upstream, refused.reason):
                    break
        if acted:
            error.headers.update(NO_RETRY)
        raise error

    async def _ask_again(self, upstream: Upstream, ex: Exchange) -> Answer:
        """Ask, and once more where that cannot be the second time that the upstream acts."""
        try:
            return await self._ask(upstream, ex)
        except _StaleError:
            self._connector.drop_idle(self._endpoints[upstream.name].url)  # so that the next is a fresh one
        except _UsageRefusedError:
            self._tells_no_usage.add(upstream.name)
            self._log.warning('upstream refuses stream_options; set usage = "off" for it', upstream=upstream.name)
        return await self._ask(upstream, ex, again=True)

    async def _ask(self, upstream: Upstream, ex: Exchange, *, again: bool = False) -> Answer:
        request = ex.request
        endpoint = self._endpoints[upstream.name]
        usage = (
            ex.needs_usage
            and upstream.usage == "inject"
            and upstream.name not in self._tells_no_usage
            and request.stream
            and not request.wants_usage
        )
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
            if isinstance(cause, _StaleError) and not again:
                raise
            error, reason = unanswered(cause)
            forget_frames(cause)
            self._metrics.upstream_request(upstream.name, "failed")
            self._metrics.upstream_error(upstream.name, error.kind)
            self._balancer.failed(upstream, asked_at, ex.loop.time())
            raise _Refused(error, reason) from None
        try:
            return await self._read_head(upstream, response, request, asked_at, usage, again)
        except BaseException:
            response.close()  # a connection that was given back already is not touched by it
            raise

    async def _read_head(
        self,
        upstream: Upstream,
        response: aiohttp.ClientResponse,
        request: ChatRequest,
        asked_at: float,
        usage: bool,
        again: bool,
    ) -> Answer:
        """The answer, if this head is a good one. Raises _Refused, or UpstreamError where no other may be asked."""
        now = _now()
        if response.status == 200:
            self._metrics.upstream_request(upstream.name, "answered")
            malformed = wrong_head(response, request.stream)
            if malformed is not None:
                self._metrics.upstream_error(upstream.name, malformed.kind)
                self._balancer.failed(upstream, asked_at, now)
                raise malformed
            # Of replies that are not streamed the head waits for the last word: it says nothing of who is quick.
            self._balancer.answered(upstream, asked_at, now, model=request.model if request.stream else None)
            body = self._make_body(response)
            self._bodies.add(body)
            return Answer(upstream, body, asked_at, usage)
        self._metrics.upstream_request(upstream.name, "refused")
        if response.status in CLIENT_ERRORS or response.status == 429:  # it is well, and says no
            self._balancer.answered(upstream, asked_at, now)
        else:
            self._balancer.failed(upstream, asked_at, now)
        if response.status not in CLIENT_ERRORS:
            self._metrics.upstream_error(upstream.name, "status")
        error = await refusal(response, upstream.api_key)
        response.release()
        if usage and not again and "stream_options" in f"{error.param} {error.message}":
            raise _UsageRefusedError
        raise _Refused(error, str(response.status))

    def served(self, answer: Answer) -> None:
        """A reply has ended well."""
        self._balancer.served(answer.upstream, answer.asked_at)

    def failed(self, answer: Answer, error: UpstreamError) -> None:
        """An upstream has failed inside its reply."""
        self._metrics.upstream_error(answer.upstream.name, error.kind)
        if error.kind == "reported":
            return  # it may be the request's fault, and one client's must not eject an upstream for all
        self._balancer.broke_off(answer.upstream, answer.asked_at, _now())


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
        started = _now()
        try:
            return await super().start(connection)
        except (aiohttp.ClientError, OSError) as cause:
            # One that takes its time to close has read the request, and worked on it.
            if used and _now() - started < STALE_S and _is_closed(cause):
                raise _StaleError from None
            raise


def _is_closed(cause: BaseException) -> bool:
    """Whether a connection ended, in good order or by a reset, before any byte of an answer came."""
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return not isinstance(cause.message, RawResponseMessage)  # then it has the head as far as it came
    return isinstance(cause, aiohttp.ClientOSError | ConnectionError) and not isinstance(
        cause, aiohttp.ClientConnectorError
    )


class _StaleError(aiohttp.ServerDisconnectedError):
    """A pooled connection was closed at once, before any byte came: the upstream cannot have acted."""


class _UsageRefusedError(Exception):
    """The upstream does not take the `stream_options` that we, and not the client, have sent."""


class _Refused(Exception):
    """One upstream did not serve. `reason` is a word of `retry_on`."""

    def __init__(self, error: RelayError, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
