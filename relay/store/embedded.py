"""The store where none is configured: a Valkey or Redis server on a Unix socket, started and looked after by the relay.

In the folder `store` of the relay's data, which only its owner may enter:

    lock          held by the relay and its server for as long as either lives: one of each for one folder
    server.json   {"relay": process id, "server": process id, "socket": path}, for who wants to attach
    server.log    what the server says
    socket        the server's, unless its path is too long for one
    appendonlydir what is kept

**What is lost.** Every write is in the file, though not on the disk, before it is answered; the relay has the file put on
the disk once a second. So a relay or a server that is killed loses nothing that was answered, and a machine that loses
its power one second. (The server's own `appendfsync everysec` holds writes back while the disk is at work, and a server
that is killed then loses what it has answered.) A server whose last line was cut starts without that line.

The server ends when the relay does (`relay.store.leash`), also when that is killed, and is started again when it ends by
itself. It is a child of the thread that calls `embedded`, which has to be the main thread.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from relay.log import Logger
from relay.options import ConfigError
from relay.store.home import HELD_S, LOOK_S, Home, inhabited, move_in, move_out, recorded

# A server that was told to end writes its buffers out first.
STOP_S: Final = 10.0
# Reading a file of a gigabyte takes ten seconds.
START_S: Final = 120.0
SYNC_EVERY_S: Final = 1.0
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
# A server that has run for so long ended for a new reason, and is started again at once.
WELL_S: Final = 10.0
MAX_LOG_BYTES: Final = 1_000_000

OPTIONS: Final = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "no",
    "aof-load-truncated": "yes",
    "aof-use-rdb-preamble": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
    "databases": "1",
    "daemonize": "no",
    "loglevel": "notice",
    "logfile": "server.log",
}

_LEASH: Final = Path(__file__).with_name("leash.py")


@asynccontextmanager
async def embedded(data: Path, log: Logger, restarted: Callable[[], None] = lambda: None) -> AsyncIterator[str]:
    """Run a server while the block runs; the path of its socket. Raises ConfigError if that cannot be.

    data: the relay's. restarted: called when the server had ended by itself and was started again.
    """
    home = await asyncio.to_thread(move_in, data)
    try:
        async with _served(home, log, restarted):
            yield home.socket
    finally:
        await asyncio.to_thread(move_out, home)


@asynccontextmanager
async def attached(data: Path, log: Logger) -> AsyncIterator[str]:
    """The socket of the server that a relay runs there, or else of one that runs while the block does.

    Raises ConfigError if neither can be.
    """
    deadline = asyncio.get_running_loop().time() + HELD_S
    while True:
        path = await asyncio.to_thread(recorded, data)
        if path is not None and await _says(path) == b"+PONG":
            yield path
            return
        if path is None or not await asyncio.to_thread(inhabited, data) or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(LOOK_S)  # it is being started again
    async with embedded(data, log) as path:
        yield path


async def shared(data: Path) -> str:
    """The socket of the server that another process of this relay runs. Raises ConfigError."""
    path = await asyncio.to_thread(recorded, data)
    if path is None:
        raise ConfigError(f"store.url: embedded: no store runs in {data}")
    return path


# The server's life


@asynccontextmanager
async def _served(home: Home, log: Logger, restarted: Callable[[], None]) -> AsyncIterator[None]:
    server = await _start(home)
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.to_thread(_record, home, server.pid)
        await _ready(home, server)
        log.info("embedded store", folder=str(home.folder), server=server.pid)
        keeper = _Keeper(home, server, log, restarted)
        tasks = [asyncio.create_task(keeper.keep()), asyncio.create_task(_put_on_disk(home, log))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            server = keeper.server
    finally:
        await _stop(server)


class _Keeper:
    """Starts the server again when it ends."""

    def __init__(
        self, home: Home, server: asyncio.subprocess.Process, log: Logger, restarted: Callable[[], None]
    ) -> None:
        self._home = home
        self._log = log
        self._restarted = restarted
        self.server = server

    async def keep(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = 0.0
        while True:
            began = loop.time()
            code = await self.server.wait()
            self._log.error("embedded store ended", code=code, said=await asyncio.to_thread(_last_words, self._home))
            backoff_s = 0.0 if loop.time() - began > WELL_S else min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * backoff_s))
            await asyncio.sleep(backoff_s)
            try:
                self.server = await _start(self._home)
                await asyncio.to_thread(_record, self._home, self.server.pid)
            except OSError as error:
                self._log.exception("embedded store not started", reason=error.strerror)
                continue
            self._restarted()
            self._log.warning("embedded store started again", server=self.server.pid)


async def _start(home: Home) -> asyncio.subprocess.Process:
    await asyncio.to_thread(_prepare, home)
    options = [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())),
        *(home.program, "--dir", str(home.folder), "--unixsocket", home.socket, *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=home.folder,
        pass_fds=(home.lock,),
    )


def _prepare(home: Home) -> None:
    with suppress(FileNotFoundError):
        Path(home.socket).unlink()
    log = home.folder / "server.log"
    with suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _record(home: Home, server: int) -> None:
    record: dict[str, Any] = {"relay": os.getpid(), "server": server, "socket": home.socket}
    new = home.folder / "server.json.new"
    new.write_text(json.dumps(record) + "\n")
    new.replace(home.folder / "server.json")


async def _ready(home: Home, server: asyncio.subprocess.Process) -> None:
    """Returns when the server answers. Raises ConfigError if it never will."""
    loop = asyncio.get_running_loop()
    end = loop.time() + START_S
    while await _says(home.socket) != b"+PONG":
        if server.returncode is not None or loop.time() > end:
            said = await asyncio.to_thread(_last_words, home)
            raise ConfigError(
                f"store.url: embedded: the server {home.program} does not start; the end of {home.folder / 'server.log'}: {said}"
            )
        await asyncio.sleep(LOOK_S)


async def _says(path: str) -> bytes:
    """What a server answers to PING; nothing if there is none."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).strip()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""


def _last_words(home: Home) -> str:
    with suppress(OSError), (home.folder / "server.log").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
        return " / ".join(file.read().decode(errors="replace").splitlines()[-3:])
    return ""


async def _stop(server: asyncio.subprocess.Process) -> None:
    """Ends it in good order; shielded, since a server that is left would outlive its lock."""
    if server.returncode is None:
        with suppress(ProcessLookupError):
            server.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await server.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            server.kill()
        await server.wait()


async def _put_on_disk(home: Home, log: Logger) -> None:
    """Once a second, have what the server has written put on the disk."""
    synced: dict[str, int] = {}
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        try:
            synced = await asyncio.to_thread(_sync, home.folder / "appendonlydir", synced)
        except OSError as error:
            log.exception("embedded store not on disk", reason=error.strerror)


def _sync(folder: Path, before: dict[str, int]) -> dict[str, int]:
    """Put files on the disk that have grown; names and sizes."""
    sizes = {}
    for file in folder.glob("*.incr.aof"):
        with suppress(FileNotFoundError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                size = sizes[file.name] = os.fstat(descriptor).st_size
                if size != before.get(file.name):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
    return sizes
