"""One connection as bytes come: whose answer they are, and when the connection serves no other request."""

import asyncio
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.http import HttpProcessingError

from relay.protocol import ReplyProtocol

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def protocol():
    made = ReplyProtocol(asyncio.get_running_loop())
    transport = Mock(spec=asyncio.Transport)
    transport.is_closing.return_value = False
    made.connection_made(transport)
    return made


async def text(answer):
    message, content = await answer
    return message.code, await content.read()


async def test_one_reply_after_the_other(protocol):
    """By one parser, whatever ends them, and however they are cut."""
    empty = b"HTTP/1.1 204 No Content\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    for wire, said in ((OK, (200, b"ok")), (empty, (204, b"")), (chunked, (200, b"ok"))) * 2:
        for size in (1, 7, len(wire)):
            answer = protocol.expect()
            for start in range(0, len(wire), size):
                protocol.data_received(wire[start : start + size])
            assert said == await text(answer)
            protocol.rest()
    assert not protocol.should_close


@pytest.mark.parametrize("unasked", [OK, b"HTTP", b"\r\n", b"?"])
async def test_what_nobody_asked_for_is_not_read(protocol, unasked):
    """And such a connection is used no more."""
    answer = protocol.expect()
    protocol.data_received(OK)
    await answer
    protocol.rest()
    protocol.data_received(unasked)
    assert protocol.should_close
    assert protocol.exception() is None


async def test_an_answer_too_many(protocol):
    answer = protocol.expect()
    protocol.data_received(OK + OK)
    assert (200, b"ok") == await text(answer)
    assert protocol.should_close


@pytest.mark.parametrize("begun", [b"", b"H", b"HTTP/1.1 200 OK\r\nX-Another: "])
async def test_the_beginning_of_an_answer_too_many(protocol, begun):
    """The parser goes on from one reply to the next: the next would be read as the rest of it."""
    for wire in (OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"):
        answer = protocol.expect()
        protocol.data_received(wire + begun * (wire is not OK))
        assert (200, b"ok") == await text(answer)
        protocol.rest()
    assert protocol.is_between == (not begun)


async def test_a_reply_that_says_so_is_the_last(protocol):
    answer = protocol.expect()
    protocol.data_received(OK.replace(b"OK", b"OK\r\nConnection: close"))
    assert (200, b"ok") == await text(answer)
    assert protocol.should_close


async def test_what_is_no_http_reaches_who_waits_for_the_rest(protocol):
    answer = protocol.expect()
    protocol.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
    _, content = await answer
    assert b"ok" == await content.readany()
    protocol.data_received(b"no size")
    with pytest.raises(aiohttp.ClientPayloadError):
        await content.readany()
    assert isinstance(protocol.exception(), HttpProcessingError)
    protocol.transport.close.assert_called()


@pytest.mark.parametrize("end", ["close", "abort", "connection_lost"])
async def test_the_end_reaches_who_waits_for_the_rest(protocol, end):
    answer, closed = protocol.expect(), protocol.closed
    protocol.data_received(OK[:-1])
    _, content = await answer
    assert b"o" == await content.readany()
    transport = protocol.transport
    getattr(protocol, end)(*[None] * (end == "connection_lost"))
    with pytest.raises(aiohttp.ClientError):
        await content.readany()
    assert end == "connection_lost" or getattr(transport, end).called
    assert protocol.should_close
    if end != "connection_lost":
        protocol.connection_lost(None)
    await closed


@pytest.mark.parametrize(
    ("lost", "error"),
    [(None, aiohttp.ServerDisconnectedError), (ConnectionResetError(104, "reset"), aiohttp.ClientOSError)],
)
async def test_the_end_reaches_who_waits_for_a_head(protocol, lost, error):
    answer = protocol.expect()
    protocol.data_received(OK[:20])
    protocol.connection_lost(lost)
    with pytest.raises(error):
        await answer
    assert protocol.closed is None


async def test_a_head_that_comes_before_it_is_given_up_counts(protocol):
    answer = protocol.expect()
    protocol.data_received(OK)
    protocol.give_up()
    assert (200, b"ok") == await text(answer)


async def test_a_full_reader_stops_the_reading_and_has_it_go_on(protocol):
    """Nothing is lost, and what was never stopped is not started."""
    size = 1_000_000
    answer = protocol.expect()
    protocol.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    _, content = await answer
    protocol.transport.resume_reading.assert_not_called()
    for _ in range(10):
        protocol.data_received(bytes(size // 10))
    protocol.transport.pause_reading.assert_called()
    assert size == len(await content.read())
    protocol.transport.resume_reading.assert_called()
