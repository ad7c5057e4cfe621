"""The scripted upstream and its frames, by a plain aiohttp client and by a bare socket reader."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.testing import (
    Abort,
    Close,
    End,
    Gate,
    Hang,
    Head,
    Pause,
    Raw,
    Repeat,
    Request,
    Script,
    ScriptedUpstream,
    Scripts,
    Send,
    Split,
    answers,
    chunked,
    frames,
    refused,
    streamed,
    whole,
)

# The replies of the first public API's page, as printed there but for the white space of its JSON.
PAGE_STREAM = "".join(
    'data: {"id":"chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT","object":"chat.completion.chunk","created":1685526975,'
    '"model":"gpt-3.5-turbo-1106","system_fingerprint":"fp_eeff13170a",'
    f'"choices":[{{"delta":{delta},"index":0,"finish_reason":{finish}}}]}}\n\n'
    for delta, finish in [
        ('{"role":"assistant"}', "null"),
        *((f'{{"content":"{piece}"}}', "null") for piece in "1+1=2。"),
        ("{}", '"stop"'),
    ]
)
PAGE_BODY = (
    '{"id":"chatcmpl-7MCqEj6w5C4fUuLcTrsDH2e6ExYkv","object":"chat.completion","created":1685526934,'
    '"model":"gpt-3.5-turbo-1106","usage":{"prompt_tokens":41,"completion_tokens":6,"total_tokens":47},'
    '"choices":[{"message":{"role":"assistant","content":"1+1=2。"},"finish_reason":"stop","index":0}],'
    '"system_fingerprint":"fp_eeff13170a"}'
)
HELLO = frames.stream(["Hel", "lo"])
SMALL = Script(Head(200, ()), Send(b"ab"), Send(b"c"))
SMALL_WIRE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
ASK = b"GET / HTTP/1.1\r\nHost: upstream\r\n\r\n"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Reader(asyncio.Protocol):
    """A client that asks once, keeps every read apart, and knows how the connection ended."""

    def __init__(self, ask: bytes = ASK) -> None:
        self.reads: list[bytes] = []
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ask = ask

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._ask)

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)

    def eof_received(self) -> None:
        self.ended.set_result("closed")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result("reset" if isinstance(exc, ConnectionResetError) else "left")

    @classmethod
    async def ask(cls, upstream: ScriptedUpstream, ask: bytes = ASK) -> "Reader":
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_connection(lambda: cls(ask), upstream.host, upstream.port)
        return reader


async def replied(script: Script | Callable[[Request], Script], ask: bytes = ASK) -> tuple[bytes, str, list[bytes]]:
    """All bytes of one reply, how the connection ended, and the reads it came in."""
    async with ScriptedUpstream(script) as upstream:
        reader = await Reader.ask(upstream, ask)
        async with asyncio.timeout(5):
            ended = await reader.ended
    return b"".join(reader.reads), ended, reader.reads


class TestFrames:
    def test_a_stream_is_the_page_of_the_first_api(self) -> None:
        """The frames of a stream are those the first API's page prints, byte for byte."""
        assert PAGE_STREAM + "data: [DONE]\n\n" == b"".join(frames.stream("1+1=2。")).decode()

    def test_a_body_is_the_page_of_the_first_api(self) -> None:
        """The whole reply is the one that the first API's page prints."""
        assert PAGE_BODY == frames.body("1+1=2。").decode()

    def test_a_stamp_goes_into_every_chunk(self) -> None:
        """id, created, model and fingerprint can be set, and keep their places."""
        stamped = frames.text("a", index=2, id="x", created=1, model="m", system_fingerprint=None)
        assert (
            b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","system_fingerprint":null,'
            b'"choices":[{"delta":{"content":"a"},"index":2,"finish_reason":null}]}\n\n'
        ) == stamped

    def test_a_tool_call_opens_with_its_name_and_goes_on_without(self) -> None:
        """Only the first piece of a tool call has id, type and name."""
        opening, more = (
            json.loads(frame[6:])["choices"][0]["delta"]
            for frame in (frames.tool(name="f", call=1), frames.tool('{"a"', call=1))
        )
        assert {
            "tool_calls": [{"index": 1, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]
        } == opening
        assert {"tool_calls": [{"index": 1, "function": {"arguments": '{"a"'}}]} == more

    def test_usage_comes_before_done_and_has_no_choices(self) -> None:
        """Usage stands in a chunk of its own."""
        *_, usage, done = frames.stream(["a"], tokens=(2, 3))
        assert b"data: [DONE]\n\n" == done
        assert b'"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}\n\n' in usage

    def test_an_error_has_the_shape_of_the_api(self) -> None:
        """The same object stands in a body and in a frame."""
        expected = b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}'
        assert expected == frames.error_body("m", kind="t", code="c")
        assert b"data: " + expected + b"\n\n" == frames.error("m", kind="t", code="c")

    def test_a_comment_is_no_data(self) -> None:
        """A comment is a line that begins with a colon, and a blank line."""
        assert b": OPENROUTER PROCESSING\n\n" == frames.comment("OPENROUTER PROCESSING")

    def test_half_a_surrogate_pair_is_sent_escaped(self) -> None:
        """Half a pair cannot be UTF-8, so it goes out as upstreams send it."""
        assert b'"content":"\\ud83d"' in frames.text("\ud83d")

    @given(st.binary(), st.lists(st.integers(-3, 40)))
    def test_pieces_joined_are_the_whole(self, data: bytes, at: list[int]) -> None:
        """A cut loses nothing and yields nothing empty, wherever the positions are."""
        pieces = list(frames.cut(data, at))
        assert data == b"".join(pieces)
        assert b"" not in pieces
        assert {position for position in at if 0 < position < len(data)} == {
            len(b"".join(pieces[:count])) for count in range(1, len(pieces))
        }

    @given(st.binary())
    def test_without_positions_the_cut_is_byte_by_byte(self, data: bytes) -> None:
        """Every piece is one byte."""
        assert [bytes([byte]) for byte in data] == list(frames.cut(data))


class TestScript:
    def test_chunks_are_framed_and_the_body_ended(self) -> None:
        """Each send is an HTTP chunk, and running out of steps ends the body."""
        assert SMALL_WIRE == SMALL.wire()

    def test_nothing_sent_does_not_end_a_chunked_body(self) -> None:
        """An empty send is no chunk at all."""
        assert SMALL_WIRE == Script(Head(200, ()), Send(b"ab"), Send(b""), Send(b"c")).wire()

    def test_steps_of_a_script_among_steps_share_its_framing(self) -> None:
        """A script within a script is as if its steps stood there."""
        assert SMALL_WIRE == Script(Script(Head(200, ()), Send(b"ab")), Send(b"c")).wire()

    def test_an_end_that_is_said_is_not_said_twice(self) -> None:
        """Steps may follow the end of the body."""
        assert [*SMALL.acts(), Close()] == list(Script(SMALL, End(), Close()).acts())

    @pytest.mark.parametrize(
        ("framing", "ends"), [("until-close", [Close()]), (3, []), (4, [Close()]), (2, [Close()]), (0, [Close()])]
    )
    def test_a_body_that_only_closing_can_end_is_closed(self, framing: int, ends: list[Close]) -> None:
        """So it is without a length, and with a length that is not true."""
        assert ends == [act for act in Script(Head(framing=framing), Send(b"abc")).acts() if isinstance(act, Close)]

    def test_repeat_repeats(self) -> None:
        """Steps are repeated in their order; endless ones are made one at a time."""
        assert b"ababab" == Script(Repeat((Send(b"a"), Send(b"b")), times=3)).wire()
        assert b"" == Script(Repeat((Send(b"a"),), times=0)).wire()
        endless = Script(Repeat((Send(b"a"), Pause(1)))).acts()
        assert [Pause(0), b"a", Pause(1)] * 2 == [next(endless) for _ in range(6)]

    def test_frames_are_sent_by_the_handful_and_paced(self) -> None:
        """per_write frames make one send; a pause stands between sends and nowhere else."""
        assert (
            Head(),
            Send(b"ab"),
            Pause(0.5),
            Send(b"cd"),
            Pause(0.5),
            Send(b"e"),
        ) == streamed([b"a", b"b", b"c", b"d", b"e"], pace_s=0.5, per_write=2).steps

    def test_a_script_cut_off_sends_its_first_bytes(self) -> None:
        """Cut at any place, the bytes are the beginning of the whole and the end is the one asked for."""
        for count in range(len(SMALL_WIRE) + 1):
            *sent, end = SMALL.cut_off(count, Hang()).acts()
            assert (SMALL_WIRE[:count], Hang()) == (b"".join(sent), end)

    def test_a_script_goes_wrong_at_any_byte(self) -> None:
        """What comes in place of the rest may be any steps: their bytes are not framed again."""
        wrong = Script(Raw(b"\xff"), Send(b"no"), Close())
        for count in range(len(SMALL_WIRE)):
            *sent, end = SMALL.cut_off(count, wrong).acts()
            assert (SMALL_WIRE[:count] + b"\xffno", Close()) == (b"".join(sent), end)

    def test_pieces_are_paced(self) -> None:
        """A pause stands between two pieces and nowhere else, so a reply can drip and die while it drips."""
        drip = Script(Head(200, ()), Split(b"abc", at=(1, 2), pace_s=0.5))
        head, *acts = drip.acts()
        assert [b"1\r\na\r\n", Pause(0.5), b"1\r\nb\r\n", Pause(0.5), b"1\r\nc\r\n", b"0\r\n\r\n"] == acts
        assert isinstance(head, bytes)
        assert [head, b"1\r\na\r\n", Pause(0.5), b"1", Close()] == list(drip.cut_off(len(head) + 7, Close()).acts())

    @given(st.integers(0, 200), st.integers(1, 7))
    def test_an_endless_script_can_be_cut_off(self, count: int, size: int) -> None:
        """What comes after the cut is never made."""
        assert b"x" * count == Script(Repeat((Send(b"x" * size), Pause(0)))).cut_off(count).wire()

    def test_an_unknown_status_has_no_words(self) -> None:
        """A status nobody has named is sent all the same."""
        assert b"HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n" == Head(299, (), framing=0).wire()


class TestReplies:
    async def test_a_stream_arrives_frame_by_frame(self, client: aiohttp.ClientSession) -> None:
        """Each frame is an HTTP chunk of its own."""
        async with ScriptedUpstream(streamed(HELLO)) as upstream:
            async with client.post(f"{upstream.base_url}/chat/completions") as reply:
                assert (200, "text/event-stream") == (reply.status, reply.content_type)
                assert HELLO == [data async for data, _ in reply.content.iter_chunks() if data]

    async def test_a_paced_stream_is_the_same_stream(self, client: aiohttp.ClientSession) -> None:
        """Pauses change no byte."""
        async with ScriptedUpstream(streamed(HELLO, pace_s=0.001, per_write=2)) as upstream:
            async with client.post(f"{upstream.base_url}/chat/completions") as reply:
                assert b"".join(HELLO) == await reply.read()

    async def test_a_body_has_its_length(self, client: aiohttp.ClientSession) -> None:
        """A reply that is not streamed is JSON of known length."""
        async with ScriptedUpstream(whole(frames.body("Hello"))) as upstream:
            async with client.post(f"{upstream.base_url}/chat/completions") as reply:
                assert (len(frames.body("Hello")), "application/json") == (reply.content_length, reply.content_type)
                assert frames.body("Hello") == await reply.read()

    async def test_a_refusal_is_an_openai_error(self, client: aiohttp.ClientSession) -> None:
        """Status and headers are those asked for; the body is an error unless given."""
        async with ScriptedUpstream(
            [refused(429, headers=[("Retry-After", "7")]), refused(502, b"<h1>", content_type="text/html")]
        ) as upstream:
            async with client.post(upstream.base_url) as reply:
                assert (429, "7") == (reply.status, reply.headers["Retry-After"])
                assert frames.error_body() == await reply.read()
            async with client.post(upstream.base_url) as reply:
                assert "text/html" == reply.content_type
                assert (502, b"<h1>") == (reply.status, await reply.read())

    async def test_the_reply_is_of_the_kind_asked_for(self, client: aiohttp.ClientSession) -> None:
        """`answers` streams to those who ask for a stream."""
        async with ScriptedUpstream(answers(["Hel", "lo"])) as upstream:
            for asked, expected in [
                ({"stream": True}, b"".join(HELLO)),
                ({"stream": False}, frames.body("Hello")),
                ([], frames.body("Hello")),
            ]:
                async with client.post(upstream.base_url, json=asked) as reply:
                    assert expected == await reply.read()
            async with client.post(upstream.base_url, data=b"{") as reply:
                assert frames.body("Hello") == await reply.read()

    async def test_models_are_listed_without_a_script(self, client: aiohttp.ClientSession) -> None:
        """GET /v1/models takes no script from the row."""
        async with ScriptedUpstream([whole(b"1")], models=["m"]) as upstream:
            async with client.get(f"{upstream.base_url}/models") as reply:
                assert ["m"] == [model["id"] for model in (await reply.json())["data"]]
            async with client.post(upstream.base_url) as reply:
                assert b"1" == await reply.read()

    async def test_models_can_be_left_to_the_script(self, client: aiohttp.ClientSession) -> None:
        """With models=None every request takes its script."""
        async with ScriptedUpstream(whole(b"1"), models=None) as upstream:
            async with client.get(f"{upstream.base_url}/models") as reply:
                assert b"1" == await reply.read()

    @pytest.mark.parametrize("framing", ["chunked", 17, "until-close"])
    async def test_every_split_piece_is_a_read_of_its_own(self, framing: int) -> None:
        """A reader in the same process gets each write apart: the head, the pieces, the end."""
        script = Script(Head(framing=framing), Split(b"data: one\n\ndata: ", at=(1, 9, 11)), End(), Close())
        head, *pieces = [act for act in script.acts() if isinstance(act, bytes)]
        got, ended, reads = await replied(script)
        assert (script.wire(), "closed") == (got, ended)
        assert [head, *pieces] == reads

    async def test_forty_thousand_chunks_in_one_write(self, client: aiohttp.ClientSession) -> None:
        """Raw bytes can hold any number of HTTP chunks."""
        events = [frames.data(str(number)) for number in range(40_000)]
        async with ScriptedUpstream(Script(Head(), Raw(b"".join(map(chunked, events))))) as upstream:
            async with client.post(upstream.base_url) as reply:
                assert b"".join(events) == await reply.read()

    async def test_a_gate_holds_the_rest(self, client: aiohttp.ClientSession) -> None:
        """Nothing after the gate is sent before the test opens it."""
        gate = asyncio.Event()
        async with ScriptedUpstream(Script(Head(), Send(b"a"), Gate(gate), Send(b"b"))) as upstream:
            async with client.post(upstream.base_url) as reply:
                assert b"a" == await reply.content.readany()
                request = await upstream.request()
                assert (None, None) == (request.finished_at, request.closed_at)
                gate.set()
                assert b"b" == await reply.content.read()
                assert request.at <= await upstream.finished(request)


class TestEndings:
    @pytest.mark.parametrize(("by", "expected"), [(Abort(), "reset"), (Close(), "closed")])
    async def test_a_reply_can_die_at_every_byte(self, by: Abort | Close, expected: str) -> None:
        """The client gets exactly the bytes before the death, then the reset or the end."""
        lengths = range(len(SMALL_WIRE) + 1)
        async with ScriptedUpstream([SMALL.cut_off(count, by) for count in lengths]) as upstream:
            for count in lengths:
                reader = await Reader.ask(upstream)
                async with asyncio.timeout(5):
                    assert expected == await reader.ended
                assert SMALL_WIRE[:count] == b"".join(reader.reads)
                request = await upstream.request(count + 1)
                await upstream.closed(request)
                assert ("upstream", count) == (request.closed_by, request.sent_bytes)

    async def test_a_real_client_sees_every_death(self, client: aiohttp.ClientSession) -> None:
        """aiohttp raises for each of them; only the whole reply is a reply."""
        lengths = range(len(SMALL_WIRE))
        async with ScriptedUpstream([*(SMALL.cut_off(count) for count in lengths), SMALL]) as upstream:
            for _ in lengths:
                with pytest.raises(aiohttp.ClientError):
                    async with client.post(upstream.base_url) as reply:
                        await reply.read()
            async with client.post(upstream.base_url) as reply:
                assert b"abc" == await reply.read()

    @pytest.mark.parametrize("leave", ["close", "abort"])
    async def test_a_client_that_leaves_is_seen(self, leave: str) -> None:
        """closed() tells when, and which side it was, however it was done."""
        async with ScriptedUpstream(Script(Head(), Hang())) as upstream:
            reader = await Reader.ask(upstream)
            request = await upstream.request()
            left_at = asyncio.get_running_loop().time()
            getattr(reader.transport, leave)()
            assert left_at <= await upstream.closed(request)
            assert ("client", None) == (request.closed_by, request.finished_at)
            await upstream.until(lambda: upstream.open_connections == 0)

    async def test_a_connection_is_used_again(self, client: aiohttp.ClientSession) -> None:
        """After a whole reply the next request comes on the same connection."""
        async with ScriptedUpstream([streamed(HELLO), whole(b"{}"), refused(500), whole(b"{}")]) as upstream:
            for _ in range(4):
                async with client.post(upstream.base_url) as reply:
                    await reply.read()
            assert (1, 1) == (upstream.connections, upstream.open_connections)
            assert [1, 1, 1, 1] == [request.connection for request in upstream.requests]
            assert [None] * 4 == [request.closed_at for request in upstream.requests]
            await client.close()
            closed = {await upstream.closed(request) for request in upstream.requests}
            assert 1 == len(closed)

    async def test_a_connection_can_be_closed_after_the_reply(self, client: aiohttp.ClientSession) -> None:
        """An explicit end lets a script close, or reset, what the client thinks it may use again."""
        async with ScriptedUpstream(Script(streamed(HELLO), End(), Close())) as upstream:
            for number in (1, 2):
                async with client.get(upstream.base_url) as reply:  # aiohttp repeats a GET that met a dead connection
                    assert b"".join(HELLO) == await reply.read()
                await upstream.closed(await upstream.request(number))
            assert 2 == upstream.connections

    async def test_a_client_may_ask_for_the_close(self, client: aiohttp.ClientSession) -> None:
        """`Connection: close` is heeded."""
        async with ScriptedUpstream(streamed(HELLO)) as upstream:
            async with client.post(upstream.base_url, headers={"Connection": "close"}) as reply:
                assert b"".join(HELLO) == await reply.read()
            await upstream.closed(upstream.requests[0])

    async def test_a_body_short_of_its_length_ends_the_connection(self, client: aiohttp.ClientSession) -> None:
        """The client is not left waiting for bytes that will not come."""
        async with ScriptedUpstream(Script(Head(framing=10), Send(b"abc"))) as upstream:
            async with client.post(upstream.base_url) as reply:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await reply.read()

    async def test_leaving_the_block_ends_whatever_goes_on(self) -> None:
        """Replies that hang, wait, pause, repeat or are not read end with the block; the client sees a reset."""
        scripts = [
            Script(Hang()),
            Script(Gate(asyncio.Event())),
            Script(Head(), Pause(3600)),
            Script(Head(), Repeat((Send(b"x"),))),
            Script(Repeat(())),
            Script(Raw(b"x" * 50_000_000)),
        ]
        async with ScriptedUpstream(scripts) as upstream:
            readers = [await Reader.ask(upstream) for _ in scripts]
            readers[-1].transport.pause_reading()
            idle = await Reader.ask(upstream, b"")
            await upstream.request(len(scripts))
        readers[-1].transport.abort()
        for reader in (*readers[:-1], idle):
            async with asyncio.timeout(5):
                assert "reset" == await reader.ended
        assert 0 == upstream.open_connections


class TestFlow:
    async def test_a_reader_that_stops_stops_the_script(self) -> None:
        """Nothing more is sent until the reader goes on, and then it is."""
        script = Script(Head(), Repeat((Send(b"x" * 1000),)))
        async with ScriptedUpstream(script, send_buffer_bytes=16384) as upstream:
            reader = await Reader.ask(upstream)
            reader.transport.pause_reading()
            request = await upstream.request()
            first = await upstream.stalled(request)
            assert first == await upstream.stalled(request)
            reader.transport.resume_reading()
            while sum(map(len, reader.reads)) <= first:
                await asyncio.sleep(0)
            reader.transport.pause_reading()
            assert first < await upstream.stalled(request)
            reader.transport.abort()
            await upstream.closed(request)

    async def test_one_great_write_is_counted_as_it_goes(self) -> None:
        """Of a write that is under way, what the kernel has taken counts."""
        async with ScriptedUpstream(Script(Raw(b"x" * 50_000_000))) as upstream:
            reader = await Reader.ask(upstream)
            reader.transport.pause_reading()
            request = await upstream.request()
            assert 0 < await upstream.stalled(request) < 50_000_000
            reader.transport.resume_reading()
            await upstream.finished(request)
            assert 50_000_000 == request.sent_bytes
            reader.transport.abort()

    async def test_each_request_counts_its_own_bytes(self, client: aiohttp.ClientSession) -> None:
        """Head and framing are counted; the next reply on the connection begins at nothing."""
        scripts = [streamed(HELLO), whole(b"{}")]
        async with ScriptedUpstream(scripts) as upstream:
            for script in scripts:
                async with client.post(upstream.base_url) as reply:
                    await reply.read()
                assert len(script.wire()) == upstream.requests[-1].sent_bytes

    async def test_a_client_that_is_no_longer_there_has_not_stalled(self) -> None:
        """Waiting for a stall ends in TimeoutError where there is none."""
        async with ScriptedUpstream(Script(Head(), Hang())) as upstream:
            reader = await Reader.ask(upstream)
            request = await upstream.request()
            with pytest.raises(TimeoutError):
                await upstream.stalled(request, timeout_s=0.02)
            reader.transport.abort()


class TestRequests:
    async def test_a_request_is_kept_as_it_came(self, client: aiohttp.ClientSession) -> None:
        """Method, path, headers and body are there, and its repr tells no secret."""
        async with ScriptedUpstream(whole(b"{}")) as upstream:
            url = f"{upstream.base_url}/chat/completions?a=%20b"
            async with client.post(url, json={"model": "m"}, headers={"Authorization": "Bearer sk-secret"}):
                request = await upstream.request()
        assert ("POST", "/v1/chat/completions?a=%20b") == (request.method, request.path)
        assert "Bearer sk-secret" == request.header("authorization")
        assert ("Authorization", "Bearer sk-secret") in request.headers
        assert None is request.header("x-other")
        assert (b'{"model": "m"}', {"model": "m"}, False) == (request.body, request.json, request.streams)
        assert "<Request POST /v1/chat/completions?a=%20b on connection 1>" == repr(request)

    async def test_a_chunked_body_is_put_together(self, client: aiohttp.ClientSession) -> None:
        """A body without a length is read to its end, trailers too."""
        chunks = (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nt: 1\r\n\r\n"
        )
        async with ScriptedUpstream(whole(b"{}")) as upstream:
            reader = await Reader.ask(upstream, chunks + ASK)
            assert b"abc0123456789" == (await upstream.request(1)).body
            assert b"" == (await upstream.request(2)).body
            reader.transport.abort()

    @given(st.lists(st.integers(0, 200)))
    async def test_a_request_is_read_however_it_is_cut(self, at: list[int]) -> None:
        """Pipelined requests, cut anywhere, are the same requests, answered in order."""
        asked = b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
        async with ScriptedUpstream(lambda request: whole(request.path.encode())) as upstream:
            reader = await Reader.ask(upstream, b"")
            for piece in frames.cut(asked, at):
                reader.transport.write(piece)
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                assert "closed" == await reader.ended
        assert [("/a", b"{}"), ("/", b"")] == [(request.path, request.body) for request in upstream.requests]
        assert whole(b"/a").wire() + whole(b"/").wire() == b"".join(reader.reads)

    @pytest.mark.parametrize(
        ("asked", "why"),
        [
            (b"nonsense\r\n\r\n", "the head is not HTTP"),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "the head is not HTTP"),
            (b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 is not HTTP/1.1"),
            (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "a length is not a number"),
            (b"GET / HTTP/1.1\r\nContent-Length: \r\n\r\n", "a length is not a number"),
            (b"GET / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", "the body is too large"),
            (b"GET / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n", "the length of the body is said"),
            (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "the length of the body"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "the length of the body"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "a length is not a number"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", "a chunk is longer than it says"),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", "the body is too large"),
            (b"GET /" + b"x" * (1 << 20), "the head is too large"),
        ],
    )
    async def test_what_is_not_a_request_is_refused(self, asked: bytes, why: str) -> None:
        """A 400 says why, the connection ends, and no script is taken."""
        got, ended, _ = await replied(Script(Hang()), asked)
        assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert why in json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert ended in {"closed", "reset"}  # a reset if bytes were left unread

    async def test_an_old_request_is_forgotten(self, client: aiohttp.ClientSession) -> None:
        """Only so many are kept; the others are counted."""
        async with ScriptedUpstream(whole(b"{}"), keep_requests=2) as upstream:
            for number in range(3):
                async with client.post(f"{upstream.base_url}/{number}") as reply:
                    await reply.read()
            assert (3, ["/v1/1", "/v1/2"]) == (upstream.received, [request.path for request in upstream.requests])
            assert "/v1/2" == (await upstream.request(3)).path
            with pytest.raises(LookupError, match="request 1 is forgotten"):
                await upstream.request(1)

    async def test_a_wait_has_an_end(self) -> None:
        """A request that does not come is a TimeoutError."""
        async with ScriptedUpstream(whole(b"{}")) as upstream:
            with pytest.raises(TimeoutError):
                await upstream.request(timeout_s=0.01)


class TestFailures:
    async def ask(self, client: aiohttp.ClientSession, script: Scripts, *expected: int) -> None:
        """One request for each expected status."""
        async with ScriptedUpstream(script) as upstream:
            for status in expected:
                async with client.post(upstream.base_url) as reply:
                    await reply.read()
                    assert status == reply.status

    async def test_a_request_too_many_is_told(self, client: aiohttp.ClientSession) -> None:
        """It gets a 500, and leaving the block raises."""
        with pytest.raises(ExceptionGroup, match="script failed") as failed:
            await self.ask(client, [whole(b"{}")], 200, 500)
        assert ["no script is left for <Request POST /v1 on connection 1>"] == [
            str(failure) for failure in failed.value.exceptions
        ]

    async def test_a_failing_callable_does_not_hide_the_failure_of_the_test(
        self, client: aiohttp.ClientSession
    ) -> None:
        """What the block raises comes out, with a note of what the callable raised."""

        def fails(request: Request) -> Script:
            raise RuntimeError("mine")

        with pytest.raises(AssertionError) as failed:
            await self.ask(client, fails, 200)
        assert ["the upstream's script failed: RuntimeError('mine')"] == failed.value.__notes__

    async def test_what_is_not_a_script_is_told(self, client: aiohttp.ClientSession) -> None:
        """The client sees a reset, and leaving the block raises."""
        with pytest.raises(aiohttp.ClientOSError) as failed:
            await self.ask(client, lambda request: "not a script", 200)
        assert ["AttributeError"] == [note.split()[4].partition("(")[0] for note in failed.value.__notes__]

    async def test_a_blocking_call_on_the_loop_is_an_error(self, client: aiohttp.ClientSession) -> None:
        """The suite watches what runs below the relay's code; here, a script that sleeps."""

        def blocks(request: Request) -> Script:
            time.sleep(0)
            return whole(b"{}")

        with pytest.raises(ExceptionGroup) as failed:
            await self.ask(client, blocks, 500)
        assert ["Blocked"] == [type(failure).__name__ for failure in failed.value.exceptions]
