"""The upstreams: who is asked again, and what their answers mean. Which one is asked is for `relay.balancer` to say.

One `Upstreams` a process. The next upstream is tried only while nothing has been sent to the client, the failure is one
that the operator lists in `retry_on`, and the retries of all requests together stay a small share of them.

What is sent on: our own headers, those of plugins, and the body; of the client's head nothing. How it is sent is for `relay.connections` to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from aiohttp import ClientError
from aiohttp.http import HttpProcessingError

from relay.balancer import Balancer
from relay.body import Body
from relay.config import Upstream
from relay.connections import Connector, StaleError
from relay.endpoint import Endpoint
from relay.errors import NO_RETRY, RelayError, UpstreamError, forget_frames
from relay.events import NOWHERE, Publisher
from relay.exchange import Exchange
from relay.log import Logger
from relay.metrics import Metrics
from relay.pure.health import Health
from relay.pure.request import ChatRequest
from relay.refusal import CLIENT_ERRORS, refusal, unanswered, wrong_head
from relay.reply import Reply


@dataclass(slots=True, eq=False)
class Answer:
    """An upstream's reply whose head was good.

    asked_at: the loop's clock.
    """

    upstream: Upstream
    body: Body
    asked_at: float


class Upstreams:
    """An async context manager that owns the connections."""

    def __init__(
        self,
        configured: Iterable[Upstream],
        make_body: Callable[[Reply], Body],
        metrics: Metrics,
        log: Logger,
        events: Publisher = NOWHERE,
        *,
        before: Upstreams | None = None,
    ) -> None:
        """before: those of which these take the place, so that what is known of the ones that stay is known of them."""
        self._loop = asyncio.get_running_loop()
        self._configured = tuple(configured)
        self._make_body = make_body
        self._metrics = metrics
        known = before.health if before is not None else {}
        self._balancer = Balancer(self._configured, metrics, log, self._loop.time(), events, known)
        self._log = log
        self._names = {upstream.name: upstream.model_map for upstream in self._configured}
        self._tells_no_usage: set[str] = set()

    async def __aenter__(self) -> Upstreams:
        self._connector = Connector()
        self._endpoints = {upstream.name: Endpoint(upstream, self._connector) for upstream in self._configured}
        return self

    async def __aexit__(self, *exc: object) -> None:
        for endpoint in self._endpoints.values():
            endpoint.close()
        await self._connector.close()

    @property
    def models(self) -> tuple[str, ...]:
        """The public names, in the order of the file, without "*"."""
        return self._balancer.models

    @property
    def health(self) -> Mapping[str, Health]:
        """How each is, by where it is."""
        return self._balancer.health

    def serving(self, model: str) -> Sequence[Upstream]:
        """Who serves a model. Raises Reject if nobody does."""
        return self._balancer.serving(model)

    async def ask(self, ex: Exchange) -> Answer:
        """The first good answer. Raises UpstreamError or Reject."""
        request = ex.request
        model, stream = request.model, request.stream
        order = self._balancer.order(model, self._loop.time())
        acted = False  # one of them may have
        for upstream in order:
            again = False
            while True:  # ask, and once more where that cannot be the second time that the upstream acts
                try:
                    return await self._ask(upstream, ex, request, model, stream, again)
                except StaleError:
                    self._endpoints[upstream.name].drop_idle()  # so that the next is a fresh one
                except _UsageRefusedError:
                    self._tells_no_usage.add(upstream.name)
                    self._log.warning(
                        'upstream refuses stream_options; set usage = "off" for it', upstream=upstream.name
                    )
                except _Refused as refused:
                    error, reason = refused.error, refused.reason
                    break
                again = True
            acted = acted or NO_RETRY.items() <= error.headers.items()
            if upstream is order[-1] or not self._balancer.may_retry(upstream, reason):
                break
        if acted:
            error.headers.update(NO_RETRY)
        raise error

    async def _ask(
        self, upstream: Upstream, ex: Exchange, request: ChatRequest, model: str, stream: bool, again: bool
    ) -> Answer:
        """The answer, if its head is a good one. Raises _Refused, or UpstreamError where no other may be asked."""
        name = upstream.name
        usage = (
            stream
            and ex.needs_usage
            and upstream.usage == "inject"
            and name not in self._tells_no_usage
            and not request.wants_usage
        )
        ex.hides_usage = usage
        sent = request.sent_on(model=self._names[name].get(model), usage=usage)
        endpoint = self._endpoints[name]
        ex.upstream = endpoint.server
        asked_at = self._loop.time()
        self._balancer.asked(upstream, asked_at)
        try:
            reply = await endpoint.ask(sent, stream=stream, request_id=ex.id, more=ex.upstream_lines)
        except asyncio.CancelledError:
            self._metrics.upstream_request(name, "cancelled")
            raise
        except (ClientError, HttpProcessingError, OSError) as cause:  # a TimeoutError is an OSError
            if isinstance(cause, StaleError) and not again:
                raise
            error, reason = unanswered(cause)
            forget_frames(cause)
            self._metrics.upstream_request(name, "failed")
            self._metrics.upstream_error(name, error.kind)
            self._balancer.failed(upstream, asked_at, self._loop.time())
            raise _Refused(error, reason) from None
        if reply.status != 200:
            try:
                await self._refuse(upstream, reply, asked_at, usage=usage and not again)
            finally:
                reply.close()
        now = self._loop.time()
        self._metrics.upstream_request(name, "answered")
        malformed = wrong_head(reply, stream)
        if malformed is not None:
            reply.close()
            self._metrics.upstream_error(name, malformed.kind)
            self._balancer.failed(upstream, asked_at, now)
            raise malformed
        # Of replies that are not streamed the head waits for the last word: it says nothing of who is quick.
        self._balancer.answered(upstream, asked_at, now, model if stream else None)
        return Answer(upstream, self._make_body(reply), asked_at)

    async def _refuse(self, upstream: Upstream, reply: Reply, asked_at: float, *, usage: bool) -> NoReturn:
        """Raise what a status that is not 200 says. usage: if it may be about the usage that we have asked for."""
        now = self._loop.time()
        self._metrics.upstream_request(upstream.name, "refused")
        if reply.status in CLIENT_ERRORS or reply.status == 429:  # it is well, and says no
            self._balancer.answered(upstream, asked_at, now)
        else:
            self._balancer.failed(upstream, asked_at, now)
        if reply.status not in CLIENT_ERRORS:
            self._metrics.upstream_error(upstream.name, "status")
        error = await refusal(reply, upstream.api_key)
        if usage and "stream_options" in f"{error.param} {error.message}":
            raise _UsageRefusedError
        raise _Refused(error, str(reply.status))

    def served(self, answer: Answer) -> None:
        """A reply has ended well."""
        self._balancer.served(answer.upstream, answer.asked_at)

    def failed(self, answer: Answer, error: UpstreamError) -> None:
        """An upstream has failed inside its reply."""
        self._metrics.upstream_error(answer.upstream.name, error.kind)
        if error.kind == "reported":
            return  # it may be the request's fault, and one client's must not eject an upstream for all
        self._balancer.broke_off(answer.upstream, answer.asked_at, self._loop.time())


class _UsageRefusedError(Exception):
    """The upstream does not take the `stream_options` that we, and not the client, have sent."""


class _Refused(Exception):
    """One upstream did not serve. `reason` is a word of `retry_on`."""

    def __init__(self, error: RelayError, reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
