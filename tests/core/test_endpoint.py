"""One address that is asked: what is written to it, which connection is taken, and what may come back."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp.http import HttpProcessingError

import relay.endpoint
from relay.config import Upstream
from relay.connections import MAX_WRITE_BYTES, ClientProtocol, Connector, StaleError
from relay.endpoint import Endpoint
from relay.reply import Reply
from relay.secret import Secret
from relay.testing import Close, End, Gate, Hang, Head, Raw, Script, ScriptedUpstream, Send, whole

ID = "0123456789abcdef0123456789abcdef"
KEY = "sk-canary-endpoint-5b1f"
BODY = b'{"model":"m"}'
OK = whole(b'{"a":1}')
PATIENCE_S = 5.0

Ask = Callable[..., Awaitable[Reply]]


class Asking:
    """An endpoint in a world of its own. upstream: who is asked."""

    def __init__(self, upstream: Any, endpoint: Endpoint, connector: Connector) -> None:
        self.upstream = upstream
        self.endpoint = endpoint
        self.connector = connector

    async def __call__(self, body: bytes = BODY, *, stream: bool = False) -> Reply:
        async with asyncio.timeout(PATIENCE_S):
            return await self.endpoint.ask(body, stream=stream, request_id=ID)

    async def text(self, body: bytes = BODY) -> bytes:
        """The whole body of a good reply."""
        reply = await self(body)
        assert reply.status == 200
        return await reply.content.read()

    def connections(self) -> list[int]:
        return [request.connection for request in self.upstream.requests]


@pytest.fixture
async def asking() -> AsyncIterator[Callable[..., Awaitable[Asking]]]:
    """`ask = await asking(script, **of_the_upstream)`."""
    async with AsyncExitStack() as stack:

        async def start(script: Any, **options: Any) -> Asking:
            upstream = await stack.enter_async_context(ScriptedUpstream(script))
            connector = Connector()
            stack.push_async_callback(connector.close)
            endpoint = Endpoint(_upstream(base_url=upstream.base_url, **options), connector)
            stack.callback(endpoint.close)
            return Asking(upstream, endpoint, connector)

        yield start


def _upstream(**options: Any) -> Upstream:
    return Upstream(**{"name": "main", "models": ("m",), "base_url": "http://127.0.0.1:9/v1", **options})


class TestRequest:
    @pytest.mark.parametrize(("stream", "accept"), [(True, "text/event-stream"), (False, "application/json")])
    async def test_what_is_written(self, asking, stream, accept):
        """Our own headers and the body, and nothing else."""
        ask = await asking(OK, api_key=Secret(KEY))
        (await ask(stream=stream)).close()
        [request] = ask.upstream.requests
        assert ("POST", "/v1/chat/completions", BODY) == (request.method, request.path, request.body)
        assert {
            "Host": f"127.0.0.1:{ask.upstream.port}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "Accept": accept,
            "Authorization": f"Bearer {KEY}",
            "x-request-id": ID,
            "Content-Length": str(len(BODY)),
        } == dict(request.headers)

    async def test_without_a_key(self, asking):
        ask = await asking(OK)
        await ask.text()
        assert ask.upstream.requests[0].header("authorization") is None

    async def test_a_path_is_quoted(self, asking):
        ask = await asking(OK)
        endpoint = Endpoint(_upstream(base_url=f"http://127.0.0.1:{ask.upstream.port}/é{{}}"), ask.connector)
        (await endpoint.ask(BODY, stream=False, request_id=ID)).close()
        assert "/%C3%A9%7B%7D/chat/completions" == ask.upstream.requests[0].path

    @pytest.mark.parametrize("key", ["a\r\nx: y", "a\nb", "a\x00b", "a\x7f", "a\u2028b"])
    async def test_a_key_that_no_head_can_carry(self, key):
        """It is refused before anything is sent, and not repeated."""
        connector, secret = Connector(), Secret("good")
        upstream = _upstream(api_key=secret)
        secret._value = key  # its file was changed since
        with pytest.raises(ValueError, match="cannot stand in the head") as raised:
            Endpoint(upstream, connector)
        assert key not in str(raised.value)
        await connector.close()

    async def test_the_key_is_not_shown(self, asking):
        ask = await asking(Script(Close()), api_key=Secret(KEY))
        with pytest.raises(aiohttp.ServerDisconnectedError) as raised:
            await ask()
        assert KEY not in repr(ask.endpoint) + repr(raised.value) + str(raised.value)

    @pytest.mark.parametrize("size", [0, MAX_WRITE_BYTES, MAX_WRITE_BYTES + 1, 5_000_000])
    async def test_a_long_body(self, asking, size):
        """It comes whole, in however many pieces, and its connection serves another."""
        ask = await asking(OK)
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert b'{"a":1}' == await ask.text(body)
        assert b'{"a":1}' == await ask.text()
        assert [body, BODY] == [request.body for request in ask.upstream.requests]
        assert [1, 1] == ask.connections()


class TestLongBody:
    async def test_an_answer_before_it_was_read(self):
        """An upstream that refuses by the head alone is heard, and the half that was not sent spoils no other request."""
        met: list[int] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.append(1)
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            writer.transport.resume_reading() if len(met) > 1 else None
            await over.wait()
            writer.transport.abort()

        over = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**16)
        port = server.sockets[0].getsockname()[1]
        connector = Connector()
        endpoint = Endpoint(_upstream(base_url=f"http://127.0.0.1:{port}/v1"), connector)
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                reply = await endpoint.ask(b"x" * 50_000_000, stream=False, request_id=ID)
                assert (413, b"no") == (reply.status, await reply.content.read())
        assert 2 == len(met)
        over.set()
        endpoint.close()
        await connector.close()
        server.close()
        await server.wait_closed()

    async def test_it_is_written_as_the_connection_takes_it(self):
        protocol, transport = _connected()
        written: list[bytes] = []

        def write(data: bytes) -> None:
            written.append(bytes(data))
            if len(data) > 100 and not protocol.writing_paused:
                protocol.pause_writing()

        transport.write.side_effect = write
        body = bytes(range(256)) * (3 * MAX_WRITE_BYTES // 256) + b"end"
        protocol.send(b"head", body)
        for count in (2, 3, 4):
            assert (count, True) == (len(written), bool(protocol.unsent))
            protocol.resume_writing()
        assert b"head" + body == b"".join(written)
        assert not protocol.unsent

    async def test_a_connection_that_is_lost_meanwhile_is_written_to_no_more(self):
        protocol, transport = _connected()
        transport.write.side_effect = lambda data: protocol.connection_lost(None) if len(data) > 100 else None
        protocol.send(b"head", bytes(2 * MAX_WRITE_BYTES))
        assert 2 == transport.write.call_count

    @pytest.mark.parametrize("lost", [True, False])
    async def test_nothing_is_written_to_a_connection_that_is_closed(self, lost):
        protocol, transport = _connected()
        if lost:
            protocol.connection_lost(None)
        else:
            transport.is_closing.return_value = True
        with pytest.raises(aiohttp.ClientConnectionResetError):
            protocol.send(b"head", b"body")
        transport.write.assert_not_called()


def _connected() -> tuple[ClientProtocol, Mock]:
    protocol = ClientProtocol(asyncio.get_running_loop())
    transport = Mock(spec=asyncio.Transport)
    transport.is_closing.return_value = False
    protocol.connection_made(transport)
    return protocol, transport


LATER = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + b'{"a":1}'


class TestReply:
    @pytest.mark.parametrize(
        "first",
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 P\r\n\r\n"],
        ids=["100", "103 and 102"],
    )
    @pytest.mark.parametrize("at_once", [True, False])
    async def test_what_comes_before_the_reply_is_skipped(self, asking, first, at_once):
        go = asyncio.Event()
        script = Script(Raw(first + LATER)) if at_once else Script(Raw(first), Gate(go), Raw(LATER))
        ask = await asking(script)
        asyncio.get_running_loop().call_later(0.01, go.set)
        for _ in range(2):
            assert b'{"a":1}' == await ask.text()
        assert [1, 1] == ask.connections()

    async def test_a_connection_is_used_again(self, asking):
        ask = await asking([OK, whole(b"{}"), Script(Head(), Send(b"a"), Send(b"b")), OK, OK])
        for text in (b'{"a":1}', b"{}", b"ab", b'{"a":1}', b'{"a":1}'):
            assert text == await ask.text()
        assert [1] * 5 == ask.connections()

    async def test_two_at_once_have_two(self, asking):
        go = asyncio.Event()
        ask = await asking(Script(Head(framing=2), Gate(go), Send(b"ok")))
        replies = [await ask() for _ in range(2)]
        go.set()
        assert [b"ok"] * 2 == [await reply.content.read() for reply in replies]
        for _ in range(2):
            assert b"ok" == await ask.text()
        assert [1, 2, 1, 2] == ask.connections()  # the one that was idle for longest comes first

    @pytest.mark.parametrize(
        ("wire", "text", "kept"),
        [
            (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
            (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
            (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"", True),
            (b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n", b"", True),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + LATER, b"ok", False),
        ],
        ids=["close", "1.0", "1.0 kept", "empty", "204", "304", "redirect", "an answer too many"],
    )  # fmt: skip
    async def test_whether_the_connection_is_kept(self, asking, wire, text, kept):
        ask = await asking([Script(Raw(wire)), OK])
        reply = await ask()
        assert (int(wire[9:12]), text) == (reply.status, await reply.content.read())
        assert b'{"a":1}' == await ask.text()
        assert [1, 1 if kept else 2] == ask.connections()

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    async def test_a_body_without_a_length(self, asking, version):
        """It ends with the connection."""
        ask = await asking(Script(Raw(f"HTTP/{version} 200 OK\r\n\r\nok".encode()), Close()))
        assert [b"ok"] * 2 == [await ask.text() for _ in range(2)]
        assert [1, 2] == ask.connections()

    async def test_an_upgrade_is_no_reply_to_stay_with(self, asking):
        ask = await asking([Script(Raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")), OK])
        reply = await ask()
        assert 101 == reply.status
        reply.close()
        await ask.text()
        assert [1, 2] == ask.connections()

    async def test_what_came_unasked_is_no_answer(self, asking):
        """Some servers say 408 on a connection that was idle for long, and some keep it open all the same."""
        said = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
        ask = await asking([Script(*OK.steps, End(), Raw(said)), OK])
        assert b'{"a":1}' == await ask.text()
        await ask.upstream.finished(ask.upstream.requests[0])
        async with asyncio.timeout(PATIENCE_S):
            while not any(protocol.should_close for _, protocol, _ in ask.endpoint._idle):
                await asyncio.sleep(0)
        assert b'{"a":1}' == await ask.text()
        assert [1, 2] == ask.connections()

    async def test_closed_before_its_end(self, asking):
        """Who waits for the rest hears of it, and the connection is gone; closing once more touches no other."""
        ask = await asking([Script(Head(), Send(b"a"), Hang()), OK, OK])
        reply = await ask()
        assert b"a" == await reply.content.readany()
        waiting = asyncio.create_task(reply.content.readany())
        await asyncio.sleep(0)
        reply.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await waiting
        await ask.upstream.closed(ask.upstream.requests[0])
        await ask.text()
        reply.close()
        assert b'{"a":1}' == await ask.text()
        assert [1, 2, 2] == ask.connections()

    async def test_closed_after_its_end(self, asking):
        ask = await asking(OK)
        reply = await ask()
        await reply.content.wait_eof()
        reply.close()
        assert b'{"a":1}' == await reply.content.read()
        await ask.text()
        assert [1, 1] == ask.connections()


class TestFailures:
    @pytest.mark.parametrize("script", [Script(Hang()), Script(Raw(b"HTTP/1.1 100 Continue\r\n\r\n"), Hang())])
    async def test_no_head_in_time(self, asking, script):
        ask = await asking(script, first_byte_timeout_s=0.05)
        with pytest.raises(TimeoutError) as raised:
            await ask()
        assert not isinstance(raised.value, aiohttp.ConnectionTimeoutError)
        await ask.upstream.closed(ask.upstream.requests[0])

    async def test_each_head_has_its_own_time(self, asking):
        """One that is late does not end one that was asked for later, nor keeps that from being late in its turn."""
        go = asyncio.Event()
        ask = await asking([Script(Hang()), Script(Gate(go), *OK.steps), Script(Hang())], first_byte_timeout_s=0.2)
        first = asyncio.create_task(ask())
        await ask.upstream.request()
        await asyncio.sleep(0.15)
        second = asyncio.create_task(ask.text())
        await ask.upstream.request(2)
        third = asyncio.create_task(ask())
        with pytest.raises(TimeoutError):
            await first
        assert not second.done()
        go.set()
        assert b'{"a":1}' == await second
        with pytest.raises(TimeoutError):
            await third

    async def test_a_body_may_take_longer(self, asking):
        go = asyncio.Event()
        ask = await asking(Script(Head(framing=2), Gate(go), Send(b"ok")), first_byte_timeout_s=0.05)
        asyncio.get_running_loop().call_later(0.15, go.set)
        assert b"ok" == await ask.text()

    @pytest.mark.parametrize("times", [{"connect_timeout_s": 0.05}, {"first_byte_timeout_s": 0.05}])
    async def test_no_connection_in_time(self, asking, monkeypatch, times):
        """Nothing was sent, whichever of the two was too short."""
        ask = await asking(OK, **times)
        monkeypatch.setattr(Connector, "_create_connection", lambda *_: asyncio.sleep(3600))
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await ask()

    async def test_nobody_there(self, asking):
        ask = await asking(OK)
        await ask.upstream.__aexit__(None, None, None)
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask()

    @pytest.mark.parametrize(
        "wire", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok more"]
    )
    async def test_no_http(self, asking, wire):
        ask = await asking([Script(Raw(wire), Hang()), OK])
        with pytest.raises(HttpProcessingError):
            await ask()
        await ask.text()

    async def test_who_asks_gives_up(self, asking):
        ask = await asking([Script(Hang()), OK])
        asked = asyncio.create_task(ask())
        request = await ask.upstream.request()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await ask.upstream.closed(request)
        await ask.text()

    async def test_a_used_connection_that_closes_at_once_is_stale(self, asking):
        """And then a fresh one that does so is not."""
        ask = await asking([OK, Script(Close()), Script(Close())])
        await ask.text()
        with pytest.raises(StaleError):
            await ask()
        ask.endpoint.drop_idle()
        with pytest.raises(aiohttp.ServerDisconnectedError) as raised:
            await ask()
        assert not isinstance(raised.value, StaleError)

    async def test_half_a_head_is_no_sign_of_a_stale_one(self, asking):
        ask = await asking([OK, Script(Raw(b"HTTP/1.1 200 OK\r\nContent-"), Close())])
        await ask.text()
        with pytest.raises(aiohttp.ServerDisconnectedError) as raised:
            await ask()
        assert not isinstance(raised.value, StaleError)


class TestIdle:
    async def test_one_that_the_upstream_closed_is_not_taken(self, asking):
        ask = await asking([Script(*OK.steps, End(), Close()), OK])
        await ask.text()
        await ask.upstream.closed(ask.upstream.requests[0])
        async with asyncio.timeout(PATIENCE_S):
            while any(protocol.is_connected() for _, protocol, _ in ask.endpoint._idle):
                await asyncio.sleep(0)
        await ask.text()
        assert [1, 2] == ask.connections()

    async def test_after_some_time_it_is_closed(self, asking, monkeypatch):
        monkeypatch.setattr(relay.endpoint, "POOL_IDLE_S", 0.05)
        ask = await asking(OK)
        await ask.text()
        [request] = ask.upstream.requests
        assert await ask.upstream.closed(request)
        assert "client" == request.closed_by
        await ask.text()
        assert [1, 2] == ask.connections()

    async def test_one_too_old_is_not_taken(self, asking):
        ask = await asking(OK)
        await ask.text()
        ask.endpoint._idle_s = -1.0
        await ask.text()
        assert [1, 2] == ask.connections()

    async def test_drop_idle(self, asking):
        ask = await asking(OK)
        await ask.text()
        ask.endpoint.drop_idle()
        await ask.upstream.closed(ask.upstream.requests[0])

    async def test_after_the_end_nothing_is_kept(self, asking):
        go = asyncio.Event()
        ask = await asking(Script(Head(framing=2), Gate(go), Send(b"ok")))
        reply = await ask()
        ask.endpoint.close()
        await ask.connector.close()
        go.set()
        reply.close()
        await ask.upstream.closed(ask.upstream.requests[0])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A folder with c.crt and c.key, of 127.0.0.1 and signed by itself."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout c.key -out c.crt -days 2"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([program, *arguments.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


class TestTls:
    @pytest.mark.parametrize("trusted", [True, False])
    async def test_an_https_upstream(self, certificate, trusted):
        """It is asked where its certificate is good, and not at all where it is not."""
        bodies: list[int] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for size in (1_000_000, 13):
                await reader.readuntil(b"\r\n\r\n")
                bodies.append(len(await reader.readexactly(size)))
                writer.write(OK.wire())
            await reader.read()
            writer.close()

        own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own.load_cert_chain(certificate / "c.crt", certificate / "c.key")
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own)
        port = server.sockets[0].getsockname()[1]
        connector = Connector()
        if trusted:
            connector._ssl = ssl.create_default_context(cafile=certificate / "c.crt")
        endpoint = Endpoint(_upstream(base_url=f"https://127.0.0.1:{port}/v1"), connector)
        async with asyncio.timeout(PATIENCE_S):
            if trusted:
                for body in (b"x" * 1_000_000, BODY):
                    reply = await endpoint.ask(body, stream=False, request_id=ID)
                    assert b'{"a":1}' == await reply.content.read()
                assert [1_000_000, 13] == bodies
            else:
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await endpoint.ask(BODY, stream=False, request_id=ID)
            endpoint.close()
            await connector.close()
            server.close()
            await server.wait_closed()


async def test_more_headers(asking: Callable[..., Awaitable[Asking]]) -> None:
    """They stand beside our own, and the request is as long as it says."""
    ask = await asking(OK)
    reply = await ask.endpoint.ask(BODY, stream=False, request_id=ID, more=b"\r\nx-a: b\r\nx-c: d")
    await reply.content.read()
    [request] = ask.upstream.requests
    assert ("b", "d", ID) == tuple(request.header(name) for name in ("x-a", "x-c", "x-request-id"))
    assert BODY == request.body
