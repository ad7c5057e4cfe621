"""The life of a relay process: built, opened, served, drained, closed.

Everything that can be wrong with the configuration stops the start before a socket is opened. On SIGTERM or SIGINT
readiness turns red at once and new requests are refused; open replies finish within `drain_s` and are then ended with an
error in the stream; a second signal ends them at once. The public listener goes last.

With `shutdown_delay_s` nobody is refused: so long, until a balancer has seen that readiness is red, all are served and told
to come by another connection; then the listener is closed, and what is open finishes within `drain_s`.

On SIGHUP relay.toml is read again, and what it says takes the place of what it said: requests begin on the new chain, those
that are under way end on the old one (`relay.generation`). On any error nothing changes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from aiohttp import web

from relay.acceptor import Board, Site
from relay.admin import Admin, Readiness
from relay.admin_api import AdminApi
from relay.administration import Administration
from relay.app import App
from relay.body import AwaitedBody, Body, PushedBody, c_parser_loaded, self_test
from relay.config import Config
from relay.events import Events, Publisher
from relay.generations import Generations
from relay.lag import lag_told
from relay.listener import Listener, ResponseListener
from relay.log import Logger
from relay.metrics import LAG_PERIOD_S, Metrics
from relay.options import ConfigError
from relay.plugin import Plugin, Services
from relay.reloading import Reloader
from relay.reply import Reply
from relay.signals import Signals
from relay.store.opening import opened
from relay.store.port import Store
from relay.store.pulse import beating
from relay.store.redis import RedisStore
from relay.watchdog import watched

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
    """A relay that serves. listener: of clients. Ports are the ones in use, also where the configuration says 0.

    A worker has no admin port, and no reloader: its supervisor has them.
    """

    reloader: Reloader

    def __init__(
        self,
        app: App,
        generations: Generations,
        store: Store | None,
        metrics: Metrics,
        readiness: Callable[[], Readiness],
        public: tuple[Listener, web.ServerRunner, int],
        admin_port: int,
        leaving: asyncio.Event,
        described: Callable[[], None],
    ) -> None:
        self.app = app
        self._generations = generations
        self.store = store
        self.metrics = metrics
        self.readiness = readiness
        self._described = described
        self.public_port = public[2]
        self.admin_port = admin_port
        self._leaving = leaving
        self.listener, self._runner = public[:2]

    @property
    def config(self) -> Config:
        """What is served now."""
        return self._generations.current.config

    @property
    def plugins(self) -> Sequence[Plugin]:
        """Those of the chain that is served now."""
        return [link.plugin for link in self._generations.current.chain.links]

    async def until(self, event: asyncio.Event) -> None:
        """Returns when it is set. Raises what has ended the lifespan of a plugin, if that happens before."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait((waiting, self._generations.broken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._generations.broken.done():
            self._generations.broken.result()

    async def reload(self, config: Config) -> int:
        """Have requests begin on `config` from now on; returns how many processes serve it. Raises ConfigError, and then
        nothing has changed.
        """
        await self._generations.replace(config)
        current = self._generations.current
        self.app.generation = current
        self.listener.keep(current.server.idle_timeout_s)
        self._described()
        return 1

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

    async def retire(self, grace_s: float | None, on_deaf: Callable[[], None] = lambda: None) -> None:
        """Take no new connections, for there are others who do, and say so to `on_deaf`; serve the open ones.

        Each answer says that it is the connection's last. At the end of the grace what is open is ended; None: it has as
        long as it takes.
        """
        for site in self._runner.sites:
            await site.stop()
        self.listener.leave()
        on_deaf()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s) as timer:
                await self.listener.empty(LINGER_S)
        end = timer.when() or 0.0
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
    metrics = Metrics()
    generations = Generations(await _body_read_by(reader, log), metrics, log, publisher)
    generations.begin(config)
    data = share.data if share is not None else config.store.data(config.folder)
    app = App(generations.current, metrics, log, publisher)
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
        opening = opened(
            config.store, folder=config.folder, data=data, log=log, metrics=metrics, own=share is None, events=publisher
        )
        store = await stack.enter_async_context(opening)
        pulse = None if store is None else await stack.enter_async_context(beating(store, log, publisher))

        def described() -> None:
            if share is None:
                plugins = [link.plugin for link in generations.current.chain.links]
                admin.serve(AdminApi(None if store is None else Administration.of(store, plugins), log))

        described()
        await generations.open(Services(log, metrics, config.folder, data, store, pulse, publisher))
        stack.push_async_callback(generations.close)
        stack.push_async_callback(app.settled)  # `on_end` of the last reply comes before the plugins are closed
        public = Listener(app.handle, on_refusal=app.reports.refused, turnstile=app.turnstile)
        public.keep(config.server.idle_timeout_s)
        sockets = (
            share.sockets
            if share is not None
            else await listening(stack, config.server.host, config.server.port, what="public listener")
        )
        runner, public_port = await accept(stack, public, sockets, share)
        await stack.enter_async_context(lag_told(metrics.lagged, LAG_PERIOD_S))
        await stack.enter_async_context(watched(generations.modules, log, metrics.requests.blocked))
        stack.callback(asyncio.get_running_loop().create_task(app.watch()).cancel)
        started = True
        if share is None:
            bus.publish("start", workers=1, pid=os.getpid())
        served = public, runner, public_port
        relay = Relay(app, generations, store, metrics, readiness, served, admin_port, leaving, described)
        if share is None:
            relay.reloader = Reloader(config, relay.reload, log, metrics, bus)
            stack.push_async_callback(relay.reloader.close)
            admin.reloads(relay.reloader.reload)
        yield relay


async def _body_read_by(reader: Reader, log: Logger) -> Callable[[Reply], Body]:
    """What reads bodies so, or by awaiting where aiohttp cannot be pushed. Raises ConfigError."""
    if not c_parser_loaded():
        raise ConfigError(
            "aiohttp runs without its C parser, which is not safe to face clients with; install its wheel"
        )
    if reader == "await":
        return AwaitedBody
    try:
        await self_test()
    except RuntimeError as error:
        log.warning("bodies are read by awaiting", reason=str(error))
        return AwaitedBody
    return PushedBody


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
    config: Config,
    log: Logger,
    *,
    reader: Reader = "push",
    watch: bool = False,
    on_ready: Callable[[int, int], None] | None = None,
) -> None:
    """Serve until a signal says otherwise; `on_ready` is told the two ports in use. Raises ConfigError.

    watch: reload when the file of the configuration changes.
    """
    allow_many_files()
    loop = asyncio.get_running_loop()
    stop, now = asyncio.Event(), asyncio.Event()
    events = Events()

    def on_stop() -> None:
        if stop.is_set():
            now.set()
        stop.set()

    loop.set_exception_handler(logged_by(log))
    signals = Signals()
    async with AsyncExitStack() as stack:
        try:
            relay = await stack.enter_async_context(running(config, log, reader=reader, events=events))
        except asyncio.CancelledError:
            if not signals.stopped:
                raise
            log.info("stopped before it was started")
            return
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
        signals.open(on_stop, relay.reloader.ask)
        async with relay.reloader.watching() if watch else nullcontext():
            await relay.until(stop)
        server = relay.config.server
        log.info("draining", delay_s=server.shutdown_delay_s, grace_s=server.drain_s)
        events.publish("drain", delay_s=server.shutdown_delay_s, grace_s=server.drain_s)
        await hurried(relay.drain(server.shutdown_delay_s, server.drain_s), now, partial(relay.app.drain, 0))
        log.info("stopped")


async def hurried(
    draining: Coroutine[Any, Any, object], now: asyncio.Event, hurry: Callable[[], Awaitable[object]]
) -> None:
    """Wait for the end of what drains; when `now` is set before, for that of `hurry` in its place."""
    loop = asyncio.get_running_loop()
    draining_task = loop.create_task(draining)
    told = loop.create_task(now.wait())
    await asyncio.wait((draining_task, told), return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not draining_task.done():
        draining_task.cancel()
        await hurry()


def settle() -> None:
    """Spare the collector what will not change any more.

    What was built at the start lives as long as the process. Nor need the collector come for every 700 objects: held frames
    are that many at 100 streams, and none of them is a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


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
