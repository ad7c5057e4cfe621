"""`workers = N`: the process that keeps N others serving behind one socket.

The public socket is opened once and every worker accepts on it (`relay.acceptor`), so that no client is refused while workers
come and go. A worker is this same program, started anew (`relay worker`), with a number from 0 that no other living one has.

* A worker that dies is replaced, at once the first time, then after pauses that grow. One whose loop stands still for
  `HANG_S` is killed, and replaced. Where no worker can serve the configuration of the start, the supervisor ends.
* A reload (SIGHUP, `POST /admin/reload`; `relay.reloading`): the file is read again, and workers of the new configuration take the place of the old one by one, each old one
  leaving when a new one serves: it takes no new connections, and ends with its last open reply. If the new
  configuration is refused, or its first worker dies before it serves, nothing changes. What the supervisor itself has opened
  stays as it was: the two listeners, the admin token and the store take a restart.
* SIGTERM, SIGINT: as of one process. All workers drain; a second signal ends replies at once, a third one the workers.
* The supervisor is ready while at least one worker is: any of them takes what comes. With fewer ready than there should be
  the reasons say so, also in an answer of 200.
* If the supervisor is killed, its workers notice, and leave. See `relay.worker`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.acceptor import Board
from relay.admin import Readiness
from relay.config import Config
from relay.control import TO_SUPERVISOR, Assignment, Line, News, Order, Report
from relay.events import Event, Events
from relay.log import Logger
from relay.metrics.workers import Crew, WorkersMetrics
from relay.options import ConfigError
from relay.pure.roster import Member, Plan, State, free_number, outstayed, plan, wait_s
from relay.serve import Reader

TICK_S = 1.0
# Without a word from it, a worker has so long; and so long before it serves for the first time, while plugins are built.
HANG_S = 10.0
START_HANG_S = 300.0
# Between the deaths of workers; who has lived so long has not died of the same.
FIRST_WAIT_S = 0.2
MAX_WAIT_S = 10.0
STEADY_S = 60.0

# `-m` looks for us in the working directory first, which it should only where that is how we were found.
_PYTHON = (sys.executable, *(() if sys.path[:1] in ([""], [os.getcwd()]) else ("-P",)), "-m", "relay")


@dataclass(frozen=True)
class Source:
    """A configuration as it was read, and its place among those that were."""

    generation: int
    config: Config


@dataclass(eq=False)
class Worker:
    """A process, seen from here.

    deaf: it takes no new connections any more. silent: ticks since it said something; hung: it has been killed for that.
    """

    number: int
    source: Source
    process: Process
    line: Line[Report | News]
    started_at: float
    state: State = "starting"
    served: bool = False
    deaf: bool = False
    silent: int = 0
    hung: bool = False
    reasons: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def member(self) -> Member:
        return Member(self.number, self.source.generation, self.state)


@dataclass(kw_only=True)
class Means:
    """What every worker gets."""

    sockets: Sequence[socket.socket]
    store_url: str
    store_prefix: str
    metrics: Path
    data: Path
    log_level: str
    reader: Reader


class Supervisor:
    """Keeps workers serving.

    on_ready: called when as many serve as are wanted, for the first time. on_described: called with what a worker says of the
    configuration that it serves, its key names and grants. events: where is told what happens here and at the workers.
    """

    def __init__(
        self,
        source: Source,
        means: Means,
        log: Logger,
        on_ready: Callable[[], None],
        on_described: Callable[[Collection[str], Mapping[str, int]], None],
        events: Events | None = None,
    ) -> None:
        self.metrics = WorkersMetrics(means.metrics, self._crew)
        self._means = means
        self._board = Board.make(means.metrics)
        self._log = log
        self._on_ready = on_ready
        self._on_described = on_described
        self._events = events or Events()
        self._first = source.config
        self._source = source
        self._trial: Source | None = source  # what none has served yet
        self._proven = False  # whether some worker has served `_source`
        self._arrived_at: Source | None = None  # what all serve, or did before one died
        self._generations = source.generation
        self._workers: dict[int, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._replacing: asyncio.Future[int] | None = None  # done when all workers run what they are to run
        self._signals = 0
        self._failed: ConfigError | None = None
        self._deaths = 0
        self._not_before = 0.0

    # What others ask

    @property
    def config(self) -> Config:
        """What is served."""
        return self._source.config

    def readiness(self) -> Readiness:
        if self._signals:
            return Readiness(False, ("draining",))
        wanted = self._wanted.config.server.workers
        serving = [worker for worker in self._workers.values() if worker.state == "serving"]
        ready = [worker for worker in serving if not worker.reasons]
        reasons = () if len(ready) >= wanted else (f"{len(ready)} of {wanted} workers are ready",)
        own = dict.fromkeys(reason for worker in serving for reason in worker.reasons)
        return Readiness(bool(ready), (*reasons, *own))

    def _crew(self) -> Crew:
        workers = tuple(self._workers.values())
        states: dict[str, int] = {}
        for worker in workers:
            states[worker.state] = states.get(worker.state, 0) + 1
        return Crew(states, {worker.number: worker.process.pid for worker in workers})

    # What it does

    async def run(self) -> None:
        """Keep workers until stopped. Raises ConfigError if none can serve the first configuration."""
        ticking = asyncio.get_running_loop().create_task(self._tick())
        try:
            while not self._failed and (self._workers or not self._signals):
                self._news.clear()
                if self._signals and all(worker.deaf for worker in self._workers.values()):
                    self._hang_up()
                wait = None if self._signals else await self._act()
                try:
                    async with asyncio.timeout(wait):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            ticking.cancel()
            for worker in self._workers.values():
                self._kill(worker)
            while self._tasks:
                await asyncio.wait(tuple(self._tasks))
        if self._failed:
            raise self._failed

    @property
    def _wanted(self) -> Source:
        return self._trial or self._source

    async def _act(self) -> float | None:
        """Do what is to be done now; returns in how many seconds there is more, if nothing happens before."""
        wanted = self._wanted
        members = [worker.member for worker in self._workers.values()]
        told = plan(members, wanted.generation, wanted.config.server.workers)
        for number in told.dismiss:
            self._dismiss(self._workers[number])
        wait = self._not_before - asyncio.get_running_loop().time()
        if told.start and wait > 0:
            return wait
        for _ in range(told.start):
            if self._signals or not await self._start(wanted):
                break
        settled = all(worker.state == "serving" or worker.deaf for worker in self._workers.values())
        if told == Plan() and not self._trial and settled:
            self._arrived()
        return None

    def _arrived(self) -> None:
        """As many as are wanted serve what is wanted."""
        if self._arrived_at is None:
            self._on_ready()
        if self._replacing is not None and not self._replacing.done():
            self._replacing.set_result(self._source.config.server.workers)
        self._arrived_at = self._source

    async def _start(self, source: Source) -> bool:
        """Start a worker. Whether that could be; if not, it is tried again later."""
        loop = asyncio.get_running_loop()
        number = free_number(worker.member for worker in self._workers.values())
        means = self._means
        ours, theirs = socket.socketpair()
        sockets = tuple(each.fileno() for each in means.sockets)
        try:
            process = await asyncio.create_subprocess_exec(
                *_PYTHON,
                "worker",
                str(theirs.fileno()),
                stdin=DEVNULL,
                pass_fds=(theirs.fileno(), *sockets),
                start_new_session=True,  # Ctrl-C is meant for the supervisor
            )
        except OSError as error:
            ours.close()
            self._log.error("a worker cannot be started", reason=error.strerror)
            self._again_later(lived_s=0.0)
            self._news.set()
            return False
        finally:
            theirs.close()
        worker = Worker(number, source, process, await Line.open(ours, TO_SUPERVISOR), loop.time())
        worker.line.send(
            Assignment(
                worker=number,
                config=source.config.text,
                path=str(source.config.path),
                store_url=means.store_url,
                store_prefix=means.store_prefix,
                sockets=sockets,
                metrics=str(means.metrics),
                data=str(means.data),
                log_level=means.log_level,
                reader=means.reader,
            )
        )
        self._workers[number] = worker
        task = loop.create_task(self._attend(worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._signals:  # while it was being started
            self._dismiss(worker)
        return True

    async def _attend(self, worker: Worker) -> None:
        """Hear what a worker says, to its end."""
        while (report := await worker.line.receive()) is not None:
            if isinstance(report, News):
                for event in report.events:
                    self._events.take(Event(event.at, event.kind, {**event.fields, "worker": worker.number}))
                continue
            worker.silent = 0
            worker.reasons = report.reasons
            worker.refused = report.refused or worker.refused
            if report.state == "leaving" and not worker.deaf:
                worker.deaf = True
                self._news.set()
            if report.key_names is not None and worker.source is self._wanted:
                self._on_described(report.key_names, report.grants)
            if report.leave and worker.state == "serving":
                self._dismiss(worker)
            elif report.leave:
                worker.line.send(Order("drain"))
            if report.state == "serving" and worker.state == "starting":
                self._serves(worker)
        status = await worker.process.wait()
        await worker.line.close()
        self._ended(worker, status)

    def _serves(self, worker: Worker) -> None:
        worker.state, worker.served = "serving", True
        self._log.info("worker serves", worker=worker.number, pid=worker.process.pid)
        self._events.publish("worker", worker=worker.number, state="serves", pid=worker.process.pid)
        if worker.source is self._trial:
            self._source, self._trial, self._proven = self._trial, None, True
        self._news.set()

    def _ended(self, worker: Worker, status: int) -> None:
        del self._workers[worker.number]
        dismissed = worker.state == "leaving"
        reason: Literal["left", "died", "hung", "refused"] = "died"
        if worker.refused:
            reason = "refused"
        elif worker.hung or status == -signal.SIGALRM:
            reason = "hung"
        elif dismissed and (status == 0 or not worker.served):
            reason = "left"
        self.metrics.ended(worker.number, reason)
        self._board.remove(worker.number)
        told = {"worker": worker.number, "pid": worker.process.pid, "reason": reason, "status": status}
        pid = worker.process.pid
        self._events.publish("worker", worker=worker.number, state="ended", reason=reason, pid=pid, exit_status=status)
        if reason == "left" or self._failed:
            self._log.info("worker ended", **told)
        elif worker.source is self._trial and not dismissed:
            self._refuse(worker, status)
        else:
            self._log.error("worker ended", **told, problems=worker.refused)
            if not dismissed:
                self._again_later(asyncio.get_running_loop().time() - worker.started_at)
        self._news.set()

    def _refuse(self, worker: Worker, status: int) -> None:
        """No worker has served the configuration that is on trial, and this one did not come to it."""
        what = f"ended with status {status}" if status >= 0 else f"was killed ({signal.strsignal(-status)})"
        problems = worker.refused or (f"a worker {what} before it served; what it wrote to standard error says more",)
        if worker.source is self._source:
            self._failed = ConfigError(*problems)
        else:
            self._overtake(*problems)
        # Where a reload came before anybody had served the first one, that is to be tried still.
        self._trial = None if self._proven else self._source

    def _again_later(self, lived_s: float) -> None:
        self._deaths = 1 if lived_s > STEADY_S else self._deaths + 1
        wait = wait_s(self._deaths, FIRST_WAIT_S, MAX_WAIT_S)
        self._not_before = asyncio.get_running_loop().time() + wait
        if wait:
            self._log.warning("workers die one after the other", deaths=self._deaths, wait_s=wait)

    def _dismiss(self, worker: Worker) -> None:
        if worker.state == "starting":
            self._kill(worker)  # it has served nobody
        else:
            worker.line.send(Order("retire"))
        worker.state = "leaving"
        for number in outstayed(each.member for each in self._workers.values()):
            self._workers[number].line.send(Order("drain"))
        self._news.set()

    def _hang_up(self) -> None:
        """Whoever comes now is to be refused, and not to wait for nobody."""
        for each in self._means.sockets:
            each.close()

    def _kill(self, worker: Worker) -> None:
        if worker.process.returncode is None:
            worker.process.kill()

    async def _tick(self) -> None:
        # Ticks are counted, not seconds: if this process was stopped for a while, it did not hear them.
        while True:
            await asyncio.sleep(TICK_S)
            for worker in tuple(self._workers.values()):
                worker.silent += 1
                limit_s = HANG_S if worker.served else START_HANG_S
                if worker.silent * TICK_S > limit_s and not worker.hung:
                    self._log.error("worker hangs", worker=worker.number, pid=worker.process.pid, silent_s=limit_s)
                    worker.hung = True
                    self._kill(worker)

    # Signals

    def stop(self) -> None:
        """Have all workers drain; the second time end their replies at once; after that, end them."""
        self._signals += 1
        if self._signals == 1:
            self._overtake("the relay is stopping")
            server = self._source.config.server
            self._events.publish("drain", delay_s=server.shutdown_delay_s, grace_s=server.drain_s)
        for worker in tuple(self._workers.values()):
            if self._signals > 2 or worker.state == "starting":
                self._kill(worker)
            else:
                worker.line.send(Order("drain" if self._signals == 1 else "now"))
            worker.state = "leaving"
        self._news.set()

    async def serve(self, config: Config) -> int:
        """Have workers that run it take the place of those that do not; returns how many, when they have.

        Raises ConfigError if no worker can serve it, and then nothing has changed; or if it was overtaken.
        """
        self._overtake("a later reload has taken its place")
        if self._signals:
            raise ConfigError("the relay is stopping")
        self._generations += 1
        self._trial = Source(self._generations, config)
        self._not_before = 0.0
        replacing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._replacing = replacing
        self._news.set()
        return await replacing

    def _overtake(self, *problems: str) -> None:
        """What is being served in the place of something else is not, or not any more."""
        if self._replacing is not None and not self._replacing.done():
            self._replacing.set_exception(ConfigError(*problems))
