"""The public listener: a request becomes an exchange, goes through the chain to an upstream, and comes back pushed.

The handler lives to the end of the reply in one wait. Everything that has to happen after it (`on_end`, the log line,
the metrics) runs in a task of the app, so that a client that leaves cannot cancel it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from time import monotonic
from typing import Any

import orjson
from aiohttp import hdrs

from relay.cors import cors_headers
from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.errors import (
    NO_HEADERS,
    NO_RETRY,
    InternalError,
    PluginError,
    Reject,
    RelayError,
    Unavailable,
    UpstreamError,
    unsupported_messages,
)
from relay.events import NOWHERE, Publisher
from relay.exchange import Exchange, Outcome, OutcomeKind, ReplyHeaders
from relay.generation import Generation
from relay.head import BARE, BODILESS, JSON, Standard, unsendable
from relay.keys import API_KEY
from relay.log import Logger
from relay.metrics import Metrics
from relay.open_reply import Open
from relay.plugin import Sink
from relay.pure.request import ChatRequest, InvalidRequest
from relay.reports import Reports
from relay.request import Request, new_id, read_body
from relay.routes import Route
from relay.silence import WATCH_S, SilenceWatch
from relay.turnstile import Turnstile
from relay.upstream import Answer, Upstreams
from relay.usage import UsageFilter
from relay.writer import Outbox, StreamWriter, WholeWriter, Writer, send

# How long sinks may take to pass on the end of a reply whose client has left.
END_S = 2.0


class App:
    """Handles the requests of the public listener.

    generation: on which requests begin now; what has begun on another one ends there.
    """

    def __init__(self, generation: Generation, metrics: Metrics, log: Logger, events: Publisher = NOWHERE) -> None:
        self.generation = generation
        self._metrics = metrics
        self._log = log
        self.reports = Reports(metrics, log, events)
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop)
        self.turnstile = Turnstile(self._loop, before=self._outbox.write)
        self._open: set[Open] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.requests.watch(lambda: len(self._open))

    # One request

    async def handle(self, request: Request) -> None:
        """Answer one request; never raises but for cancellation, or if its client is gone."""
        message, headers = request.message, request.headers
        generation = self.generation
        path = message.path
        route = generation.routes.get(path)
        if route is None:
            path = message.url.raw_path  # without a query; a path with escapes is another one
            route = generation.routes.get(path)
        ex = Exchange(new_id(), route.operation if route is not None else "models", headers, self._loop)
        ex.route = path
        ex.reply_headers["x-request-id"] = ex.id
        reply = Open(ex, request, generation, route is not None)
        self._begun(reply)
        try:
            origin = headers.get(hdrs.ORIGIN)
            if origin is not None:
                ex.reply_headers.update(cors_headers(origin, headers, generation.server.cors_origins))
            try:
                if route is None:
                    raise Reject("There is no such path; see the documentation.", code="not_found", status=404)
                self._check(request, route)
                if message.method == hdrs.METH_OPTIONS:
                    ex.outcome = Outcome("completed")
                    await self._send(reply, request, 204, BARE, {hdrs.ALLOW: f"{route.method}, OPTIONS"}, b"")
                elif ex.operation == "chat":
                    body = await read_body(
                        request,
                        max_bytes=generation.server.max_body_bytes,
                        timeout_s=generation.server.body_timeout_s,
                    )
                    ex.loads(lambda: _load(generation, path, body))
                    await self._chat(reply, request)
                else:
                    await self._look_up(reply, request)
            except RelayError as error:
                await self._refuse(reply, request, error)
        except ConnectionError:
            ex.stop(Outcome("client_gone"))
            raise ConnectionResetError("the client is gone") from None
        except asyncio.CancelledError:
            if not reply.drained or reply.task is None or reply.task.uncancel():
                ex.stop(Outcome("client_gone"))
                raise
            await self._refuse(reply, request, _cut_off(reply), "drained")
        except Exception:  # noqa: BLE001 - our own fault, or that of what a plugin has given us
            self._failed(reply)
            await self._refuse(reply, request, InternalError())
        finally:
            reply.status = request.status
            self._spawn(self._leave(reply))

    def _begun(self, reply: Open) -> None:
        if not self._open:
            self._idle.clear()
        self._open.add(reply)
        reply.generation.requests += 1

    def _check(self, request: Request, route: Route) -> None:
        """Raises a refusal for what is no request to us."""
        method, asked = route.method, request.message.method
        if asked == hdrs.METH_OPTIONS:
            return
        if asked != method and not (method == hdrs.METH_GET and asked == hdrs.METH_HEAD):
            raise Reject(
                f"Use {method} here.", code="method_not_allowed", status=405, headers={hdrs.ALLOW: f"{method}, OPTIONS"}
            )
        # Of Host and Content-Length aiohttp takes no second one.
        if len(request.headers.getall(hdrs.AUTHORIZATION, ())) > 1:
            raise Reject(f"Send one {hdrs.AUTHORIZATION} header, not several.", code="bad_request")
        if self._draining:
            raise _draining()

    async def _look_up(self, reply: Open, request: Request) -> None:
        """Answer what needs no upstream: a plugin does, or we list the models."""
        ex, generation = reply.ex, reply.generation
        answered = await generation.chain.enter(ex, reply.entered)
        if answered is None and ex.operation == "quota":
            raise Reject("No quota is kept here: there is nothing to ask about.", code="not_found", status=404)
        ex.outcome = Outcome("completed")
        if answered is not None:
            body = b"" if answered.status in BODILESS else b"".join(chunk.raw for chunk in answered.chunks)
            await self._send(reply, request, answered.status, JSON, answered.headers, body)
        else:
            served = generation.upstreams.models
            models = filter(ex[API_KEY].may_ask, served) if API_KEY in ex else served
            await self._send(reply, request, 200, JSON, NO_HEADERS, _model_list(models))

    async def _send(
        self, reply: Open, request: Request, status: int, standard: Standard, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Send what is no model's answer."""
        stall_timeout_s = reply.generation.server.stall_timeout_s
        await send(request, reply.ex, status, standard, headers, body, stall_timeout_s=stall_timeout_s)

    async def _ask(self, reply: Open) -> Answer:
        """Ask an upstream, unless a plugin stops the exchange meanwhile; then its error is raised."""
        ex = reply.ex
        if ex.stopped is not None:
            raise ex.stopped.error or InternalError()
        ex.asked = reply.asking = True
        ex.attach(reply)
        try:
            return await reply.generation.upstreams.ask(ex)
        except asyncio.CancelledError:
            if not reply.given_up or reply.task is None or reply.task.uncancel() or ex.stopped is None:
                raise
            raise ex.stopped.error or InternalError() from None
        finally:
            reply.asking = False

    async def _chat(self, reply: Open, request: Request) -> None:
        ex, generation = reply.ex, reply.generation
        answered = await generation.chain.enter(ex, reply.entered)
        stream = ex.request.stream
        if answered is None:
            reply.asked_at, reply.moderated_s = monotonic(), ex.moderated_s or 0.0
            reply.answer = await self._ask(reply)
        stall_timeout_s = generation.server.stall_timeout_s
        writer: Writer
        if stream and (answered is None or answered.status not in BODILESS):
            writer = StreamWriter(ex, request, self._outbox, stall_timeout_s)
        else:
            writer = WholeWriter(ex, request, stall_timeout_s)
        reply.writer = writer
        last: Sink = UsageFilter(writer) if stream and ex.hides_usage else writer
        try:
            sink = generation.chain.wrap(ex, reply.entered[:-1] if answered else reply.entered, last)
        except BaseException:
            reply.writer = None
            if reply.answer is not None:
                reply.answer.body.close()
            raise
        reply.sink = sink
        if answered is not None:
            writer.status, writer.headers = answered.status, answered.headers
            reply.delivery = Replay(ex, sink, answered)
        elif reply.answer is not None:
            body, name = reply.answer.body, reply.answer.upstream.name
            reply.delivery = (
                StreamDelivery(ex, sink, body, generation.shapes[name]) if stream else WholeDelivery(ex, sink, body)
            )
        if reply.delivery is not None:
            reply.delivery.start()
        if isinstance(writer, WholeWriter):
            await writer.run()
            return
        self._metrics.stream_opened()
        self.turnstile.stream_opened()
        try:
            await writer.run()
        finally:
            self.turnstile.stream_closed()
            self._metrics.stream_closed()

    async def _refuse(self, reply: Open, request: Request, error: RelayError, kind: OutcomeKind | None = None) -> None:
        """Answer by an error. Raises ConnectionResetError if another answer has begun."""
        ex = reply.ex
        if reply.writer is None:  # a writer has an outcome of its own, which says more than the error it raises
            ex.outcome = Outcome(kind, error) if kind is not None else Outcome.of(error)
        if request.status:
            raise ConnectionResetError("the answer has begun")
        ex.reply_headers.update(error.headers)
        await self._send(reply, request, error.status, JSON, NO_HEADERS, error.body)

    def _failed(self, reply: Open) -> None:
        """Tell the log of a fault of ours, in an `except` clause, and have the client told in one line."""
        ex = reply.ex
        reply.failed = True
        header = unsendable(ex.reply_headers)
        if header is None and reply.writer is not None:
            header = unsendable(reply.writer.headers)
        if header is not None:
            self._log.error("a reply header cannot be sent", request_id=ex.id, header=header[:64])
        else:
            self._log.exception("request failed", request_id=ex.id)
        ex.reply_headers = ReplyHeaders({"x-request-id": ex.id})  # a header may have been the fault

    # After the reply

    async def _leave(self, reply: Open) -> None:
        """Settle everything about an exchange: tasks, ends, `on_end`, metrics, its line in the log."""
        ex, writer = reply.ex, reply.writer
        reply.ended_at = monotonic()
        ex.tells(reply.told)
        try:
            if writer is not None:
                if writer.outcome is None:
                    ex.stop(Outcome("client_gone"))
                    await ex.close()
                    try:
                        async with asyncio.timeout(END_S):
                            await writer.ended()
                    except TimeoutError:
                        self._log.error("a sink kept the end of a reply", request_id=ex.id)
                        if reply.sink is not None:
                            reply.generation.chain.blame(reply.sink)
                        writer.end(Outcome("client_gone"))
                ex.outcome = writer.outcome
            if reply.failed:
                ex.outcome = Outcome("internal_error", InternalError())
            await ex.close()
            ex.outcome = ex.outcome or Outcome("client_gone")
            await reply.generation.chain.leave(ex, reply.entered)
            if reply.answer is not None:
                _judge(reply.generation.upstreams, reply.answer, ex.outcome)
            self.reports.ended(reply, ex.outcome)
            self.reports.cut(reply, ex.outcome)
        finally:
            ex.forget()
            reply.generation.settled()
            self._open.discard(reply)
            if not self._open:
                self._idle.set()

    # The app's own life

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def watch(self) -> None:
        """Look after silent upstreams and silent replies, until cancelled."""
        while True:
            await asyncio.sleep(min(WATCH_S, self.generation.server.keepalive_s / 2))
            self._look(asyncio.get_running_loop().time())

    def _look(self, now: float) -> None:
        for reply in tuple(self._open):
            if reply.silence is not None:
                reply.silence.look(now)
            elif reply.writer is not None and reply.delivery is not None:
                reply.silence = SilenceWatch(
                    reply.ex,
                    reply.writer,
                    reply.delivery,
                    self._log,
                    keepalive_s=reply.generation.server.keepalive_s,
                    idle_timeout_s=reply.answer.upstream.idle_timeout_s if reply.answer is not None else math.inf,
                )

    async def drain(self, grace_s: float) -> int:
        """Take no new requests, let the open ones finish, then end them; returns how many had to be ended."""
        self._draining = True
        if await self._idle_within(grace_s):
            return 0
        left = tuple(self._open)
        for reply in left:
            reply.ex.stop(Outcome("drained", _cut_off(reply)))
            if reply.writer is None and reply.task is not None:
                reply.drained = True  # it waits for something that no end reaches: a body, a moderator, an upstream
                reply.task.cancel()
        if not await self._idle_within(END_S):
            for reply in self._open:
                if reply.task is not None:
                    reply.task.cancel()  # its client does not take the end
            if not await self._idle_within(END_S):
                self._log.error("replies did not end", count=len(self._open))
        return len(left)

    async def _idle_within(self, seconds: float) -> bool:
        """Whether no reply is open, now or before the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def settled(self) -> None:
        """Returns when everything about the replies that have ended is settled."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    @property
    def draining(self) -> bool:
        return self._draining


def _load(generation: Generation, path: str, body: bytes) -> ChatRequest:
    """The chat completion that is asked for. Raises a refusal."""
    try:
        request = generation.chain.read(path, body)
    except InvalidRequest as error:
        if error.code == "invalid_messages":
            raise unsupported_messages() from None
        raise Reject(error.message, code=error.code, param=error.param) from None
    generation.upstreams.serving(request.model)  # raises if nobody does
    return request


def _judge(upstreams: Upstreams, answer: Answer, outcome: Outcome) -> None:
    """Tell who answered how it went."""
    if isinstance(outcome.error, UpstreamError):
        upstreams.failed(answer, outcome.error)
    elif outcome.kind in ("completed", "filtered", "exhausted"):
        upstreams.served(answer)


def _model_list(names: Iterable[str]) -> bytes:
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "relay"} for name in names]
    return orjson.dumps({"object": "list", "data": models})


def on_plugin_error(log: Logger, metrics: Metrics) -> Callable[[PluginError, BaseException], None]:
    """Names a plugin that raised what is not ours in the log, and counts it."""

    def named(error: PluginError, cause: BaseException) -> None:
        metrics.requests.failed(error.plugin, error.hook)
        request_id = error.request_id or None
        log.error("plugin failed", plugin=error.plugin, hook=error.hook, request_id=request_id, exc_info=cause)

    return named


def _draining() -> Unavailable:
    return Unavailable(
        "The relay is shutting down; ask again at once.",
        code="draining",
        headers={hdrs.RETRY_AFTER: "1", hdrs.CONNECTION: "close"},
    )


def _cut_off(reply: Open) -> Unavailable:
    """The error for a reply that was on its way. A client whose request an upstream may have got must not just repeat it."""
    return Unavailable(
        "The relay is shutting down, so the answer ends here. Ask again.",
        code="draining",
        headers={hdrs.CONNECTION: "close", **(NO_RETRY if reply.ex.asked else {})},
    )
