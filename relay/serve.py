"""The life of a relay process: built, opened, served, drained, closed.

Everything that can be wrong with the configuration stops the start before a socket is opened. On SIGTERM or SIGINT
readiness turns red at once and new requests are refused; open replies finish within `drain_s` and are then ended with an
error in the stream; a second signal ends them at once. The public listener goes last.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

from aiohttp import web

from relay.admin import Admin, Readiness
from relay.app import App, on_plugin_error
from relay.assembly import assemble
from relay.body import AwaitedBody, PushedBody, c_parser_loaded, self_test
from relay.config import Config
from relay.http import Listener
from relay.log import Logger
from relay.metrics import Metrics
from relay.options import ConfigError
from relay.plugin import Services
from relay.upstream import Upstreams

Reader = Literal["push", "await"]

BACKLOG = 4096


class Relay:
    """A relay that serves. Ports are the ones in use, also where the configuration says 0."""

    def __init__(self, app: App, public_port: int, admin_port: int) -> None:
        self.app = app
        self.public_port = public_port
        self.admin_port = admin_port


@asynccontextmanager
async def running(config: Config, log: Logger, *, reader: Reader = "push") -> AsyncIterator[Relay]:
    """Serve while the block runs. Raises ConfigError, or OSError if a port is taken.

    reader: how upstream bodies are read; "await" is the plain way, which is also taken where aiohttp cannot be pushed.
    """
    chain = assemble(config, on_plugin_error(log))
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
    )
    upstreams = Upstreams(config.upstreams, PushedBody if reader == "push" else AwaitedBody, metrics, log)
    services = Services(log=log, metrics=metrics, folder=config.folder)
    app = App(config, chain, upstreams, metrics, log)
    started = False

    def readiness() -> Readiness:
        reasons = (() if started else ("starting",)) + (("draining",) if app.draining else ())
        return Readiness(not reasons, reasons)

    admin = Admin(metrics, readiness, config.admin.token)
    async with AsyncExitStack() as stack:
        admin_port = await _listen(
            stack, Listener(admin.handle), config.admin.host, config.admin.port, what="admin listener"
        )
        await stack.enter_async_context(upstreams)
        for link in chain.links:
            await stack.enter_async_context(link.plugin.lifespan(services))
        stack.push_async_callback(app.settled)  # `on_end` of the last reply comes before the plugins are closed
        public = Listener(app.handle, on_refusal=app.refused, keepalive_timeout=config.server.idle_timeout_s)
        public_port = await _listen(stack, public, config.server.host, config.server.port, what="public listener")
        watch = asyncio.get_running_loop().create_task(app.watch())
        stack.callback(watch.cancel)
        started = True
        yield Relay(app, public_port, admin_port)


async def _listen(stack: AsyncExitStack, server: Listener, host: str, port: int, *, what: str) -> int:
    """Open a listener for as long as `stack` is; returns its port."""
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot open {host}:{port} ({error.strerror or error}); give it another host or port"
        ) from error
    return int(runner.addresses[0][1])


async def serve(
    config: Config, log: Logger, *, reader: Reader = "push", on_ready: Callable[[int, int], None] | None = None
) -> None:
    """Serve until a signal says otherwise; `on_ready` is told the two ports in use. Raises ConfigError."""
    allow_many_files()
    loop = asyncio.get_running_loop()
    stop, now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            now.set()
        stop.set()

    loop.set_exception_handler(_logged_by(log))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with running(config, log, reader=reader) as relay:
        log.info(
            "serving",
            host=config.server.host,
            port=relay.public_port,
            admin_host=config.admin.host,
            admin_port=relay.admin_port,
        )
        # What was built at the start lives as long as the process: the collector need not look at it again. Nor need it
        # come for every 700 objects: held frames are that many at 100 streams, and none of them is a cycle.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)
        if on_ready is not None:
            on_ready(relay.public_port, relay.admin_port)
        await stop.wait()
        log.info("draining", grace_s=config.server.drain_s)
        draining = loop.create_task(relay.app.drain(config.server.drain_s))
        hurry = loop.create_task(now.wait())
        await asyncio.wait((draining, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not draining.done():
            draining.cancel()
            await relay.app.drain(0)
        log.info("stopped")


def _logged_by(log: Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """What nobody caught goes to our log: the loop's own handler writes messages, and those may quote a prompt."""

    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("unhandled", what=context.get("message"), exc_info=context.get("exception"))

    return handler


def allow_many_files() -> None:
    """Every open reply holds two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
