"""HTTP as clients speak it, well and badly: on bare connections."""

import asyncio
import json

import pytest

from relay.testing import Gate, Head, Script, Send, answers, frames, streamed, whole

from .conftest import AUTH

HELLO = frames.stream(["Hel", "lo ", "世界"])
DATA = b"".join(HELLO)
BOTH = answers(["Hel", "lo"])

# What a client sends that is no request → the status of the answer. Each is answered once and the connection closed.
NO_REQUESTS = {
    "a long header": (b"GET / HTTP/1.1\r\nHost: relay\r\nX-Long: " + b"canary-prompt " * 700 + b"\r\n\r\n", 431),
    "a long request line": (b"GET /" + b"canary-prompt/" * 700 + b" HTTP/1.1\r\nHost: relay\r\n\r\n", 431),
    "no request line": (b"canary-prompt\r\n\r\n", 400),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost: relay\r\ncanary-prompt\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "an unknown transfer encoding": (
        b"POST / HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a negative length": (b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: -1\r\n\r\n", 400),
    "a target that is no URL": (b"GET http://[::1/v1/models HTTP/1.1\r\nHost: relay\r\n\r\n", 400),
    "two hosts": (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
}

# Requests that are well formed and refused → status, code.
REFUSED = {
    "an unknown path": ("GET /v1/embeddings HTTP/1.1", (), b"", 404, "not_found"),
    "a path in capitals": ("POST /V1/chat/completions HTTP/1.1", (), b"{}", 404, "not_found"),
    "the root": ("GET / HTTP/1.1", (), b"", 404, "not_found"),
    "an asterisk": ("OPTIONS * HTTP/1.1", (), b"", 404, "not_found"),
    "a wrong method": ("GET /v1/chat/completions HTTP/1.1", (), b"", 405, "method_not_allowed"),
    "another wrong method": ("DELETE /v1/models HTTP/1.1", (), b"", 405, "method_not_allowed"),
    "an invented method": ("PURGE /v1/models HTTP/1.1", (), b"", 405, "method_not_allowed"),
    "no key": ("POST /v1/chat/completions HTTP/1.1", (), b"{}", 401, "invalid_api_key"),
    "a wrong key": ("POST /v1/chat/completions HTTP/1.1", ("Authorization: Bearer sk-x",), b"{}", 401, "invalid_api_key"),
    "two keys": (
        "POST /v1/chat/completions HTTP/1.1",
        ("Authorization: Bearer KEY", "Authorization: Bearer KEY"),
        b"{}",
        400,
        "bad_request",
    ),
    "a compressed body": (
        "POST /v1/chat/completions HTTP/1.1",
        ("Authorization: Bearer KEY", "Content-Encoding: gzip"),
        b"{}",
        415,
        "unsupported_media_type",
    ),
    "no JSON": ("POST /v1/chat/completions HTTP/1.1", ("Authorization: Bearer KEY",), b"oops", 400, "invalid_json"),
    "no body": ("POST /v1/chat/completions HTTP/1.1", ("Authorization: Bearer KEY",), b"", 400, "invalid_json"),
    "no messages": (
        "POST /v1/chat/completions HTTP/1.1",
        ("Authorization: Bearer KEY",),
        b'{"model":"m"}',
        400,
        "invalid_messages",
    ),
    "a key twice": (
        "POST /v1/chat/completions HTTP/1.1",
        ("Authorization: Bearer KEY",),
        b'{"model":"m","model":"n","messages":[{}]}',
        400,
        "repeated_key",
    ),
}  # fmt: skip


def request_of(line, headers, body, key):
    lines = [line, "Host: relay", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).replace("KEY", key).encode() + b"\r\n\r\n" + body


@pytest.fixture
def key(rig):
    return rig.session.headers["Authorization"].removeprefix("Bearer ")


@pytest.fixture
async def rig(serve):
    """A relay whose upstream answers everything. Nothing here is a matter of how its body is read."""
    return await serve(BOTH)


@pytest.fixture
def reader():
    return "push"


class TestNoRequests:
    @pytest.mark.parametrize("name", NO_REQUESTS)
    async def test_they_are_answered_in_our_shape(self, rig, name):
        """A status, an error object that echoes nothing, an id, and the end of the connection."""
        sent, status = NO_REQUESTS[name]
        wire = await rig.dial()
        wire.send(sent)
        reply = await wire.reply()
        assert status == reply.status
        assert {400: "bad_request", 431: "headers_too_large"}[status] == reply.error["code"]
        assert 32 == len(reply.headers["X-Request-Id"])
        assert "relay" == reply.headers["Server"]
        assert b"canary" not in reply.data
        assert b"" == await wire.rest()

    async def test_headers_without_end(self, rig):
        """A head of many small lines is bounded too."""
        wire = await rig.dial()
        wire.send(
            b"GET /v1/models HTTP/1.1\r\nHost: relay\r\n"
            + b"".join(b"X-%d: y\r\n" % n for n in range(10_000))
            + b"\r\n"
        )
        reply = await wire.reply()
        assert reply.status in (400, 431)
        assert reply.error["code"] in ("bad_request", "headers_too_large")

    async def test_a_body_in_broken_chunks(self, serve):
        """400, also if it breaks after the request has begun."""
        rig = await serve(BOTH)
        head, _ = rig.request().split(b"\r\n\r\n")
        head = head.replace(b"Content-Length", b"X-Length") + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire = await rig.dial()
        wire.send(head + b"zz\r\n")
        assert (400, "bad_request") == await _refusal(wire)
        wire = await rig.dial()
        wire.send(head)
        await rig.until(lambda: rig.replies)
        wire.send(b"zz\r\n")
        assert (400, "bad_request") == await _refusal(wire)
        assert b"" == await wire.rest()


async def _refusal(wire):
    reply = await wire.reply()
    return reply.status, reply.error["code"]


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    async def test_in_our_shape(self, rig, key, name):
        """Every refusal has a code of its own and says what to do; the connection serves the next request."""
        line, headers, body, status, code = REFUSED[name]
        wire = await rig.dial()
        wire.send(request_of(line, headers, body, key))
        reply = await wire.reply()
        assert (status, code) == (reply.status, reply.error["code"])
        assert rig.requests[0]["request_id"] == reply.headers["X-Request-Id"]
        wire.send(rig.request(stream=False))
        assert 200 == (await wire.reply()).status

    async def test_a_wrong_key_is_masked(self, rig):
        """Of a long one enough is shown for its owner to know it, of a short one nothing."""
        for wrong, shown in (("sk-0123456789abcdefghij", "sk-01234" + "*" * 41 + "ghij"), ("sk-short", "*" * 8)):
            reply = await rig.ask(headers={"Authorization": f"Bearer {wrong}"})
            assert f"Incorrect API key provided: {shown}. You can" in reply.error["message"]

    async def test_a_body_that_is_too_large(self, serve):
        """413, told by its length before a byte of it has come, or when it has become too long."""
        rig = await serve(BOTH, server={"max_body_bytes": 1000})
        for chunked in (False, True):
            wire = await rig.dial()
            request = rig.request(x="y" * 2000)
            if chunked:
                head, body = request.split(b"\r\n\r\n")
                head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
                request = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            wire.send(request)
            reply = await wire.reply()
            assert (413, "request_too_large") == (reply.status, reply.error["code"])
        assert 0 == rig.upstream.received

    async def test_a_body_that_is_just_not_too_large(self, serve):
        """The limit is the last size that is taken."""
        rig = await serve(BOTH)
        exact = len(rig.request().split(b"\r\n\r\n", 1)[1])
        for limit, status in ((exact, 200), (exact - 1, 413)):
            rig = await serve(BOTH, server={"max_body_bytes": limit})
            assert status == (await rig.ask()).status

    async def test_a_slow_body(self, serve):
        """408 when its time is over."""
        rig = await serve(BOTH, server={"body_timeout_s": 0.1})
        wire = await rig.dial()
        wire.send(rig.request()[:-5])
        reply = await wire.reply()
        assert (408, "request_timeout") == (reply.status, reply.error["code"])


class TestVersions:
    async def test_http_1_0(self, serve):
        """The body ends with the connection and is not chunked, whatever the client says of keeping it."""
        rig = await serve(streamed(HELLO))
        for headers in ((), ("Connection: keep-alive",)):
            wire = await rig.dial()
            wire.send(rig.request(version="1.0", headers=headers))
            status, head = await wire.head()
            assert 200 == status
            assert "transfer-encoding" not in head
            assert "keep-alive" != head.get("connection")
            assert DATA == await wire.rest()

    async def test_a_whole_reply_in_http_1_0(self, rig):
        """Its length is known."""
        wire = await rig.dial()
        wire.send(rig.request(version="1.0", stream=False))
        assert "Hello" == (await wire.reply()).texts()[0]

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("chunks", [True, False])
    @pytest.mark.parametrize("status", [204, 304])
    async def test_a_status_without_a_body(self, serve, status, chunks, stream):
        """Nothing comes behind its head but the answer to the next request."""
        answers = {"use": "fakes:NothingNew", "status": status, "chunks": chunks}
        rig = await serve(streamed(HELLO), chain=[AUTH, answers])
        wire = await rig.dial()
        wire.send(rig.request(stream=stream))
        given, head = await wire.head()
        assert status == given
        assert not head.keys() & {"content-length", "transfer-encoding"}
        wire.send(rig.request())
        assert DATA == (await wire.reply()).data

    async def test_a_connection_that_is_to_be_closed(self, rig):
        """`Connection: close` is kept to after the stream."""
        wire = await rig.dial()
        wire.send(rig.request(headers=("Connection: close",)))
        reply = await wire.reply()
        assert "Hello" == reply.texts()[0]
        assert b"" == await wire.rest()


class TestMethods:
    async def test_head(self, rig):
        """The head that GET would have, and nothing behind it."""
        wire = await rig.dial()
        for line, status in (("HEAD /v1/models HTTP/1.1", 200), ("HEAD /v1/chat/completions HTTP/1.1", 405)):
            authorization = rig.session.headers["Authorization"]
            wire.send(f"{line}\r\nHost: relay\r\nAuthorization: {authorization}\r\n\r\n".encode())
            given, head = await wire.head()
            assert status == given
            assert int(head["content-length"]) > 0
        wire.send(rig.request(stream=False))
        assert "Hello" == (await wire.reply()).texts()[0]

    async def test_options(self, serve):
        """A page of an allowed origin may ask; others are told nothing. It is no request that failed."""
        rig = await serve(BOTH, server={"cors_origins": ["https://chat.example"]})
        for origin, allowed in (("https://chat.example", "https://chat.example"), ("https://evil.example", None)):
            async with rig.session.options(rig.chat_url, headers={"Origin": origin}) as response:
                assert (204, "POST, OPTIONS") == (response.status, response.headers["Allow"])
                assert allowed == response.headers.get("Access-Control-Allow-Origin")
            reply = await rig.ask(headers={"Origin": origin})
            assert allowed == reply.headers.get("Access-Control-Allow-Origin")
        asked = "authorization, content-type, x-stainless-os, x-stainless-retry-count"
        for names, allowed in ((asked, asked), ("a\tb", "authorization, content-type")):
            preflight = {"Origin": "https://chat.example", "Access-Control-Request-Headers": names}
            async with rig.session.options(rig.chat_url, headers=preflight) as response:
                assert allowed == response.headers["Access-Control-Allow-Headers"]
        lines = await rig.ended(6)
        assert ["completed"] * 6 == [line["outcome"] for line in lines]
        assert 4 == [line["status"] for line in lines].count(204)

    async def test_expect_100_continue(self, rig):
        """The body is asked for, and only if it is wanted."""
        wire = await rig.dial()
        head, body = rig.request(stream=False, headers=("Expect: 100-continue",)).split(b"\r\n\r\n")
        wire.send(head + b"\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == await wire.through(b"\r\n\r\n")
        wire.send(body)
        assert "Hello" == (await wire.reply()).texts()[0]
        wire.send(head.replace(b"Content-Length", b"Content-Encoding: gzip\r\nContent-Length") + b"\r\n\r\n")
        assert 415 == (await wire.reply()).status


class TestPipelining:
    async def test_requests_in_one_write(self, rig):
        """They are answered in order, refused ones too, and whole streams are not mixed."""
        wire = await rig.dial()
        kinds = [True, False, None, True, False]
        wire.send(
            b"".join(
                b"GET /no HTTP/1.1\r\nHost: relay\r\n\r\n" if kind is None else rig.request(stream=kind)
                for kind in kinds
            )
        )
        for kind in kinds:
            reply = await wire.reply()
            if kind is None:
                assert 404 == reply.status
            else:
                assert (200, "Hello") == (reply.status, reply.texts()[0])
                assert kind == reply.headers["Content-Type"].startswith("text/event-stream")

    async def test_a_second_request_during_a_stream(self, serve):
        """It waits for its turn and disturbs nothing."""
        go = asyncio.Event()
        rig = await serve(
            [Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:]))), whole(frames.body("2"))]
        )
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(HELLO[0])
        wire.send(rig.request(stream=False))
        go.set()
        rest = await wire.through(b"0\r\n\r\n")
        assert rest.count(b"data: ") == len(HELLO) - 1
        assert "2" == (await wire.reply()).texts()[0]


class TestModels:
    async def test_the_list(self, serve):
        """The public names, for those who have a key."""
        rig = await serve(BOTH, upstream={"models": ["a", "b", "*"]})
        async with rig.session.get(rig.url + "/v1/models") as response:
            listed = json.loads(await response.read())
        assert ("list", ["a", "b"]) == (listed["object"], [model["id"] for model in listed["data"]])
        async with rig.session.get(rig.url + "/v1/models", headers={"Authorization": ""}) as response:
            assert 401 == response.status
