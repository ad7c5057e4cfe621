"""How a process takes connections: the more in a turn of its loop the more there are, and none while other workers have fewer.

A loop of libuv takes one in a turn (since 1.46). One that is busy with the events of a thousand streams turns fifty times a
second: of a thousand clients that come together, who is last waits for twenty seconds. asyncio's takes all that there are,
and its streams wait. Here the number doubles with each turn that left somebody waiting, up to `MAX_AT_ONCE`.

Left to themselves, workers share badly when many come at once, as after a restart of the balancer in front: the one that
wakes first takes nearly all (on two cores at work, up to 96 of 100), for as long as their streams last. So each writes on a
common board how many connections it has, and one that has more than another leaves what comes to that one for `YIELD_S`.
What is still there after that it takes, more each time: the other one may be standing still.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from relay.listener import Listener

# Long enough for a process that sleeps to wake; nobody notices it in the time that a connection takes.
YIELD_S = 0.004
MAX_AT_ONCE = 64
# Without descriptors or memory for another connection, it waits in the kernel's queue; another worker may have some.
PAUSE_S = 0.2

# Numbers of workers are below twice as many as there are; one beyond the board shares as the kernel has it.
_PLACES = 1024
_ABSENT = -1


class Board:
    """How many connections each worker has; a file that all of them map."""

    def __init__(self, folder: Path) -> None:
        with (folder / "connections").open("r+b") as file:
            self._places = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    @classmethod
    def make(cls, folder: Path) -> Board:
        """A new one, on which nobody stands."""
        (folder / "connections").write_bytes(_ABSENT.to_bytes(8, "little", signed=True) * _PLACES)
        return cls(folder)

    def write(self, worker: int, connections: int) -> None:
        if worker < _PLACES:
            self._places[worker] = connections

    def remove(self, worker: int) -> None:
        """It takes no more."""
        self.write(worker, _ABSENT)

    def least(self, besides: int) -> int | None:
        """The fewest that one of those has who stand on it, besides this worker; None: there is no other."""
        numbers = [number for number in self._places if number != _ABSENT]
        if besides < _PLACES and self._places[besides] != _ABSENT:
            numbers.remove(self._places[besides])
        return min(numbers, default=None)


class Site(web.BaseSite):
    """Serves a runner's `Listener` on a listening socket. With a board, other processes accept on it too."""

    __slots__ = ("_acceptor", "_board", "_listener", "_sock", "_worker")

    def __init__(
        self,
        runner: web.BaseRunner,
        listener: Listener,
        sock: socket.socket,
        board: Board | None = None,
        worker: int = 0,
    ) -> None:
        super().__init__(runner)
        self._listener = listener
        self._sock = sock
        self._board = board
        self._worker = worker

    @property
    def name(self) -> str:
        return str(self._sock.getsockname())

    async def start(self) -> None:
        await super().start()
        self._acceptor = _Acceptor(self._listener, self._sock, self._board, self._worker)
        # Of a server, a site asks no more than to close it.
        self._server = self._acceptor  # type: ignore[assignment]

    async def stop(self) -> None:
        """Returns when each connection that was taken is the listener's."""
        await super().stop()
        await self._acceptor.settled()


class _Acceptor:
    """Closed, it leaves connections alone that were taken."""

    def __init__(self, listener: Listener, sock: socket.socket, board: Board | None, worker: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._sock = sock
        self._board = board
        self._worker = worker
        self._tasks: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._at_once = 1  # in a turn
        self._at_last = 1  # of what others have left here
        if board is not None:
            listener.on_count = self._count
            self._count(listener.count)
        self._loop.add_reader(sock, self._come)

    def _count(self, connections: int) -> None:
        if self._board is not None:
            self._board.write(self._worker, connections)

    def _come(self) -> None:
        """There is somebody, or was when this process was woken."""
        room = self._room()
        if room > 0:
            took_all = self._take(min(room, self._at_once))
            self._at_once = min(MAX_AT_ONCE, 2 * self._at_once) if took_all else 1
        else:
            self._rest(YIELD_S, self._still)

    def _room(self) -> int:
        """How many it may take before it is to look at what the others have."""
        least = None if self._board is None else self._board.least(besides=self._worker)
        if least is None:
            return MAX_AT_ONCE
        return least + 2 + least // 8 - self._listener.count - len(self._tasks)

    def _still(self) -> None:
        """Those who have fewer have had their turn."""
        took_all = self._take(self._at_last)
        self._at_last = min(MAX_AT_ONCE, 2 * self._at_last) if took_all else 1
        if self._pause is None:
            self._listen()

    def _take(self, most: int) -> bool:
        """Whether there were so many."""
        return all(self._taken() for _ in range(most))

    def _taken(self) -> bool:
        """Whether there was one."""
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker was faster, or the client has left
        except OSError:
            self._rest(PAUSE_S, self._listen)
            return False
        connection.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._listener, connection)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._come)

    def _rest(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._sock)

        def over() -> None:
            self._pause = None
            then()

        self._pause = self._loop.call_later(seconds, over)

    async def settled(self) -> None:
        """Returns when nobody is on his way in."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        if self._board is not None:
            self._listener.on_count = None
            self._board.remove(self._worker)
        self._sock.close()
