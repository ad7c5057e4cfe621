"""One of several processes that serve behind one socket, as their supervisor tells them (`relay.supervisor`).

It opens no listener: it accepts on the socket that it got, and what it counts is written to files that the supervisor
reads. It leaves when it is told to, and when the supervisor is gone: what is open then ends within `drain_s`, but where others
take its place it has as long as it takes.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from relay.acceptor import Board
from relay.administration import described
from relay.config import Config, parse
from relay.control import TO_WORKER, Assignment, Line, Order, Report
from relay.forwarding import Forwarding
from relay.log import Logger, configure
from relay.metrics.workers import share
from relay.options import ConfigError
from relay.pure.roster import State
from relay.secret import Secret
from relay.serve import Relay, Share, allow_many_files, hurried, logged_by, running, settle
from relay.uncaught import told_to

BEAT_S = 1.0
# If the loop stands still and no supervisor is there any more to see it, the system ends the process: SIGALRM.
ALARM_S = 30.0
# Until the loop runs: plugins are imported and built, and may take their time.
START_ALARM_S = 330.0


async def work(descriptor: int) -> int:
    """Work at the end of the line that a descriptor is; returns the status of the process."""
    signal.setitimer(signal.ITIMER_REAL, START_ALARM_S)
    line = await Line.open(socket.socket(fileno=descriptor), TO_WORKER)
    given = await line.receive()
    if not isinstance(given, Assignment):
        return 0  # the supervisor was gone before it said anything
    worker = Worker(given, line)
    told_to(worker.log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.asked)
    loop.set_exception_handler(logged_by(worker.log))
    try:
        return await worker.run()
    finally:
        await line.close()


class Worker:
    """A worker's life."""

    def __init__(self, given: Assignment, line: Line[Assignment | Order]) -> None:
        self.log: Logger = configure(level=given.log_level).bind(worker=given.worker)
        self._given = given
        self._line = line
        self._state: State = "starting"
        self._relay: Relay | None = None
        self._order = asyncio.Event()
        self._drain = asyncio.Event()  # what is open has `drain_s` from then on
        self._now = asyncio.Event()
        self._retiring = False

    async def run(self) -> int:
        """Serve until told otherwise."""
        loop = asyncio.get_running_loop()
        serving = loop.create_task(self._serve())
        others = (loop.create_task(self._beat()), loop.create_task(self._listen(serving)))
        try:
            await serving
        except ConfigError as error:
            self._line.send(Report(state=self._state, refused=error.problems))
            return 2
        except asyncio.CancelledError:
            return 0  # told to leave before it served
        finally:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
        return 0

    async def _serve(self) -> None:
        given = self._given
        config = self._config()
        share(Path(given.metrics), given.worker)
        sockets = [socket.socket(fileno=descriptor) for descriptor in given.sockets]
        allow_many_files()
        board = Board(Path(given.metrics))
        events = Forwarding(self._line.send, lambda: self._line.backlog)
        part = Share(worker=given.worker, board=board, sockets=sockets, data=Path(given.data), events=events)
        async with AsyncExitStack() as stack:
            stack.callback(events.flush)
            relay = await stack.enter_async_context(running(config, self.log, reader=given.reader, share=part))
            settle()
            self._relay = relay
            self._state = "serving"
            names, grants = described(relay.plugins)
            self._line.send(Report(state=self._state, key_names=tuple(names), grants=dict(grants)))
            await relay.until(self._order)
            server = config.server
            deaf, now = partial(self._is, "leaving"), partial(relay.app.drain, 0)
            if self._retiring:

                async def drained() -> None:
                    await hurried(relay.app.drain(server.shutdown_delay_s + server.drain_s), self._now, now)

                await hurried(relay.retire(None, deaf), self._drain, drained)
            else:
                await hurried(relay.drain(server.shutdown_delay_s, server.drain_s, deaf), self._now, now)

    def _config(self) -> Config:
        config = parse(self._given.config, Path(self._given.path))
        store = msgspec.structs.replace(
            config.store, url=Secret(self._given.store_url), prefix=self._given.store_prefix
        )
        return msgspec.structs.replace(config, store=store)

    def asked(self) -> None:
        """Somebody has sent a signal to this process. What becomes of it the supervisor says."""
        self._line.send(Report(state=self._state, leave=True))

    def _is(self, state: State) -> None:
        self._state = state
        self._report()

    def _report(self) -> None:
        reasons: tuple[str, ...] = ()
        if self._relay is not None:
            # The supervisor asks for what was counted, not for how things stand.
            self._relay.metrics.look()
            reasons = self._relay.readiness().reasons
        self._line.send(Report(state=self._state, reasons=reasons))

    async def _beat(self) -> None:
        while True:
            signal.setitimer(signal.ITIMER_REAL, START_ALARM_S if self._state == "starting" else ALARM_S)
            self._report()
            await asyncio.sleep(BEAT_S)

    async def _listen(self, serving: asyncio.Task[None]) -> None:
        """Do as told."""
        while (order := await self._line.receive()) is not None:
            if isinstance(order, Order):
                if order.do == "now":
                    self._now.set()
                if order.do != "retire":
                    self._drain.set()
                self._leave(serving, retire=order.do == "retire")
        # Whoever comes next may want the port.
        self.log.warning("the supervisor is gone", worker_state=self._state)
        self._drain.set()
        self._leave(serving, retire=True)

    def _leave(self, serving: asyncio.Task[None], *, retire: bool) -> None:
        if not self._order.is_set():
            self._order.set()
            self._retiring = retire
            if self._state == "starting":
                serving.cancel()
