"""How connections are taken: quickly where many come, and who has more leaves the next one to other workers."""

import asyncio
import errno
import socket
from contextlib import AsyncExitStack, ExitStack

import aiohttp
import pytest
from aiohttp import web

from relay.acceptor import Board, Site
from relay.listener import ResponseListener

PATIENCE_S = 20.0


@pytest.fixture
def board(tmp_path):
    return Board.make(tmp_path)


@pytest.fixture
async def stage(board):
    """`listener = await stage(number)`: a worker on the common socket; `stage.dial()`: a connection that was asked on."""
    async with AsyncExitStack() as stack:
        common = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        common.setblocking(False)

        async def start(number, sock=None, board=board):
            async def handle(request):
                return web.Response(text=str(number))

            listener = ResponseListener(handle)
            runner = web.ServerRunner(listener, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = Site(runner, listener, sock or common.dup(), board, number)
            await site.start()
            start.sites[number] = site
            return listener

        async def dial():
            client = await stack.enter_async_context(aiohttp.ClientSession())
            async with client.get(f"http://127.0.0.1:{common.getsockname()[1]}/") as response:
                return int(await response.text())

        start.sites = {}
        start.dial = dial
        start.common = common
        yield start


def test_a_board_is_common(board, tmp_path):
    """What one writes another reads; who is not on it does not count."""
    other = Board(tmp_path)
    assert other.least(besides=0) is None
    board.write(0, 7)
    board.write(5, 3)
    assert 3 == other.least(besides=0)
    assert 7 == other.least(besides=5)
    assert 3 == other.least(besides=1)
    other.remove(5)
    assert 7 == board.least(besides=5)
    board.write(10**6, 1)
    assert 7 == board.least(besides=10**6)
    assert board.least(besides=0) is None


async def test_two_share(stage):
    """None has many more than the other, however they come."""
    first, second = await stage(0), await stage(1)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(20):
            await stage.dial()
        await asyncio.gather(*(stage.dial() for _ in range(20)))
    assert 40 == first.count + second.count
    assert min(first.count, second.count) >= 10


async def test_who_does_not_take_holds_nobody_up(stage, board):
    """A worker that stands still has fewer, and the others take what it leaves."""
    board.write(7, 0)
    listener = await stage(0)
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(stage.dial() for _ in range(50)))
    assert 50 == listener.count


async def test_who_has_closed_takes_no_more(stage, board):
    """What it has goes on; others take the new ones, and it is on the board no longer."""
    first, second = await stage(0), await stage(1)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(10):
            await stage.dial()
        had = first.count
        await stage.sites[0].stop()
        assert [1] * 10 == [await stage.dial() for _ in range(10)]
    assert (had, 20 - had) == (first.count, second.count)
    assert second.count == board.least(besides=0)


@pytest.mark.parametrize("alone", [True, False])
async def test_many_at_once(stage, board, alone):
    """A loop that turns seldom, for all the events of its streams, has them in a few turns."""
    address = stage.common.getsockname()
    with ExitStack() as clients:
        for _ in range(100):
            clients.enter_context(socket.create_connection(address))
        if not alone:
            board.write(1, 300)  # another worker is busy
        listener = await stage(0, board=None if alone else board)
        turns = 0
        while listener.count < 100:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 30
    async with asyncio.timeout(PATIENCE_S):
        while listener.count:
            await asyncio.sleep(0)


class Full:
    """A listening socket in a process that has no descriptor left, at first."""

    def __init__(self, sock):
        self._sock = sock
        self.refused = 0

    def accept(self):
        if self.refused < 2:
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._sock.accept()

    def __getattr__(self, name):
        return getattr(self._sock, name)


async def test_without_descriptors(stage):
    """It waits and tries again."""
    full = Full(stage.common.dup())
    await stage(0, full)
    async with asyncio.timeout(PATIENCE_S):
        assert 0 == await stage.dial()
    assert 2 == full.refused
