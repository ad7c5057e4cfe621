"""A listener that is about to go closes what nobody asks on, and loses no request."""

import asyncio
from contextlib import AsyncExitStack
from contextvars import ContextVar

import pytest
from aiohttp import web

from relay.listener import ResponseListener
from relay.request import read_body

PATIENCE_S = 20.0
HEAD = b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 4\r\n\r\n"


class Stage:
    """A listener that answers with what it was sent, when `go` is set, and its clients."""

    def __init__(self):
        self.go = asyncio.Event()
        self.go.set()
        self.come = 0
        self.listener = ResponseListener(self._answer)

    async def _answer(self, request):
        self.come += 1
        body = await read_body(request, max_bytes=100, timeout_s=PATIENCE_S)
        await self.go.wait()
        return web.Response(body=body)


@pytest.fixture
async def stage(request):
    async with AsyncExitStack() as stack:
        stage = getattr(request, "param", Stage)()
        runner = web.ServerRunner(stage.listener, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]

        async def dial():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.push_async_callback(writer.wait_closed)
            stack.callback(writer.close)
            return reader, writer

        async def until(condition):
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    await asyncio.sleep(0.002)

        stage.dial, stage.until = dial, until
        yield stage


async def answer(reader):
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        return head, await reader.readexactly(4)


async def closed(reader):
    async with asyncio.timeout(PATIENCE_S):
        return b"" == await reader.read()


async def test_who_does_not_ask_is_let_go(stage):
    """Nothing has come on one connection, an answer has gone out on the other: both are closed, and none is left deaf."""
    silent, _ = await stage.dial()
    kept, writer = await stage.dial()
    writer.write(HEAD + b"body")
    assert b"body" == (await answer(kept))[1]
    await stage.until(lambda: 2 == stage.listener.count)
    stage.listener.leave()
    async with asyncio.timeout(PATIENCE_S):
        await stage.listener.empty(0.1)
    assert await closed(silent)
    assert await closed(kept)
    assert 0 == stage.listener.count


async def test_who_asks_again_in_time_is_answered(stage):
    """With the last word; until then the connection is open."""
    reader, writer = await stage.dial()
    writer.write(HEAD + b"body")
    head, _ = await answer(reader)
    assert b"connection: close" not in head.lower()
    stage.listener.leave()
    emptying = asyncio.create_task(stage.listener.empty(3600))
    await asyncio.sleep(0.2)  # it is looked at, and left as it is
    writer.write(HEAD + b"body")
    head, body = await answer(reader)
    assert (b"body", True) == (body, b"connection: close" in head.lower())
    assert await closed(reader)
    async with asyncio.timeout(PATIENCE_S):
        await emptying


@pytest.mark.parametrize("sent", [10, len(HEAD) - 1, len(HEAD), len(HEAD) + 2, len(HEAD) + 4])
async def test_who_is_still_asking_is_answered(stage, sent):
    """The rest of a head or of a body is heard; a request that was under way before leaves its connection to one more."""
    request = HEAD + b"body"
    stage.go.clear()
    reader, writer = await stage.dial()
    writer.write(request[:sent])
    if sent < len(HEAD):
        await stage.until(lambda: any(each._late is not None for each in stage.listener.connections))
    else:
        await stage.until(lambda: 1 == stage.come)
    stage.listener.leave()
    emptying = asyncio.create_task(stage.listener.empty(0.1))
    await asyncio.sleep(0.2)
    writer.write(request[sent:])
    stage.go.set()
    head, body = await answer(reader)
    assert (b"body", sent < len(HEAD)) == (body, b"connection: close" in head.lower())
    assert await closed(reader)
    async with asyncio.timeout(PATIENCE_S):
        await emptying


SEEN = ContextVar("seen", default="")


class Naming(Stage):
    """Answers with the name that an earlier request has left in a context variable, and leaves another one."""

    async def _answer(self, request):
        self.come += 1
        body = await read_body(request, max_bytes=100, timeout_s=PATIENCE_S)
        await self.go.wait()
        seen = SEEN.get()
        SEEN.set(body.decode())
        return web.Response(body=(seen or "none").encode())


@pytest.mark.parametrize("stage", [Naming], indirect=True)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_a_request_leaves_in_a_context_ends_with_it(stage, at_once):
    """Also if the next one on its connection has come already."""
    reader, writer = await stage.dial()
    for _ in range(1 if at_once else 3):
        writer.write((HEAD + b"body") * (3 if at_once else 1))
        for _ in range(3 if at_once else 1):
            assert b"none" == (await answer(reader))[1]
    assert 3 == stage.come


async def test_more_than_may_wait_are_answered_in_their_order(stage):
    """Reading is held up behind 32 of them, and goes on."""
    reader, writer = await stage.dial()
    stage.go.clear()
    writer.writelines(HEAD + b"%04d" % number for number in range(200))
    await stage.until(lambda: stage.come)
    stage.go.set()
    assert [b"%04d" % number for number in range(200)] == [(await answer(reader))[1] for _ in range(200)]


@pytest.mark.parametrize("together", [True, False])
async def test_who_asks_for_another_protocol_goes_on_in_this_one(stage, together):
    """Nobody here speaks another; what comes behind such a request is the next one."""
    asked = HEAD[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"some"
    reader, writer = await stage.dial()
    writer.write(asked + (HEAD + b"more" if together else b""))
    assert b"some" == (await answer(reader))[1]
    if not together:
        writer.write(HEAD + b"more")
    assert b"more" == (await answer(reader))[1]
    writer.write(asked)
    assert b"some" == (await answer(reader))[1]


async def test_a_connection_on_which_nobody_asks_has_no_task(stage):
    """And after `keepalive_timeout` it is closed."""
    reader, writer = await stage.dial()
    writer.write(HEAD + b"body")
    await answer(reader)
    [connection] = stage.listener.connections
    await stage.until(lambda: connection.is_quiet)
    assert connection._task_handler is None
    connection._next_keepalive_close_time = 0
    connection._process_keepalive()
    assert await closed(reader)
    await stage.until(lambda: not stage.listener.connections)


class Door:
    """A turnstile at which everybody waits."""

    def __init__(self):
        self.waiting = []
        self.enter = self.waiting.append


async def test_who_leaves_before_his_turn_is_not_answered(stage):
    stage.listener.turnstile = door = Door()
    _, writer = await stage.dial()
    writer.write(HEAD + b"body")
    await stage.until(lambda: door.waiting)
    writer.close()
    await stage.until(lambda: 0 == stage.listener.count)
    door.waiting.pop()()
    assert (0, []) == (stage.come, door.waiting)


async def test_who_waits_for_his_turn_is_not_taken_for_quiet(stage):
    """What comes behind a request that waits is answered after it, and a listener that is to go waits for both."""
    stage.listener.turnstile = door = Door()
    reader, writer = await stage.dial()
    writer.write(HEAD + b"body")
    await stage.until(lambda: door.waiting)
    writer.write(HEAD + b"soul")
    [connection] = stage.listener.connections
    await stage.until(lambda: 2 == len(connection._messages))
    assert 1 == len(door.waiting)
    assert not connection.is_quiet
    connection._process_keepalive()
    door.waiting.pop()()
    assert b"body" == (await answer(reader))[1]
    await stage.until(lambda: door.waiting)
    door.waiting.pop()()
    assert b"soul" == (await answer(reader))[1]
    await stage.until(lambda: connection.is_quiet)
