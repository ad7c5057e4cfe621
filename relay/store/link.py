"""One connection to one server, on which many commands are on their way at a time.

What is asked for in one turn of the loop is a `Turn` and goes in one write. Answers come in the order of the commands, so
a command that nobody waits for any more (its time was over, its caller was cancelled) costs no more than its place in
the queue. The connection is redis-py's, which makes it (TLS, password, database); one task writes to it, one reads.

A link is made anew when it breaks, or when its server has been silent for `SILENT_S`: by the next command, never by a
loop of its own. Its breaker spares callers the wait for a server that does not answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, Protocol

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from relay.pure.breaker import NO_TICKET, Breaker
from relay.store.port import Script, StoreError, Trouble

# Commands that a link has not answered; at 200 bytes each that is under a megabyte. Who asks for more is refused.
MAX_COMMANDS: Final = 4096
# How long making a connection may take: callers do not wait for so long, the next ones find it made.
CONNECT_S: Final = 2.0
# A server that answers nothing for so long gets a new connection: on the old one it may never (a black hole).
SILENT_S: Final = 1.0
# A timer that comes so late tells of a loop that was busy: the answer may lie there unread, and gets the time to be.
LATE_S: Final = 0.01
GRACE_S: Final = 0.005
# A store is asked often and answers in a millisecond, so a short silence says it all; and it may be back any time.
SILENCES: Final = ((5, 0.4), (3, 0.7))
FIRST_OPEN_S: Final = 0.25
MAX_OPEN_S: Final = 1.0


class Observer(Protocol):
    """Who is told how it goes. Troubles of single commands; and of each write how many did well, in how many seconds."""

    def answered(self, commands: int, seconds: float) -> None: ...

    def failed(self, trouble: Trouble) -> None: ...


class Command:
    """A script that shall run. hear: gets what the server says to it. sent: it may have run already."""

    __slots__ = ("asking", "dropped", "future", "hear", "hops", "packed", "rest", "script", "sent", "turn")

    def __init__(
        self,
        script: Script,
        rest: tuple[Any, ...],
        future: asyncio.Future[Any],
        hear: Callable[[Link, Command, Any], None],
    ) -> None:
        self.script = script
        self.rest = rest
        self.future = future
        self.hear = hear
        self.packed = hiredis.pack_command(("EVALSHA", script.sha, *rest))  # raises TypeError for what is no Arg
        self.turn: Turn
        self.asking = False
        self.hops = 0
        self.sent = False
        self.dropped = False

    def make_whole(self) -> None:
        """Send the source: this server does not know the script."""
        self.packed = hiredis.pack_command(("EVAL", self.script.source, *self.rest))

    def fail(self, error: StoreError) -> bool:
        """Whether somebody waited for it."""
        if self.future.done():
            return False
        self.future.set_exception(error)
        self.future.exception()  # that nobody waits any more is not worth a line in the log
        return True


class Turn:
    """The commands of one turn of the loop. left: those without an answer; over: nothing more is to be known of it."""

    __slots__ = ("commands", "deadline", "good", "left", "moved", "over", "start", "ticket", "timer")

    def __init__(self, ticket: int, deadline: float) -> None:
        self.commands: list[Command] = []
        self.ticket = ticket
        self.deadline = deadline
        self.start = perf_counter()
        self.timer: asyncio.TimerHandle | None = None
        self.left = 0
        self.good = 0
        self.moved = False  # a command of it waits at another link, for no longer than this turn may take
        self.over = False


class Link:
    """dial: gives a connection that is open, or raises RedisError or OSError. failing: called when it has failed."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[AbstractConnection]],
        timeout_s: float,
        observer: Observer,
        failing: Callable[[], None] = lambda: None,
    ) -> None:
        self._dial = dial
        self._timeout_s = timeout_s
        self._observer = observer
        self._failing = failing
        self._loop = asyncio.get_running_loop()
        self._breaker = Breaker(silences=SILENCES, first_open_s=FIRST_OPEN_S, max_open_s=MAX_OPEN_S)
        self._turn: Turn | None = None  # the one that is being filled
        self._turns: set[Turn] = set()  # that are not over
        self._pending: list[Command] = []  # not written yet
        self._on_way: deque[Command | None] = deque()  # None: the answer to ASKING, which nobody waits for
        self._asked_at = self._heard_at = 0.0
        self._made: AbstractConnection | None = None  # by `connect`, for the task to take
        self._task: asyncio.Task[None] | None = None
        self._awake: asyncio.Future[None] | None = None
        self.reached = False  # ever
        self._renewing = False
        self._writing = False
        self._closed = False
        self._settled: asyncio.Future[None] | None = None  # while it is being closed

    @property
    def asked(self) -> bool:
        """Whether its server is asked now: it has not just failed again and again."""
        return self._breaker.state == "closed"

    def send(self, command: Command) -> None:
        """Have a command go with this turn's. Its future hears of it, at once if it cannot go."""
        if len(self._pending) + len(self._on_way) >= MAX_COMMANDS:
            self._refuse(command, "slow")
            return
        turn = self._turn
        if turn is None:
            now = self._loop.time()
            ticket = self._breaker.enter(now)
            if self._closed or ticket == NO_TICKET:
                self._refuse(command, "away" if self._closed else "breaker")
                return
            turn = self._turn = Turn(ticket, now + self._timeout_s)
            turn.timer = self._loop.call_later(self._timeout_s, self._expire, turn)
            self._turns.add(turn)
            if not self._wake():
                self._loop.call_soon(self._close_turn)  # nobody takes it now, but it is as full as it gets
        command.turn = turn
        turn.commands.append(command)
        turn.left += 1
        self._pending.append(command)

    def repeat(self, command: Command) -> None:
        """Send again what has an answer and is not done, in the time that it has left."""
        command.turn.left += 1
        self._pending.append(command)
        self._wake()

    def renew(self) -> None:
        """Make a new connection: this one leads to a server that does not do."""
        self._renewing = True
        self._wake()
        if self._writing and self._task is not None:
            self._task.cancel()  # it waits for a server that reads nothing

    async def connect(self) -> None:
        """Connect now. Raises what redis-py raises, or TimeoutError."""
        if self._task is None:
            async with asyncio.timeout(CONNECT_S):
                self._made = await self._dial()
            self._task = self._loop.create_task(self._live())
            self.reached = True

    async def aclose(self) -> None:
        """Close it when what is on its way was answered, or its time is over."""
        self._closed = True
        if self._turns:
            self._settled = self._loop.create_future()
            await self._settled
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._made is not None:  # its task was cancelled before it began
            await self._made.disconnect()

    # The life of a connection

    def _wake(self) -> bool:
        """Have what is pending written. Whether that will be in the next turn of the loop."""
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._live())
        else:
            return self._rouse()
        return False

    def _rouse(self, _: object = None) -> bool:
        if self._awake is None or self._awake.done():
            return False
        self._awake.set_result(None)
        return True

    def _close_turn(self) -> None:
        self._turn = None

    async def _live(self) -> None:
        """Connect, and write until the connection ends. What waits then has failed."""
        reading: asyncio.Task[None] | None = None
        connection, self._made = self._made, None
        detail = ""
        self._renewing = False
        try:
            if connection is None:
                async with asyncio.timeout(CONNECT_S):
                    connection = await self._dial()
            self.reached = True
            reading = self._loop.create_task(self._read(connection))
            reading.add_done_callback(self._rouse)
            await self._write(connection, reading)
        except Exception as error:
            detail = type(error).__name__
            if not isinstance(error, RedisError | OSError | TimeoutError):
                raise
        finally:
            self._awake = None
            if reading is not None:
                reading.cancel()
                await asyncio.wait((reading,))
            if connection is not None:
                _drop_unsent(connection)
                with suppress(RedisError, OSError, TimeoutError):
                    await connection.disconnect(nowait=not self._closed)  # TLS says goodbye
            self._break(detail)

    async def _write(self, connection: AbstractConnection, reading: asyncio.Task[None]) -> None:
        """Write what is asked for, once a turn, until the connection ends."""
        while not reading.done() and not self._renewing:
            if not self._pending:
                self._awake = self._loop.create_future()
                await self._awake
                continue
            self._turn = None
            pending, self._pending = self._pending, []
            if not self._on_way:
                self._asked_at = self._loop.time()
            data = []
            for command in pending:
                if command.dropped:
                    self._done(command.turn)
                    continue
                if command.asking:
                    command.asking = False
                    data.append(hiredis.pack_command(("ASKING",)))
                    self._on_way.append(None)
                command.sent = True
                data.append(command.packed)
                self._on_way.append(command)
            self._writing = True
            try:
                await connection.send_packed_command(b"".join(data), check_health=False)
            finally:
                self._writing = False

    async def _read(self, connection: AbstractConnection) -> None:
        """Hand each answer to whose it is, until the connection ends."""
        read, on_way = connection.read_response, self._on_way
        with suppress(RedisError, OSError):
            while True:
                try:
                    answer = await read(disconnect_on_error=False)
                except (ResponseError, BusyLoadingError) as error:
                    answer = error
                self._heard_at = self._loop.time()
                command = on_way.popleft()
                if command is not None:
                    turn = command.turn
                    command.hear(self, command, answer)
                    self._done(turn)

    def _done(self, turn: Turn) -> None:
        """One command of the turn has its answer."""
        turn.left -= 1
        if not turn.left and not turn.over:
            self._breaker.answered(turn.ticket, self._loop.time())
            self._observer.answered(turn.good, perf_counter() - turn.start)
            self._over(turn)

    def _over(self, turn: Turn) -> None:
        turn.over = True
        self._turns.discard(turn)
        if self._settled is not None and not self._turns and not self._settled.done():
            self._settled.set_result(None)
        if turn.timer is not None and not turn.moved:
            turn.timer.cancel()
            turn.commands.clear()

    # What goes wrong

    def _refuse(self, command: Command, trouble: Trouble) -> None:
        if command.fail(StoreError(trouble, acted=False)):
            self._observer.failed(trouble)

    def _expire(self, turn: Turn, late: bool = False) -> None:
        """The time of a turn is over."""
        now = self._loop.time()
        if now > turn.deadline + LATE_S and not late:
            turn.timer = self._loop.call_later(GRACE_S, self._expire, turn, True)
            return
        for command in turn.commands:
            command.dropped = not command.sent
            trouble: Trouble = "slow" if command.sent else "away"
            if command.fail(StoreError(trouble, acted=command.sent)):
                self._observer.failed(trouble)
        if turn is self._turn:
            self._turn = None
        turn.timer = None
        if not turn.over:
            self._pending = [command for command in self._pending if not command.dropped]
            self._breaker.failed(turn.ticket, now)
            self._over(turn)
            self._failing()
            if self._on_way and now - max(self._asked_at, self._heard_at) > SILENT_S:
                self.renew()

    def _break(self, detail: str) -> None:
        """Whatever waited for this connection has failed."""
        commands = [command for command in (*self._on_way, *self._pending) if command is not None]
        self._on_way.clear()
        self._pending.clear()
        self._turn = None
        now = self._loop.time()
        for command in commands:
            if command.fail(StoreError("away", acted=command.sent, detail=detail)):
                self._observer.failed("away")
            if not command.turn.over:
                self._breaker.failed(command.turn.ticket, now)
                self._over(command.turn)
        if commands:
            self._failing()


def _drop_unsent(connection: AbstractConnection) -> None:
    """Else a transport stays open until all of it has gone, which may be never."""
    writer = connection._writer
    if writer is not None and writer.transport.get_write_buffer_size():
        writer.transport.abort()
