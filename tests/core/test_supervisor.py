"""What a supervisor does where processes cannot be had, or are told to end at the wrong moment; without any."""

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from relay import supervisor as module
from relay.config import parse
from relay.control import TO_SUPERVISOR, Line, Order
from relay.log import configure
from relay.metrics.workers import shared_folder
from relay.options import ConfigError
from relay.supervisor import Means, Source, Supervisor

CONFIG = """\
[server]
workers = 3
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:9/v1"
models = ["*"]
"""


class Process:
    """A process that runs until it is killed."""

    pid = 4711

    def __init__(self):
        self.returncode = None
        self._ended = asyncio.Event()

    def kill(self):
        self.returncode = -9
        self._ended.set()

    async def wait(self):
        await self._ended.wait()
        return self.returncode


@pytest.fixture
def supervisor(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    with shared_folder() as folder:
        means = Means(
            sockets=(),
            store_url="memory:",
            store_prefix="relay",
            metrics=folder,
            data=folder,
            log_level="error",
            reader="push",
        )
        source = Source(0, parse(CONFIG, Path("relay.toml"), {}))
        yield Supervisor(source, means, configure(level="critical"), lambda: None, lambda names, grants: None)


async def test_no_process_is_to_be_had(supervisor, monkeypatch):
    """It is tried again, also if nothing else happens."""
    tries = 0

    async def none(*_, **__):
        nonlocal tries
        tries += 1
        if tries == 4:
            supervisor.stop()
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none)
    async with asyncio.timeout(20):
        await supervisor.run()
    assert 4 == tries


async def test_stopped_while_workers_are_started(supervisor, monkeypatch):
    """The one that is being started is ended, and no other is started."""
    started = []

    async def start(*_, **__):
        started.append(Process())
        if len(started) == 2:
            supervisor.stop()
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    async with asyncio.timeout(20):
        await supervisor.run()
    assert [-9, -9] == [process.returncode for process in started]


async def test_a_reload_before_anybody_has_served(supervisor, monkeypatch):
    """Where neither is fit, that is the end, as it is without the reload."""
    started = []

    async def start(*_, **__):
        started.append(Process())
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20):
        while len(started) < 3:
            await asyncio.sleep(0)
        reloading = asyncio.create_task(supervisor.serve(parse(CONFIG, Path("relay.toml"), {})))
        while not running.done():
            await asyncio.sleep(0.001)
            for process in started[3:]:
                process.kill()
    for task in (reloading, running):
        with pytest.raises(ConfigError, match="before it served"):
            await task


@pytest.mark.parametrize("said", [b"{}\n", b"nonsense\n", b'{"state": "asleep"}\n', b"\xff\n", b'{"state": "ser'])
async def test_what_cannot_be_read_ends_the_line(said):
    """As if the other one were gone: it is not what it should be."""
    ours, theirs = socket.socketpair()
    line = await Line.open(ours, TO_SUPERVISOR)
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)
    assert await line.receive() is None
    line.send(Order("now"))
    await line.close()
    theirs.close()


async def test_a_line_that_does_not_end(monkeypatch):
    """Is none either."""
    monkeypatch.setattr("relay.control._LIMIT_BYTES", 100)
    ours, theirs = socket.socketpair()
    line = await Line.open(ours, TO_SUPERVISOR)
    theirs.sendall(b"x" * 1000)
    assert await line.receive() is None
    await line.close()
    theirs.close()
