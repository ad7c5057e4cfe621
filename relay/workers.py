"""`workers = N`, the whole of it: what the supervisor's process opens, and what it answers.

It owns the public socket, the admin listener, the counts of all and the embedded store; `relay.supervisor` keeps the workers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack

from aiohttp import web

from relay.admin import Admin
from relay.admin_api import AdminApi
from relay.administration import Administration
from relay.config import Config
from relay.events import Events
from relay.listener import ResponseListener
from relay.log import Logger
from relay.metrics import Metrics
from relay.metrics.workers import SUPERVISOR, share, shared_folder
from relay.reloading import Reloader
from relay.secret import Secret
from relay.serve import Reader, accept, allow_many_files, listening, logged_by
from relay.signals import Signals
from relay.store.opening import opened
from relay.store.port import Store
from relay.supervisor import Means, Source, Supervisor

# How often what the supervisor knows of its store is written where it is read.
LOOK_S = 1.0


class Desk:
    """What the admin listener answers: anew whenever a worker says what is served."""

    def __init__(self, store: Store | None, token: Secret | None, log: Logger, events: Events | None = None) -> None:
        self._events = events or Events()
        self._store = store
        self._token = token
        self._log = log
        self._supervisor: Supervisor
        self._reloader: Reloader
        self._admin: Admin

    def open(self, supervisor: Supervisor, reloader: Reloader) -> None:
        """Before the first request. Which keys are configured, and what is granted, the first worker says that serves."""
        self._supervisor = supervisor
        self._reloader = reloader
        self._admin = Admin(supervisor.metrics, supervisor.readiness, self._token, events=self._events)

    def described(self, key_names: Collection[str], grants: Mapping[str, int]) -> None:
        store, asked = self._store, self._supervisor
        api = AdminApi(None if store is None else Administration(store, key_names, grants), self._log)
        self._admin = Admin(asked.metrics, asked.readiness, self._token, api, self._events)
        self._admin.reloads(self._reloader.reload)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._admin.handle(request)


async def _look(metrics: Metrics) -> None:
    """Let what the supervisor knows of its store be read, until cancelled."""
    while True:
        metrics.look()
        await asyncio.sleep(LOOK_S)


async def supervise(
    config: Config, log: Logger, *, log_level: str, reader: Reader = "push", watch: bool = False
) -> None:
    """Serve with several workers until a signal says otherwise. Raises ConfigError.

    watch: reload when the file of the configuration changes.
    """
    allow_many_files()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logged_by(log))
    signals = Signals()
    try:
        await _supervise(config, log, signals, log_level=log_level, reader=reader, watch=watch)
    except asyncio.CancelledError:
        if not signals.stopped:
            raise
        log.info("stopped before it was started")
    else:
        log.info("stopped")


async def _supervise(
    config: Config, log: Logger, signals: Signals, *, log_level: str, reader: Reader, watch: bool
) -> None:
    loop = asyncio.get_running_loop()
    server, admin = config.server, config.admin
    events = Events()
    async with AsyncExitStack() as stack:
        admin_sockets = await listening(stack, admin.host, admin.port, what="admin listener")
        sockets = await listening(stack, server.host, server.port, what="public listener")
        folder = stack.enter_context(shared_folder())
        share(folder, SUPERVISOR)
        metrics = Metrics()
        data = config.store.data(config.folder)
        store = await stack.enter_async_context(
            opened(config.store, folder=config.folder, data=data, log=log, metrics=metrics, events=events)
        )
        means = Means(
            sockets=sockets,
            store_url=config.store.url.reveal(),
            store_prefix=config.store.prefix,
            metrics=folder,
            data=data,
            log_level=log_level,
            reader=reader,
        )

        def serving() -> None:
            log.info(
                "serving",
                host=server.host,
                port=sockets[0].getsockname()[1],
                admin_host=admin.host,
                admin_port=admin_port,
                workers=server.workers,
            )
            events.publish("start", workers=server.workers, pid=os.getpid())

        desk = Desk(store, admin.token, log, events)
        supervisor = Supervisor(Source(0, config), means, log, serving, desk.described, events)
        reloader = Reloader(config, supervisor.serve, log, metrics, events)
        desk.open(supervisor, reloader)
        stack.push_async_callback(reloader.close)
        _, admin_port = await accept(stack, ResponseListener(desk.handle), admin_sockets)
        stack.callback(events.close)  # who listens there is told to the end, and then goes
        stack.callback(loop.create_task(_look(metrics)).cancel)

        def on_stop() -> None:
            supervisor.stop()
            now = supervisor.config.server
            log.info("draining", delay_s=now.shutdown_delay_s, grace_s=now.drain_s)

        signals.open(on_stop, reloader.ask)
        if watch:
            await stack.enter_async_context(reloader.watching())
        await supervisor.run()
