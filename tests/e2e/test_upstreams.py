"""What upstreams do: well, badly, late, never, and one after another."""

import asyncio
import gzip
import json
import socket
import struct

import pytest

from relay.testing import (
    Abort,
    Close,
    Gate,
    Hang,
    Head,
    Pause,
    Raw,
    Script,
    Send,
    Split,
    frames,
    refused,
    streamed,
    whole,
)

HELLO = frames.stream(["Hel", "lo ", "世界"])
DATA = b"".join(HELLO)
OK = streamed(HELLO)
ANSWER = whole(frames.body("Hello"))


def said(*events):
    return streamed(events)


# An upstream's answer to a stream request → status and code, before anything was sent.
REFUSALS = {
    "html": (whole(b"<html>", content_type="text/html"), 502, "upstream_malformed"),
    "json in place of a stream": (whole(frames.body("Hello")), 502, "upstream_malformed"),
    "compressed": (
        whole(gzip.compress(DATA), [("Content-Encoding", "gzip")], content_type="text/event-stream"),
        502,
        "upstream_malformed",
    ),
    "redirect": (refused(302, b"", [("Location", "http://127.0.0.1:9/v1/chat/completions")]), 502, "upstream_error"),
    "redirect that keeps the method": (refused(307, b"", [("Location", "/other")]), 502, "upstream_error"),
    "no content": (Script(Head(204, (), framing=0)), 502, "upstream_error"),
    "unauthorized": (refused(401), 502, "upstream_auth"),
    "forbidden": (refused(403), 502, "upstream_auth"),
    "internal error": (refused(500), 502, "upstream_error"),
    "internal error in HTML": (refused(500, b"<h1>", content_type="text/html"), 502, "upstream_error"),
    "bad gateway": (refused(502), 502, "upstream_error"),
    "overloaded": (refused(529), 502, "upstream_error"),
    "error body that never ends": (Script(Head(500, framing=1000), Send(b"{"), Hang()), 502, "upstream_error"),
    "busy": (refused(429), 429, "rate_limit_exceeded"),
    "no model": (refused(404, frames.error_body("No such model.", code="model_not_found")), 404, "model_not_found"),
    "no JSON": (refused(400, b"<h1>no</h1>", content_type="text/html"), 400, "invalid_request"),
    "no error object": (refused(422, b'["error"]'), 422, "invalid_request"),
    "no message": (refused(413, b'{"error":"too large"}'), 413, "invalid_request"),
    "an error before anything else": (said(frames.error()), 502, "upstream_error"),
    "nothing at all": (Script(Head()), 502, "upstream_incomplete"),
    "no event": (Script(Head(), Send(b": hello\n\n\n\n")), 502, "upstream_incomplete"),
    "a head and an end": (Script(Head(framing=100), Close()), 502, "upstream_incomplete"),
    "no head": (Script(Close()), 502, "upstream_unavailable"),
    "half a head": (Script(Raw(b"HTTP/1.1 200 OK\r\nContent-"), Close()), 502, "upstream_unavailable"),
    "no HTTP": (Script(Raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), Hang()), 502, "upstream_unavailable"),
    "a head that is too long": (Script(Raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"), Hang()), 502, "upstream_unavailable"),
    "an event that is too long": (Script(Head(), Send(b"data: " + b"x" * 5_000_000), Hang()), 502, "upstream_malformed"),
    "[DONE] with something behind": (said(frames.data("[DONE]x")), 502, "upstream_malformed"),
    "no object": (said(frames.data("Hello")), 502, "upstream_malformed"),
}  # fmt: skip

# What the upstream says in a stream → the code that ends it, or None; and the text that came.
STREAMS = {
    "no [DONE] after every choice has finished": (said(*HELLO[:-1]), None, "Hello 世界"),
    "no [DONE] and no finish": (said(*HELLO[:-2]), "upstream_incomplete", "Hello 世界"),
    "[DONE] without a finish": (said(*HELLO[:-2], HELLO[-1]), None, "Hello 世界"),
    "[DONE] without its blank line": (
        Script(Head(), Send(b"".join(HELLO[:-1]) + b"data: [DONE]\n")),
        None,
        "Hello 世界",
    ),
    "[DONE] with something behind": (said(*HELLO[:3], frames.data("[DONE]x")), "upstream_malformed", "Hello "),
    "an error in the middle": (said(*HELLO[:3], frames.error("sk-secret at 10.0.0.1")), "upstream_error", "Hello "),
    "half a frame": (Script(Head(), Send(b"".join(HELLO[:3]) + b'data: {"cho')), "upstream_incomplete", "Hello "),
    "a frame that is no object": (said(*HELLO[:3], frames.data("oops")), "upstream_malformed", "Hello "),
    "an event that is too long": (
        Script(Head(), Send(b"".join(HELLO[:3])), Send(b"data: " + b"x" * 5_000_000), Hang()),
        "upstream_malformed",
        "Hello ",
    ),
    "a broken chunk": (Script(Head(), Send(b"".join(HELLO[:3])), Raw(b"zz\r\n"), Hang()), "upstream_incomplete", "Hello "),
    "a reset": (Script(Head(), Send(b"".join(HELLO[:3])), Abort()), "upstream_incomplete", "Hello "),
    "an end in the middle of a chunked body": (
        Script(Head(), Send(b"".join(HELLO[:3])), Close()),
        "upstream_incomplete",
        "Hello ",
    ),
    "an end in the middle of a counted body": (
        Script(Head(framing=100_000), Send(b"".join(HELLO[:3])), Close()),
        "upstream_incomplete",
        "Hello ",
    ),
    "an end of the connection for an end of the body": (
        Script(Head(framing="until-close"), Send(b"".join(HELLO[:-1]))),
        None,
        "Hello 世界",
    ),
    "no content type": (Script(Head(headers=()), Send(DATA)), None, "Hello 世界"),
    "empty events": (said(HELLO[0], b"data:\n\n", b"data: \n\n", *HELLO[1:]), None, "Hello 世界"),
}  # fmt: skip


class TestBadAnswers:
    @pytest.mark.parametrize("name", REFUSALS)
    async def test_before_anything_was_sent(self, serve, name):
        """The client gets a clean error with a status; nothing of ours or of the upstream's stands in it."""
        script, status, code = REFUSALS[name]
        rig = await serve(script)
        reply = await rig.ask()
        assert (status, code) == (reply.status, reply.error["code"])
        assert ("false" if status == 502 else None) == reply.headers.get("x-should-retry")
        for secret in (str(rig.upstream.port), "127.0.0.1", "<h1>"):
            assert secret not in reply.data.decode()
        assert 1 == rig.upstream.received
        outcome = "upstream_error" if status in (429, 502) else "refused"
        assert [(outcome, code, status)] == [
            (line["outcome"], line["code"], line["status"]) for line in await rig.ended()
        ]
        if status == 502:
            failures = [name for name in await rig.metrics() if name.startswith("relay_upstream_errors_total")]
            assert 1 == len(failures)

    @pytest.mark.parametrize("name", STREAMS)
    async def test_in_a_stream(self, serve, name):
        """The client gets what came, an error object if it was not all, and [DONE]."""
        script, code, text = STREAMS[name]
        rig = await serve(script)
        reply = await rig.ask()
        assert (200, text, code) == (reply.status, reply.texts()[0], reply.broken_by)
        assert b"sk-secret" not in reply.data
        [line] = await rig.ended()
        assert ("upstream_error" if code else "completed", code) == (line["outcome"], line["code"])

    @pytest.mark.parametrize(
        ("script", "code"),
        [
            (Script(Head(headers=(("Content-Type", "application/json"),)), Send(b'{"id":1')), "upstream_malformed"),
            (Script(Head(headers=(("Content-Type", "application/json"),), framing=99), Send(b'{"id":1'), Close()), "upstream_incomplete"),
            (whole(b"[]"), "upstream_malformed"),
            (whole(b""), "upstream_malformed"),
            (whole(frames.error_body()), "upstream_error"),
            (OK, "upstream_malformed"),
            (whole(b'{"x":"' + b"a" * (17 * 1024 * 1024) + b'"}'), "upstream_malformed"),
        ],
        ids=["cut", "died", "list", "empty", "error", "stream", "too long"],
    )  # fmt: skip
    async def test_in_a_whole_reply(self, serve, script, code):
        """Nothing is sent of a reply that is not whole and sound."""
        rig = await serve(script)
        reply = await rig.ask(stream=False)
        assert (502, code, "false") == (reply.status, reply.error["code"], reply.headers["x-should-retry"])

    async def test_death_at_any_byte(self, serve):
        """What came is sent, then an error and [DONE]; a stream that was whole is whole."""
        wire = OK.wire()
        points = [*range(0, 130, 13), *range(130, len(wire), 61), len(wire) - 5, len(wire) - 1]
        rig = await serve([OK.cut_off(at, by) for at in points for by in (Abort(), Close(), Close())])
        rig.loudest = "warning"  # it is ejected, and asked all the same: there is no other
        for at in points:
            for stream in (True, True, False):
                reply = await rig.ask(stream=stream)
                if reply.status == 502:
                    assert reply.error["code"] in ("upstream_unavailable", "upstream_incomplete", "upstream_malformed")
                    continue
                assert DATA.startswith(reply.data.split(b'data: {"error"')[0].removesuffix(b"data: [DONE]\n\n"))
                assert reply.broken_by in ("upstream_incomplete", None)
                if reply.broken_by is None:
                    assert DATA == reply.data
                assert at > wire.index(b"\r\n\r\n")

    async def test_an_error_is_passed_on_without_addresses_and_keys(self, serve):
        """Message, type, param and code of an upstream's refusal are forwarded, also if the body comes in pieces."""
        error = {
            "message": "Key sk-abcdefgh123456 has no model at http://10.1.2.3:8000/v1 or 10.1.2.3:8000.",
            "type": "invalid_request_error",
            "param": "tools[0] of http://10.1.2.3/v1",
            "code": "unsupported_value",
        }
        body = json.dumps({"error": error}).encode()
        head = Head(400, (("Content-Type", "application/json"),))
        rig = await serve([refused(400, body), Script(head, Split(body))])
        for _ in range(2):
            reply = await rig.ask()
            assert 400 == reply.status
            assert {**error, "message": "Key … has no model at … or ….", "param": "tools[0] of …"} == reply.error

    async def test_a_busy_upstream_says_when(self, serve):
        """Its Retry-After is the client's, unless it is none."""
        rig = await serve([
            refused(429, headers=[("Retry-After", "7")]),
            refused(429, headers=[("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")]),
            refused(429, headers=[("Retry-After", "<script>")]),
        ])  # fmt: skip
        given = [(await rig.ask()).headers.get("Retry-After") for _ in range(3)]
        assert ["7", "Wed, 21 Oct 2026 07:28:00 GMT", None] == given


class TestTime:
    async def test_no_head_in_time(self, serve):
        """504, and the connection is closed."""
        rig = await serve(Script(Hang()), upstream={"first_byte_timeout_s": 0.1})
        reply = await rig.ask()
        assert (504, "upstream_timeout") == (reply.status, reply.error["code"])
        await rig.upstream.closed(rig.upstream.requests[0])

    async def test_silence_before_the_first_byte_of_the_body(self, serve):
        """504 as well: the head of the reply has not left."""
        for stream in (True, False):
            head = Head() if stream else Head(headers=(("Content-Type", "application/json"),))
            rig = await serve(Script(head, Hang()), upstream={"idle_timeout_s": 0.1}, server={"keepalive_s": 0.05})
            reply = await rig.ask(stream=stream)
            assert (504, "upstream_timeout") == (reply.status, reply.error["code"])
            await rig.upstream.closed(rig.upstream.requests[0])

    async def test_silence_in_the_middle(self, serve):
        """An error in the stream; keep-alive comments of ours do not count as life of the upstream's."""
        rig = await serve(
            Script(Head(), Send(b"".join(HELLO[:3])), Hang()),
            upstream={"idle_timeout_s": 0.2},
            server={"keepalive_s": 0.05},
        )
        reply = await rig.ask()
        assert ("upstream_timeout", "Hello ") == (reply.broken_by, reply.texts()[0])
        await rig.upstream.closed(rig.upstream.requests[0])

    async def test_comments_are_life(self, serve):
        """An upstream that says that it still works is waited for."""
        comments = [step for _ in range(8) for step in (Send(frames.comment("ping")), Pause(0.05))]
        rig = await serve(
            Script(Head(), Send(HELLO[0]), *comments, Send(b"".join(HELLO[1:]))),
            upstream={"idle_timeout_s": 0.2},
            server={"keepalive_s": 0.05},
        )
        assert "Hello 世界" == (await rig.ask()).texts()[0]


class TestSeveral:
    async def test_one_that_cannot_be_reached(self, serve):
        """502 where there is no other; else the next priority is asked, and the client sees nothing of it."""
        nobody = f"http://127.0.0.1:{_free_port()}/v1"
        rig = await serve(nobody)
        reply = await rig.ask()
        assert (502, "upstream_unavailable") == (reply.status, reply.error["code"])
        rig = await serve(nobody, OK, upstreams=[{"priority": 0}, {"priority": 1}])
        assert DATA == (await rig.ask()).data
        assert ["u1"] == [line["upstream"] for line in await rig.ended()]

    @pytest.mark.parametrize(
        ("first", "retry_on", "asked"),
        [
            (refused(429), None, 1),
            (refused(503), None, 1),
            (refused(500), None, 0),
            (refused(500), ["500"], 1),
            (refused(502), ["500"], 0),
            (Script(Hang()), None, 0),
            (Script(Hang()), ["first_byte"], 1),
            (Script(Close()), None, 0),
            (refused(400), ["500", "503"], 0),
            (said(frames.error()), ["500", "503"], 0),
        ],
        ids=str,
    )
    async def test_the_next_is_asked_only_where_nothing_can_happen_twice(self, serve, first, retry_on, asked):
        """By default after 429 and 503; after what may have acted only where the operator lists it."""
        own = {"first_byte_timeout_s": 0.1, **({"retry_on": retry_on} if retry_on else {})}
        rig = await serve(first, OK, upstreams=[{"priority": 0, **own}, {"priority": 1}])
        reply = await rig.ask()
        assert (1, asked) == (rig.upstream.received, rig.upstreams[1].received)
        assert (200 if asked else reply.status) == reply.status

    async def test_the_last_error_is_the_clients(self, serve):
        """When all have been asked, what the last one said counts."""
        rig = await serve(
            refused(503), refused(429, headers=[("Retry-After", "3")]), upstreams=[{"priority": 1}, {"priority": 2}]
        )
        reply = await rig.ask()
        assert (429, "3") == (reply.status, reply.headers["Retry-After"])

    async def test_weights(self, serve):
        """Within a priority the load follows the weights; a weight decides nothing between priorities."""
        rig = await serve(
            ANSWER, ANSWER, ANSWER, upstreams=[{"weight": 9}, {"weight": 1}, {"weight": 1000, "priority": 1}]
        )
        for _ in range(100):
            await rig.ask(stream=False)
        first, second, third = (upstream.received for upstream in rig.upstreams)
        assert (100, 0) == (first + second, third)
        assert 70 < first < 100  # outside once in ten thousand runs of an honest draw

    async def test_names_of_models(self, serve):
        """A model is renamed for its upstream; "*" passes every other name; who does not serve a model is not asked."""
        rig = await serve(
            ANSWER, ANSWER, upstreams=[{"models": {"mine": "theirs"}}, {"models": {"*": "*", "b": "B"}, "priority": -1}]
        )
        for model in ("mine", "b", "anything"):
            await rig.ask(stream=False, model=model)
        named = [[request.json["model"] for request in upstream.requests] for upstream in rig.upstreams]
        assert [[], ["mine", "B", "anything"]] == named
        rig = await serve(ANSWER, ANSWER, upstreams=[{"models": {"mine": "theirs"}}, {"models": ["b"]}])
        assert 200 == (await rig.ask(stream=False, model="mine")).status
        assert "theirs" == rig.upstream.requests[0].json["model"]
        reply = await rig.ask(stream=False, model="anything")
        assert (404, "invalid_model") == (reply.status, reply.error["code"])
        async with rig.session.get(rig.url + "/v1/models") as response:
            assert ["mine", "b"] == [model["id"] for model in (await response.json())["data"]]

    async def test_a_renamed_request_is_otherwise_the_clients(self, serve):
        """All fields but the name are the same JSON."""
        rig = await serve(ANSWER, upstream={"models": {"mine": "theirs"}})
        await rig.ask(stream=False, model="mine", seed=10**60, x={"b": [1.50, "é"]})
        [request] = rig.upstream.requests
        assert {"seed": 10**60, "x": {"b": [1.5, "é"]}, "model": "theirs"} == {
            name: request.json[name] for name in ("seed", "x", "model")
        }

    async def test_a_large_request(self, serve):
        """It goes on whole, and without aiohttp's warning that it is large."""
        rig = await serve(ANSWER, chain=[])
        text = "十" * 600_000
        await rig.ask(stream=False, messages=[{"role": "user", "content": text}])
        assert text == (await rig.upstream.request()).json["messages"][0]["content"]


class TestPool:
    @pytest.mark.parametrize("end", [Close(), Abort()], ids=["closed", "reset"])
    async def test_a_connection_that_ends_unanswered_is_replaced(self, serve, end):
        """One that was used before and breaks without a byte is asked again on a fresh one, once."""
        rig = await serve([OK, Script(end), OK])
        assert [DATA] * 2 == [(await rig.ask()).data for _ in range(2)]
        assert [1, 1, 2] == [request.connection for request in rig.upstream.requests]

    async def test_a_fresh_one_that_ends_unanswered_is_not(self, serve):
        """The upstream may have acted."""
        rig = await serve([Script(Abort()), OK])
        assert 502 == (await rig.ask()).status
        assert 1 == rig.upstream.received

    async def test_an_answer_that_had_begun_is_not_asked_for_again(self, serve):
        """Half a head is a sign that the upstream has acted."""
        rig = await serve([OK, Script(Raw(b"HTTP/1.1 200 OK\r\nContent-Type: te"), Close()), OK])
        assert DATA == (await rig.ask()).data
        assert 502 == (await rig.ask()).status
        assert 2 == rig.upstream.received

    async def test_a_stale_connection(self, serve):
        """An upstream that closes between two requests sees the second one exactly once."""
        stale = _Stale()
        async with stale:
            rig = await serve(f"http://127.0.0.1:{stale.port}/v1")
            assert ["Hello"] * 3 == [(await rig.ask(stream=False)).texts()[0] for _ in range(3)]
        assert 3 == stale.answered

    async def test_many_at_once(self, serve):
        """More than aiohttp's hundred connections are open at the same time."""
        go = asyncio.Event()
        rig = await serve(Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:]))))
        asked = [asyncio.create_task(_by_wire(rig)) for _ in range(125)]
        await rig.upstream.until(lambda: rig.upstream.received == 125)
        go.set()
        assert {DATA} == {reply.data for reply in await asyncio.gather(*asked)}


async def _by_wire(rig):
    wire = await rig.dial()
    wire.send(rig.request())
    return await wire.reply()


class _Stale:
    """Answers one request a connection and says nothing of closing; what comes after it is not read but reset."""

    async def __aenter__(self):
        self.answered = 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        sock = writer.get_extra_info("socket")
        reader._limit = 2**20
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        self.answered += 1
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.pause_reading()
        writer.write(ANSWER.wire())
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        copy = sock.dup()
        loop.add_reader(copy, lambda: readable.done() or readable.set_result(None))
        try:
            async with asyncio.timeout(5):
                await readable
        except TimeoutError:
            pass
        loop.remove_reader(copy)
        copy.close()
        writer.transport.abort()


def _free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
