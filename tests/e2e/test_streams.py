"""What comes through the relay: everything that is clean, byte for byte, and nothing that is forbidden."""

import asyncio
import itertools
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.protocol import READ_BUFFER_BYTES
from relay.testing import Gate as Wait
from relay.testing import Hang, Head, Raw, Repeat, Script, Send, Split, chunked, frames, streamed, whole
from relay.writer import HIGH_WATER_BYTES

HELLO = frames.stream(["Hel", "lo ", "世", "界", "🎈 and ", "goodbye."], tokens=(41, 6))
TWO = [
    frames.role(),
    frames.role(index=1),
    *(frame for n in range(4) for frame in (frames.text(f"one{n} "), frames.text(f"二{n} ", index=1))),
    frames.finish(index=1),
    frames.finish(),
    frames.done(),
]
TOOLS = [
    frames.role(),
    frames.tool(name="weather"),
    *(frames.tool(piece) for piece in ['{"ci', 'ty":"東', '京"', "}"]),
    frames.finish("tool_calls"),
    frames.done(),
]
COMMENTED = [frames.comment("OPENROUTER PROCESSING"), *HELLO[:3], frames.comment("keep-alive"), b":\n\n", *HELLO[3:]]
CLEAN = {
    "text": b"".join(HELLO),
    "two choices": b"".join(TWO),
    "tools": b"".join(TOOLS),
    "comments": b"".join(COMMENTED),
    "CRLF": b"".join(COMMENTED).replace(b"\n", b"\r\n"),
    "no space": b"".join(HELLO).replace(b"data: ", b"data:"),
    "byte order mark": "\N{ZERO WIDTH NO-BREAK SPACE}".encode() + b"".join(HELLO),
}
# A byte order mark says nothing; it is not sent on.
SENT = {name: data.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}".encode()) for name, data in CLEAN.items()}

BEFORE, PHRASE, AFTER = "It begins harmlessly, ", "forbidden fruit", " and more of it."


def clean(pieces):
    """The frames that are sent of `BEFORE` and a phrase: those that end before the phrase begins."""
    said = ""
    for piece in pieces:
        if len(said + piece) > len(BEFORE):
            break
        said += piece
    return said


class Settable:
    """A script that a test sets before each request."""

    def __init__(self):
        self.script = None

    def __call__(self, request):
        return self.script


@pytest.fixture
async def play(serve):
    """`await play(script, …)`: one answer of a relay whose upstream follows the script."""
    settable = Settable()
    rigs = {}

    async def ask(script, chain=None, **asked):
        name = json.dumps(chain)
        if name not in rigs:
            rigs[name] = await serve(settable, chain=chain)
        settable.script = script
        return await rigs[name].ask(**asked)

    return ask


class TestClean:
    @pytest.mark.parametrize("name", CLEAN)
    async def test_it_comes_out_as_it_went_in(self, play, name):
        """Whole, frame by frame and byte by byte."""
        data, n = CLEAN[name], 2 if name == "two choices" else 1
        sends = [frame + b"\n\n" for frame in data.split(b"\n\n")[:-1]] or [data]
        for script in (
            Script(Head(), Send(data)),
            Script(Head(), *map(Send, sends)),
            Script(Head(), Split(data)),
            Script(Head(framing=len(data)), Send(data)),
            Script(Head(framing="until-close"), Split(data, (9, 200))),
        ):
            reply = await play(script, n=n)
            assert (200, SENT[name]) == (reply.status, reply.data)

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.sampled_from(sorted(CLEAN)), cuts=st.lists(st.integers(1, 3000), max_size=12))
    async def test_it_comes_out_as_it_went_in_wherever_it_was_cut(self, play, name, cuts):
        """Reads end in the middle of lines, characters and HTTP chunks."""
        n = 2 if name == "two choices" else 1
        data = CLEAN[name]
        assert SENT[name] == (await play(Script(Head(), Split(data, tuple(cuts))), n=n)).data
        wire = streamed([data]).wire()
        pieces = frames.cut(wire, cuts)
        assert SENT[name] == (await play(Script(*map(Raw, pieces)), n=n)).data

    async def test_a_whole_reply_comes_out_as_it_went_in(self, play):
        """Unknown fields, long integers and the order of keys included."""
        data = frames.body("你好 🎈", "two").replace(b'"usage"', b'"x_long":123456789012345678901234567890, "usage"')
        for script in (whole(data), Script(Head(headers=(("Content-Type", "application/json"),)), Split(data))):
            reply = await play(script, stream=False, n=2)
            assert (200, data) == (reply.status, reply.data)

    async def test_an_independent_reader_understands_it(self, serve):
        """What an EventSource reads is what the upstream said."""
        rig = await serve(Script(Head(), Split(b"".join(COMMENTED).replace(b"\n", b"\r\n"))))
        said = [frame.removeprefix(b"data: ").strip().decode() for frame in HELLO]
        assert said == await rig.events()

    async def test_the_head(self, serve):
        """Nothing between us and the client may keep the stream, and nobody learns what we run on."""
        rig = await serve(streamed(HELLO))
        reply = await rig.ask()
        kept = ("Content-Type", "Cache-Control", "X-Accel-Buffering", "Server", "Transfer-Encoding")
        assert ["text/event-stream; charset=utf-8", "no-cache", "no", "relay", "chunked"] == [
            reply.headers.get(name) for name in kept
        ]
        assert rig.upstream.requests[0].header("x-request-id") == reply.headers["x-request-id"]

    async def test_the_request_comes_out_as_it_went_in(self, serve):
        """Its bytes are the client's; nothing else of the client's goes on."""
        rig = await serve(streamed(HELLO))
        extra = {"seed": 12345678901234567890123456789012345678901234567890, "x": {"y": ["é", None]}}
        await rig.ask(headers={"Cookie": "a=b", "X-Mine": "1", "User-Agent": "me"}, **extra)
        [request] = rig.upstream.requests
        assert extra == {name: request.json[name] for name in extra}
        assert {
            "host",
            "content-type",
            "accept",
            "accept-encoding",
            "x-request-id",
            "authorization",
            "content-length",
        } == {name.lower() for name, _ in request.headers}
        assert "identity" == request.header("accept-encoding")


# How a violation ends a choice: the options → the notice, the finish_reason, the error.
ENDINGS = {
    "finish": ({}, "", "content_filter", None),
    "replace": ({"on_violation": "replace", "notice": "[cut]"}, "[cut]", "content_filter", None),
    "error": ({"on_violation": "error"}, "", None, "content_filter"),
}


class TestForbidden:
    """A phrase of the list, cut anywhere: what stands before it comes out, and nothing of it does."""

    @pytest.mark.parametrize("ending", ENDINGS)
    async def test_between_any_two_frames(self, play, guarded, ending):
        """The text is cut in every place, and once in every place at the same time."""
        options, notice, finish, error = ENDINGS[ending]
        text = BEFORE + PHRASE + AFTER
        cuts = [[text], list(text)]
        cuts += [[text[:at], text[at:]] for at in range(len(BEFORE) - 1, len(BEFORE + PHRASE) + 1)]
        for pieces in cuts:
            reply = await play(streamed(frames.stream(pieces)), chain=guarded(**options))
            assert clean(pieces) + notice == reply.texts().get(0, "")
            assert finish == reply.finishes().get(0)
            assert error == reply.broken_by

    @pytest.mark.parametrize("ending", ENDINGS)
    async def test_in_a_whole_reply(self, play, guarded, ending):
        """A reply that is not streamed keeps what stands before it, or is an error as a whole."""
        options, notice, finish, error = ENDINGS[ending]
        reply = await play(whole(frames.body(BEFORE + PHRASE + AFTER)), chain=guarded(**options), stream=False)
        if error:
            assert (502, error) == (reply.status, reply.error["code"])
        else:
            assert (200, {0: BEFORE + notice}, {0: finish}) == (reply.status, reply.texts(), reply.finishes())

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        phrase=st.sampled_from(["forbidden fruit", "敏感词", "FORBIDDEN\u200b fruit"]),
        frame_cuts=st.lists(st.integers(1, 60), max_size=6),
        byte_cuts=st.lists(st.integers(1, 3000), max_size=8),
    )
    async def test_wherever_it_is_cut(self, play, phrase, frame_cuts, byte_cuts):
        """Between frames and between reads, at once."""
        text = BEFORE + phrase + AFTER
        ends = sorted({0, len(text), *(cut for cut in frame_cuts if cut < len(text))})
        pieces = [text[start:end] for start, end in itertools.pairwise(ends)]
        data = b"".join(frames.stream(pieces))
        reply = await play(Script(Head(), Split(data, tuple(byte_cuts))))
        assert ({0: clean(pieces)}, {0: "content_filter"}) == (reply.texts(), reply.finishes())

    async def test_it_ends_its_own_choice_only(self, serve):
        """The other choice is said to its end."""
        said = [
            frames.role(),
            frames.role(index=1),
            *(frame for piece in "a| forb|idden| fruit| b".split("|") for frame in (frames.text(piece), frames.text("x", index=1))),
            frames.finish(index=1),
            frames.finish(),
            frames.done(),
        ]  # fmt: skip
        rig = await serve(streamed(said))
        reply = await rig.ask(n=2)
        assert ({0: "a", 1: "xxxxx"}, {0: "content_filter", 1: "stop"}) == (reply.texts(), reply.finishes())

    async def test_the_upstream_is_not_listened_to_any_longer(self, serve):
        """When no choice is left the model need not go on; the log and the metrics say why."""
        rig = await serve(Script(Head(), Send(b"".join(frames.stream([BEFORE, PHRASE, AFTER])[:-2])), Hang()))
        assert {0: "content_filter"} == (await rig.ask()).finishes()
        await rig.upstream.closed(rig.upstream.requests[0])
        assert ["filtered"] == [line["outcome"] for line in await rig.ended()]
        assert ["response"] == [line["direction"] for line in rig.log if line["event"] == "violation"]

    async def test_in_a_request(self, serve):
        """The upstream is not asked."""
        rig = await serve(streamed(HELLO))
        for stream in (True, False):
            asked = {"stream": stream, "messages": [{"role": "user", "content": "Tell me of forbidden FRUIT"}]}
            reply = await rig.ask(**asked)
            assert (400, "content_filter") == (reply.status, reply.error["code"])
        assert 0 == rig.upstream.received
        assert ["refused"] * 2 == [line["outcome"] for line in await rig.ended(2)]

    @pytest.mark.parametrize(
        "before_done",
        [b": forbidden fruit\n", b": forbidden fruit\n\n", b"event: forbidden fruit\n", b"id: forbidden fruit\n"],
    )
    async def test_beside_the_end_of_the_stream(self, serve, before_done):
        """What is no data of the last event is text too."""
        rig = await serve(Script(Head(), Send(b"".join(HELLO[:-1]) + before_done + frames.done())))
        assert b"".join(HELLO) == (await rig.ask()).data


class TestLong:
    async def test_forty_thousand_chunks_of_one_event(self, serve, open_chain):
        """More HTTP chunks than aiohttp would queue, in few writes, frame by frame, and then another reply."""
        frame = frames.text("x")
        said = [frames.role(), *[frame] * 40_000, frames.finish(), frames.done()]
        data = b"".join(said)
        rig = await serve(
            [Script(Head(), Raw(b"".join(map(chunked, said)))), streamed(said, per_write=8), streamed(HELLO)],
            chain=open_chain,
        )
        assert data == (await rig.ask()).data
        assert data == (await rig.ask()).data
        assert b"".join(HELLO) == (await rig.ask()).data
        assert {1} == {request.connection for request in rig.upstream.requests}

    async def test_a_long_answer_through_the_whole_chain(self, serve):
        """Five thousand frames, cut at random into writes."""
        chance = random.Random(7)
        said = frames.stream([f"word{n} " for n in range(5000)])
        data = b"".join(said)
        cuts = tuple(sorted(chance.sample(range(len(data)), 300)))
        rig = await serve(Script(Head(), Split(data, cuts)))
        assert data == (await rig.ask()).data


class TestSlowReader:
    SIZE = 8192
    FRAME = frames.text("x" * SIZE)
    COUNT = 3000

    @pytest.mark.parametrize("framing", ["chunked", "until-close"])
    async def test_it_holds_up_its_upstream_and_nothing_else(self, serve, framing):
        """We hold 64 KiB and one read for it, others are served meanwhile, and it gets everything in the end."""
        long = Script(
            Head(framing=framing),
            Send(frames.role()),
            Repeat((Send(self.FRAME),), self.COUNT),
            Send(frames.finish()),
            Send(frames.done()),
        )
        rig = await serve([long, streamed(HELLO)], buffer=32768)
        slow = await rig.dial(receive_buffer_bytes=4096, limit=2048)
        slow.send(rig.request())
        request = await rig.upstream.request()
        sent = await rig.upstream.stalled(request)
        assert sent < self.COUNT * len(self.FRAME)
        [reply] = rig.replies
        assert reply.ex.paused
        held = reply.delivery._body._reader._size  # read and not yet taken, where bodies are awaited
        assert held <= 2 * READ_BUFFER_BYTES + len(self.FRAME)
        assert reply.writer._transport.get_write_buffer_size() <= HIGH_WATER_BYTES + READ_BUFFER_BYTES * 2 + 2 * len(
            self.FRAME
        )
        assert b"".join(HELLO) == (await rig.ask()).data
        slow.hurry()
        expected = frames.role() + self.FRAME * self.COUNT + frames.finish() + frames.done()
        assert expected == (await slow.reply()).data

    async def test_one_that_never_reads_is_given_up(self, serve):
        """After `stall_timeout_s` its slot and its upstream are free; the fault is the client's."""
        long = Script(Head(), Repeat((Send(self.FRAME),)))
        rig = await serve(long, server={"stall_timeout_s": 0.2}, buffer=32768)
        slow = await rig.dial(receive_buffer_bytes=4096, limit=2048)
        slow.send(rig.request())
        await rig.upstream.closed(await rig.upstream.request(), timeout_s=10)
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    @pytest.mark.parametrize("stream", [True, False])
    async def test_one_that_does_not_read_the_end_is_given_up_too(self, serve, open_chain, stream):
        """Also when the upstream has long ended and all that is left is ours to send."""
        said = [frames.role(), *[self.FRAME] * 2000, frames.finish(), frames.done()]
        script = streamed(said) if stream else whole(frames.body("x" * 12_000_000))
        rig = await serve(script, server={"stall_timeout_s": 0.2}, chain=open_chain)
        slow = await rig.dial(receive_buffer_bytes=4096, limit=2048)
        slow.send(rig.request(stream=stream))
        await rig.ended()
        assert b"0\r\n\r\n" not in (await slow.rest())[-5:]


class TestConnections:
    async def test_one_serves_reply_after_reply(self, serve):
        """Streamed and whole, refused and unfinished: the connection to the upstream is the first one's."""
        rig = await serve(
            [
                streamed(HELLO),
                whole(frames.body("one")),
                streamed(HELLO),
                streamed(HELLO[:-1]),
                whole(frames.error_body(), status=400),
                streamed(HELLO),
            ]
        )
        for stream in (True, False, True, True, True, True):
            await rig.ask(stream=stream)
        assert [1] * 6 == [request.connection for request in rig.upstream.requests]

    async def test_an_end_of_body_that_comes_late(self, serve):
        """The client has its [DONE] at once; the connection is used again when the body has ended."""
        late = asyncio.Event()
        rig = await serve([Script(Head(), Send(b"".join(HELLO)), Wait(late)), streamed(HELLO)])
        assert b"".join(HELLO) == (await rig.ask()).data
        await rig.ended()
        late.set()
        await rig.upstream.finished(rig.upstream.requests[0])
        assert b"".join(HELLO) == (await rig.ask()).data
        assert [1, 1] == [request.connection for request in rig.upstream.requests]

    async def test_a_body_that_never_ends(self, serve):
        """The client has its [DONE] at once, and the connection is closed by us."""
        rig = await serve(Script(Head(), Send(b"".join(HELLO)), Hang()))
        assert b"".join(HELLO) == (await rig.ask()).data
        assert ["completed"] == [line["outcome"] for line in await rig.ended()]
        request = rig.upstream.requests[0]
        await rig.upstream.closed(request)
        assert "client" == request.closed_by

    async def test_an_end_of_body_behind_a_held_flow(self, serve, open_chain):
        """Who held the upstream holds it no longer when all has come: its connection is used again."""
        rig = await serve(streamed(HELLO, per_write=len(HELLO)), chain=[*open_chain, {"use": "fakes:Holding"}])
        for _ in range(3):
            assert b"".join(HELLO) == (await rig.ask()).data
            await rig.upstream.finished(rig.upstream.requests[-1])
        assert {1} == {request.connection for request in rig.upstream.requests}

    async def test_a_flow_held_from_the_first_chunk(self, serve, open_chain):
        """Also when more had come before the reply was begun than aiohttp takes in one go: the upstream is stopped."""
        frame = chunked(frames.text("x" * 8192))
        endless = Repeat((Raw(frame),))
        rig = await serve(
            Script(Raw(Head().wire() + frame * 30), endless), chain=[*open_chain, {"use": "fakes:Holding"}]
        )
        wire = await rig.dial()
        wire.send(rig.request())
        await rig.upstream.stalled(await rig.upstream.request())
        wire.leave()
        await rig.upstream.closed(rig.upstream.requests[0])

    async def test_what_comes_after_the_end_is_not_sent(self, serve):
        """Nothing follows [DONE], in the same read or in another."""
        rig = await serve([
            streamed([*HELLO, *HELLO]),
            Script(Head(), Send(b"".join([*HELLO, frames.text("more")]))),
        ])  # fmt: skip
        for _ in range(2):
            assert b"".join(HELLO) == (await rig.ask()).data

    async def test_a_reply_keeps_its_own_request_id(self, serve, guarded):
        """Callbacks on a pooled connection run in the context of whoever opened it; no line takes its id from there."""
        rig = await serve(streamed(frames.stream([BEFORE, PHRASE])), chain=guarded(response="shadow"))
        ids = [(await rig.ask()).headers["x-request-id"] for _ in range(3)]
        await rig.ended(3)
        assert 3 == len(set(ids))
        assert ids == [line["request_id"] for line in rig.requests]
        assert ids == [line["request_id"] for line in rig.log if line["event"] == "violation"]
        assert {1} == {request.connection for request in rig.upstream.requests}


class TestKeepAlive:
    async def test_a_silent_upstream_is_covered_up_for(self, serve):
        """Comments keep proxies from closing the connection; they change nothing of the answer."""
        go = asyncio.Event()
        rig = await serve(
            Script(Head(), Send(b"".join(HELLO[:2])), Wait(go), Send(b"".join(HELLO[2:]))), server={"keepalive_s": 0.05}
        )
        wire = await rig.dial()
        wire.send(rig.request())
        start = await wire.through(b": keep-alive\n\n")
        assert HELLO[1] in start
        await wire.through(b": keep-alive\n\n")
        go.set()
        rest = await wire.through(b"0\r\n\r\n")
        assert frames.done() in rest
