"""The life of a relay process: built, opened, served, drained, closed.

Everything that can be wrong with the configuration stops the start before a socket is opened. On SIGTERM or SIGINT
readiness turns red at once and new requests are refused; open replies finish within `drain_s` and are then ended with an
error in the stream; a second signal ends them at once. The public listener goes last.

With `shutdown_delay_s` nobody is refused: so long, until a balancer has seen that readiness is red, all are served and told
to come by another connection; then the listener is closed, and what is open finishes within `drain_s`.

A process alone cannot be reloaded: SIGHUP says so in the log and changes nothing. With `workers` of 2 or more it can
(`relay.supervisor`).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from relay.acceptor import Board, Site
from relay.admin import Admin, Readiness
from relay.admin_api import AdminApi
from relay.administration import Administration
from relay.app import App, on_plugin_error
from relay.assembly import assemble
from relay.body import AwaitedBody, PushedBody, c_parser_loaded, self_test
from relay.config import Config
from relay.events import Events, Publisher
from relay.lag import lag_told
from relay.listener import Listener, ResponseListener
from relay.log import Logger
from relay.metrics import LAG_PERIOD_S, Metrics
from relay.options import ConfigError
from relay.plugin import Plugin, Services
from relay.store.opening import opened
from relay.store.port import Store
from relay.store.pulse import beating
from relay.store.redis import RedisStore
from relay.upstream import Upstreams

Reader = Literal["push", "await"]

BACKLOG = 4096


# How long a client that keeps its connection has to ask again, when a process leaves, before it is closed: who asks within
# it is answered, and told to come by a new one. Who asks at the very moment of the end is not heard.
LINGER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a worker gets from its supervisor and does not open itself; the admin listener and the embedded store are there.

    worker: its number. board: where it says how many connections it has. sockets: they listen. data: where the relay keeps
    files of its own. events: where it tells what happens.
    """

    worker: int
    board: Board
    sockets: Sequence[socket.socket]
    data: Path
    events: Publisher


class Relay:
    """A relay that serves. listener: of clients. Ports are the ones in use, also where the configuration says 0; a worker has no admin port."""

    def __init__(
        self,
        app: App,
        plugins: Sequence[Plugin],
        store: Store | None,
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        public: tuple[Listener, web.ServerRunner, int],
        admin_port: int,
        leaving: asyncio.Event,
    ) -> None:
        self.app = app
        self.plugins = plugins
        self.store = store
        self.metrics = metrics
        self.readiness = readiness
        self.public_port = public[2]
        self.admin_port = admin_port
        self._leaving = leaving
        self.listener, self._runner = public[:2]

    async def drain(self, delay_s: float, grace_s: float, on_deaf: Callable[[], None] = lambda: None) -> None:
        """Be ready no more, serve all for `delay_s`, and come to an end within the grace; `on_deaf` as of `retire`.

        Without a delay nobody else has had the time to take those who come: they are told to ask again.
        """
        self._leaving.set()
        if delay_s:
            self.listener.leave()
            await asyncio.sleep(delay_s)
            await self.retire(grace_s, on_deaf)
        else:
            await self.app.drain(grace_s)

    async def retire(self, grace_s: float, on_deaf: Callable[[], None] = lambda: None) -> None:
        """Take no new connections, for there are others who do, and say so to `on_deaf`; serve the open ones.

        Each answer says that it is the connection's last. At the end of the grace what is open is ended.
        """
        for site in self._runner.sites:
            await site.stop()
        self.listener.leave()
        on_deaf()
        end = asyncio.get_running_loop().time() + grace_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self.listener.empty(LINGER_S)
        await self.app.drain(max(0.0, end - asyncio.get_running_loop().time()))


@asynccontextmanager
async def running(
    config: Config, log: Logger, *, reader: Reader = "push", share: Share | None = None, events: Events | None = None
) -> AsyncIterator[Relay]:
    """Serve while the block runs. Raises ConfigError, or OSError if a port is taken.

    reader: how upstream bodies are read; "await" is the plain way, which is also taken where aiohttp cannot be pushed.
    share: given to a worker. events: what else happens in this process is told there; a worker's go the way of its share.
    """
    bus = events or Events()
    publisher: Publisher = share.events if share is not None else bus
    chain = assemble(config)
    if not c_parser_loaded():
        raise ConfigError(
            "aiohttp runs without its C parser, which is not safe to face clients with; install its wheel"
        )
    if reader == "push":
        try:
            await self_test()
        except RuntimeError as error:
            log.warning("bodies are read by awaiting", reason=str(error))
            reader = "await"
    metrics = Metrics(
        (model for upstream in config.upstreams for model in upstream.model_map),
        (upstream.name for upstream in config.upstreams),
        (link.name for link in chain.links),
    )
    chain.tell(on_plugin_error(log, metrics))
    upstreams = Upstreams(config.upstreams, PushedBody if reader == "push" else AwaitedBody, metrics, log, publisher)
    data = share.data if share is not None else config.store.data(config.folder)
    app = App(config, chain, upstreams, metrics, log, publisher)
    started = False
    leaving = asyncio.Event()
    store: RedisStore | None = None

    def readiness() -> Readiness:
        # A store that goes away later is no reason: it would be one for all relays at once, and each has its policies.
        away = store is not None and not store.reached
        reasons = {"starting": not started, "store away": away, "draining": leaving.is_set() or app.draining}
        said = tuple(reason for reason, holds in reasons.items() if holds)
        return Readiness(not said, said)

    async with AsyncExitStack() as stack:
        admin_port = 0
        if share is None:
            admin_sockets = await listening(stack, config.admin.host, config.admin.port, what="admin listener")
            admin = Admin(metrics, readiness, config.admin.token, events=bus)
            _, admin_port = await accept(stack, ResponseListener(admin.handle), admin_sockets)
            stack.callback(bus.close)  # who listens there is told to the end, and then goes
        store = await stack.enter_async_context(
            opened(
                config.store,
                folder=config.folder,
                data=data,
                log=log,
                metrics=metrics,
                own=share is None,
                events=publisher,
            )
        )
        pulse = None if store is None else await stack.enter_async_context(beating(store, log, publisher))
        services = Services(
            log=log, metrics=metrics, folder=config.folder, data=data, store=store, pulse=pulse, events=publisher
        )
        plugins = [link.plugin for link in chain.links]
        if share is None:
            admin.serve(AdminApi(None if store is None else Administration.of(store, plugins), log))
        await stack.enter_async_context(upstreams)
        for link in chain.links:
            await stack.enter_async_context(link.plugin.lifespan(services))
        stack.push_async_callback(app.settled)  # `on_end` of the last reply comes before the plugins are closed
        public = Listener(
            app.handle,
            on_refusal=app.reports.refused,
            turnstile=app.turnstile,
            keepalive_timeout=config.server.idle_timeout_s,
        )
        sockets = (
            share.sockets
            if share is not None
            else await listening(stack, config.server.host, config.server.port, what="public listener")
        )
        runner, public_port = await accept(stack, public, sockets, share)
        await stack.enter_async_context(lag_told(metrics.lagged, LAG_PERIOD_S))
        watch = asyncio.get_running_loop().create_task(app.watch())
        stack.callback(watch.cancel)
        started = True
        if share is None:
            bus.publish("start", workers=1, pid=os.getpid())
        yield Relay(app, plugins, store, metrics, readiness, (public, runner, public_port), admin_port, leaving)


async def listening(stack: AsyncExitStack, host: str, port: int, *, what: str) -> list[socket.socket]:
    """Sockets that listen on every address of a host, for as long as `stack` is. Raises ConfigError, naming `what`."""
    sockets: list[socket.socket] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            opened = socket.socket(family, kind, protocol)
            sockets.append(opened)
            stack.callback(opened.close)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.setblocking(False)
            opened.bind(address)
            opened.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot open {host}:{port} ({error.strerror or error}); give it another host or port"
        ) from error
    return sockets


async def accept(
    stack: AsyncExitStack, server: Listener, sockets: Sequence[socket.socket], share: Share | None = None
) -> tuple[web.ServerRunner, int]:
    """Serve who comes by listening sockets, for as long as `stack` is; returns what can be told to stop, and the port."""
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    port = int(sockets[0].getsockname()[1])
    for each in sockets:
        seat = () if share is None else (share.board, share.worker)
        await Site(runner, server, each, *seat).start()
    return runner, port


async def serve(
    config: Config, log: Logger, *, reader: Reader = "push", on_ready: Callable[[int, int], None] | None = None
) -> None:
    """Serve until a signal says otherwise; `on_ready` is told the two ports in use. Raises ConfigError."""
    allow_many_files()
    loop = asyncio.get_running_loop()
    stop, now = asyncio.Event(), asyncio.Event()
    events = Events()

    def on_signal() -> None:
        if stop.is_set():
            now.set()
        stop.set()

    had_terminal = os.isatty(2)

    def on_hangup() -> None:
        if terminal_gone(had_terminal):
            on_signal()
        else:
            reason = "one process cannot; set [server] workers to 2 or more, and restart"
            log.warning("not reloaded", reason=reason)
            events.publish("reload", state="refused", reason=reason)

    loop.set_exception_handler(logged_by(log))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    async with running(config, log, reader=reader, events=events) as relay:
        log.info(
            "serving",
            host=config.server.host,
            port=relay.public_port,
            admin_host=config.admin.host,
            admin_port=relay.admin_port,
        )
        settle()
        if on_ready is not None:
            on_ready(relay.public_port, relay.admin_port)
        await stop.wait()
        server = config.server
        log.info("draining", delay_s=server.shutdown_delay_s, grace_s=server.drain_s)
        events.publish("drain", delay_s=server.shutdown_delay_s, grace_s=server.drain_s)
        await hurried(relay.drain(server.shutdown_delay_s, server.drain_s), now, relay.app)
        log.info("stopped")


async def hurried(draining: Coroutine[Any, Any, object], now: asyncio.Event, app: App) -> None:
    """Wait for the end of what drains; when `now` is set, at once."""
    loop = asyncio.get_running_loop()
    draining_task = loop.create_task(draining)
    hurry = loop.create_task(now.wait())
    await asyncio.wait((draining_task, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not draining_task.done():
        draining_task.cancel()
        await app.drain(0)


def settle() -> None:
    """Spare the collector what will not change any more.

    What was built at the start lives as long as the process. Nor need the collector come for every 700 objects: held frames
    are that many at 100 streams, and none of them is a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def terminal_gone(had_terminal: bool) -> bool:
    """Whether a SIGHUP says that the terminal is gone with which the process began. (Else somebody asks for a reload.)"""
    return had_terminal and not os.isatty(2)


def logged_by(log: Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """What nobody caught goes to our log: the loop's own handler writes messages, and those may quote a prompt."""

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Behind these words stands the callback with its arguments, or the object that it is a method of.
        what, callback, _ = str(context.get("message")).partition("Exception in callback")
        log.error("unhandled", what=callback or what, exc_info=context.get("exception"))

    return handler


def allow_many_files() -> None:
    """Every open reply holds two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
