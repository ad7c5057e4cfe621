"""Every fault of an upstream, as the official SDK sees it end: an error that it raises on, or the whole answer.

A fault is a function from the number of a run to a script: run after run it comes at another place. Whatever it was, the
upstream was asked once; afterwards no reply, task or connection is left; a connection that can be used again is used
again, one that cannot is closed; and the next request on the same relay gets its answer.

`make test-long` runs each of them forty times and prints how it ended.
"""

import asyncio
import gc
import gzip
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import openai
import pytest

from relay.delivery import Delivery, WholeDelivery
from relay.pure.sse import LIMIT_BYTES, Decoder
from relay.testing import (
    Abort,
    Close,
    Hang,
    Head,
    Pause,
    Raw,
    Repeat,
    Script,
    Send,
    Split,
    chunked,
    frames,
    refused,
    streamed,
    whole,
)

RUNS = 40
TEXT = "Hello 世界"
HELLO = frames.stream(["Hel", "lo ", "世界"])
DATA = b"".join(HELLO)
OK = streamed(HELLO)
BODY = frames.body(TEXT)
JSON = (("Content-Type", "application/json"),)
GARBAGE = bytes(range(128, 256)) * 8
PIECE = b"x" * 65_536
PIECES = 100 * 1024 * 1024 // len(PIECE)
EVENT_STREAM = b"Content-Type: text/event-stream\r\n"
FAULTY = "faulty"

# How long silence is borne: where a test has to see it end, and where a loaded machine must not pass for it.
SHORT_S, LONG_S = 0.3, 5.0


@dataclass(frozen=True)
class Fault:
    """script: what the upstream does in a run. codes: the errors that the SDK may raise; none if it gets the answer.

    reused: whether the connection serves the next request; None if that depends on where the fault comes.
    unread: it may end a connection out of the pool before a byte of the answer has been read; then the upstream is asked
    once more, on a fresh one.
    """

    script: Callable[[int], Script]
    codes: tuple[str, ...] = ()
    reused: bool | None = False
    stream: bool = True
    unread: bool = False


def said(run):
    """How many frames of the answer come before the fault: none, the role, or some text."""
    return run % 4


def begun(run, *steps):
    """An answer that goes on with `steps` after its first frames."""
    first = b"".join(HELLO[: said(run)])
    return Script(Head(), *([Send(first)] if first else []), *steps)


def rest(run, end=None):
    """The other frames, as one send."""
    return Send(b"".join(HELLO[said(run) : end]))


def head(lines, *steps):
    """An answer with a head of its own."""
    return Script(Raw(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n"), *steps)


def place(run, wire):
    """A place in the bytes of an answer, one of forty that lie as far apart as they can."""
    return run * len(wire) // RUNS


MALFORMED, INCOMPLETE, FAILED = ("upstream_malformed",), ("upstream_incomplete",), ("upstream_error",)
UNANSWERED, SILENT = ("upstream_unavailable",), ("upstream_timeout",)

FAULTS = {
    # What is no event stream
    "JSON in place of a stream": Fault(lambda run: whole(BODY), MALFORMED),
    "JSON that is called a stream": Fault(lambda run: streamed([BODY]), INCOMPLETE, reused=True),
    "JSON that is called nothing": Fault(lambda run: Script(Head(headers=()), Send(BODY)), INCOMPLETE, reused=True),
    "HTML with a 200": Fault(lambda run: whole(b"<html>Bad gateway</html>", content_type="text/html"), MALFORMED),
    "HTML that is called a stream": Fault(lambda run: streamed([b"<html>\n\n</html>"]), INCOMPLETE, reused=True),
    "nothing with a 200": Fault(lambda run: Script(Head(framing=0)), INCOMPLETE, reused=True),
    # Errors inside
    "an error object": Fault(lambda run: begun(run, Send(frames.error()), Send(frames.done())), FAILED),
    "an error object and no [DONE]": Fault(lambda run: begun(run, Send(frames.error())), FAILED, reused=None),
    "an error object of an error event": Fault(lambda run: begun(run, Send(b"event: error\n" + frames.error())), FAILED, reused=None),
    "an error that is a string": Fault(lambda run: begun(run, Send(frames.data('{"error":"no"}'))), FAILED, reused=None),
    # Ends that are none, or come twice
    "no finish": Fault(begun, INCOMPLETE, reused=True),
    "no finish, but [DONE]": Fault(lambda run: begun(run, rest(run, -2), Send(frames.done())), reused=True),
    "two finishes": Fault(lambda run: begun(run, rest(run, -1), Send(frames.finish("length") + frames.done())), reused=True),
    "no [DONE]": Fault(lambda run: begun(run, rest(run, -1)), reused=True),
    "two [DONE]s": Fault(lambda run: begun(run, rest(run), Send(frames.done())), reused=True),
    "text after [DONE]": Fault(lambda run: begun(run, rest(run), Send(frames.text("no"))), reused=True),
    "text after [DONE], for ever": Fault(lambda run: begun(run, rest(run), Repeat((Send(frames.text("no")), Pause(0.01))))),
    "[DONE]x": Fault(lambda run: begun(run, Send(frames.data("[DONE]x")), rest(run)), MALFORMED),
    "[DONE] and a space": Fault(lambda run: begun(run, Send(frames.data("[DONE] ")), rest(run)), MALFORMED),
    # Death
    "a reset at any byte": Fault(lambda run: OK.cut_off(place(run, OK.wire()), Abort()), UNANSWERED + INCOMPLETE, reused=None, unread=True),
    "a close at any byte": Fault(lambda run: OK.cut_off(place(run, OK.wire()), Close()), UNANSWERED + INCOMPLETE, reused=None, unread=True),
    "silence from any byte on": Fault(lambda run: OK.cut_off(place(run, OK.wire()), Hang()), SILENT, reused=None),
    "a reset in a drip": Fault(lambda run: Script(Head(), Split(DATA, tuple(range(0, 1200, 40)), 0.001)).cut_off(place(run, OK.wire()), Abort()), UNANSWERED + INCOMPLETE, reused=None, unread=True),
    "a body shorter than its length": Fault(lambda run: Script(Head(framing=99_999), Split(b"".join(HELLO[:-1]), (run * 20,)), Close()), INCOMPLETE),
    "a body longer than its length": Fault(lambda run: Script(Head(framing=100), Send(DATA), Hang()), INCOMPLETE),
    # Garbage
    "garbage from any byte on": Fault(
        lambda run: OK.cut_off(place(run, OK.wire()), Script(Raw(GARBAGE), Close())),
        UNANSWERED + INCOMPLETE + MALFORMED,
        reused=None,
    ),
    "garbage in place of a frame": Fault(lambda run: begun(run, Send(frames.data(GARBAGE)), rest(run)), MALFORMED),
    "garbage between frames": Fault(lambda run: begun(run, Send(GARBAGE + b"\n\n"), rest(run)), reused=True),
    "a frame that is a list": Fault(lambda run: begun(run, Send(frames.data("[]")), rest(run)), MALFORMED),
    "a frame that is null": Fault(lambda run: begun(run, Send(frames.data("null")), rest(run)), MALFORMED),
    "a frame that nests": Fault(lambda run: begun(run, Send(frames.data('{"x":' + "[" * 10_000 + "]" * 10_000 + "}")), rest(run)), MALFORMED),
    "a character that is cut off": Fault(lambda run: begun(run, Send(frames.text("世")[:-40])), INCOMPLETE, reused=True),
    # Too much
    "an event of 100 MB": Fault(lambda run: begun(run, Send(b"data: "), Repeat((Send(PIECE),), PIECES)), MALFORMED),
    "an event of 100 MB in lines": Fault(lambda run: begun(run, Repeat((Send(b"data: x\n" * 8192),), PIECES)), MALFORMED),
    "comments, and the answer after them": Fault(lambda run: begun(run, *[Send(frames.comment("ping"))] * 500, rest(run)), reused=True),
    "comments, and no answer": Fault(lambda run: begun(run, Repeat((Send(frames.comment("ping") * 1000),), 300)), INCOMPLETE, reused=True),
    # HTTP chunks that lie
    "a chunk longer than it says": Fault(lambda run: begun(run, Raw(b"5\r\nhello world\r\n"), Hang()), INCOMPLETE),
    "a chunk shorter than it says": Fault(lambda run: begun(run, Raw(b"fff\r\n" + HELLO[said(run)] + b"\r\n0\r\n\r\n"), Close()), INCOMPLETE),
    "a chunk shorter than it says, and silence": Fault(lambda run: begun(run, Raw(b"fff\r\n" + HELLO[said(run)] + b"\r\n0\r\n\r\n"), Hang()), SILENT),
    "a chunk of 2**63 bytes": Fault(lambda run: begun(run, Raw(b"7fffffffffffffff\r\n" + HELLO[said(run)]), Close()), INCOMPLETE),
    "a chunk of 2**72 bytes": Fault(lambda run: begun(run, Raw(b"ffffffffffffffffff\r\n" + HELLO[said(run)]), Hang()), INCOMPLETE),
    "a chunk of -5 bytes": Fault(lambda run: begun(run, Raw(b"-5\r\n" + HELLO[said(run)]), Hang()), INCOMPLETE),
    "a chunk of a size that is none": Fault(lambda run: begun(run, Raw(b"zz\r\n"), Hang()), INCOMPLETE),
    "chunks that end in bare line feeds": Fault(lambda run: begun(run, Raw(b"5\nhello\n0\n\n"), Hang()), INCOMPLETE),
    # Heads
    "no head": Fault(lambda run: Script(Close()), UNANSWERED, unread=True),
    "no HTTP": Fault(lambda run: Script(Raw(DATA), Close()), UNANSWERED),
    "HTTP of a version that is none": Fault(lambda run: Script(Raw(b"HTTP/9.9 200 OK\r\n" + EVENT_STREAM + b"\r\n" + DATA), Close()), UNANSWERED),
    "a header of 1 MB": Fault(lambda run: Script(Raw(b"HTTP/1.1 200 OK\r\nX: "), Repeat((Raw(PIECE),), 16), Raw(b"\r\n\r\n")), UNANSWERED),
    "fifty thousand headers": Fault(lambda run: head(b"".join(b"X-%d: y\r\n" % n for n in range(50_000)), Hang()), UNANSWERED),
    "two lengths": Fault(lambda run: head(EVENT_STREAM + b"Content-Length: 10\r\nContent-Length: 20\r\n", Send(DATA)), UNANSWERED),
    "a length and chunks": Fault(lambda run: head(EVENT_STREAM + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n", Raw(chunked(DATA) + b"0\r\n\r\n")), UNANSWERED),
    # 1xx
    "early hints": Fault(lambda run: Script(Raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), Pause(0.001), begun(run, rest(run))), reused=True),
    "100 and 102 in one read with the answer": Fault(lambda run: Script(Raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK.wire())), reused=True),
    "102 and silence": Fault(lambda run: Script(Raw(b"HTTP/1.1 102 Processing\r\n\r\n"), Hang()), SILENT),
    "early hints for ever": Fault(lambda run: Script(Repeat((Raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"), Pause(0.001)))), SILENT),
    "another protocol": Fault(lambda run: Script(Raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), Hang()), FAILED),
    # Encodings and statuses nobody asked for
    "gzip": Fault(lambda run: whole(gzip.compress(DATA), [("Content-Encoding", "gzip")], content_type="text/event-stream"), MALFORMED),
    "gzip that is not called so": Fault(lambda run: whole(gzip.compress(DATA, mtime=0), content_type="text/event-stream"), INCOMPLETE, reused=True),
    "gzip as a transfer encoding": Fault(lambda run: head(EVENT_STREAM + b"Transfer-Encoding: gzip, chunked\r\n", Raw(chunked(gzip.compress(DATA, mtime=0)) + b"0\r\n\r\n")), INCOMPLETE, reused=True),
    "a redirect": Fault(lambda run: refused((301, 302, 303)[run % 3], b"", [("Location", "http://127.0.0.1:9/")]), FAILED, reused=True),
    "a redirect that keeps the method": Fault(lambda run: refused((307, 308)[run % 2], b"", [("Location", "/v1/other")]), FAILED, reused=True),
    "half of the answer, as a range": Fault(lambda run: whole(DATA[:600], status=206, content_type="text/event-stream"), FAILED),
    # Replies that are not streamed
    "a stream in place of a body": Fault(lambda run: OK, MALFORMED, stream=False),
    "a body in HTML": Fault(lambda run: whole(b"<html>", content_type="text/html"), MALFORMED, stream=False),
    "a body that dies at any byte": Fault(lambda run: whole(BODY).cut_off(place(run, whole(BODY).wire()), (Abort(), Close())[run % 2]), UNANSWERED + INCOMPLETE, reused=None, stream=False, unread=True),
    "a body that falls silent at any byte": Fault(lambda run: whole(BODY).cut_off(place(run, whole(BODY).wire()), Hang()), SILENT, reused=None, stream=False),
    "a body of garbage": Fault(lambda run: whole(GARBAGE), MALFORMED, reused=True, stream=False),
    "a body of half a character": Fault(lambda run: whole(BODY.partition("世".encode())[0] + b"\xe4"), MALFORMED, reused=True, stream=False),
    "a body of 100 MB": Fault(lambda run: Script(Head(headers=JSON), Send(b'{"x":"'), Repeat((Send(PIECE),), PIECES)), MALFORMED, stream=False),
    "a body in gzip": Fault(lambda run: whole(gzip.compress(BODY), [("Content-Encoding", "gzip")]), MALFORMED, stream=False),
    "a body that is an error": Fault(lambda run: whole(frames.error_body()), FAILED, reused=True, stream=False),
}  # fmt: skip


class Client:
    """The official SDK before a relay whose upstream has one fault, and what is open when nothing is asked."""

    def __init__(self, fault):
        self.fault = fault
        self.script = OK

    @classmethod
    async def of(cls, serve, fault, **options):
        """A relay that has answered a first request of each of its clients."""
        self = cls(fault)
        silence_s = SHORT_S if set(SILENT) & set(fault.codes) else LONG_S
        self.rig = await serve(
            lambda request: self.script if request.json["model"] == FAULTY else OK,
            upstream={"idle_timeout_s": silence_s, "first_byte_timeout_s": silence_s},
            server={"keepalive_s": 0.05},
            **options,
        )
        self.rig.loudest = "warning"  # an upstream that fails and fails is told of
        self.sdk = await self.rig.sdk()
        assert ((None, None), TEXT) == await self.ask()
        assert DATA == (await self.rig.ask()).data
        await self.rig.metrics()
        await self.rig.ended(2)
        self.tasks = len(asyncio.all_tasks())
        self.files = len(os.listdir("/proc/self/fd"))
        return self

    async def ask(self, *, stream=True, model=FAULTY):
        """How an answer ended, as class and code of what the SDK raised, and the text that came before that."""
        asked = {"model": model, "messages": [{"role": "user", "content": "canary-prompt"}]}
        text = ""
        try:
            if stream:
                async for chunk in await self.sdk.chat.completions.create(**asked, stream=True):
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
            else:
                answer = await self.sdk.chat.completions.create(**asked)
                text = answer.choices[0].message.content
        except openai.APIError as error:
            return (type(error).__name__, error.code), text
        return (None, None), text

    async def suffer(self, run=2):
        """One run of the fault, all that has to hold of it, and the next request; how it ended."""
        fault = self.fault
        self.script = fault.script(run)
        received, ended = self.rig.upstream.received, len(self.rig.requests)
        seen, text = await self.ask(stream=fault.stream)
        error, code = seen
        await self.rig.ended(ended + 1)
        faulty = self.rig.upstream.requests[-1]
        asked = self.rig.upstream.received - received
        assert 1 == asked or (fault.unread and 2 == asked)  # it is not bought twice
        assert [("upstream_error" if error else "completed", code)] == [
            (line["outcome"], line["code"]) for line in self.rig.requests[ended:]
        ]
        if error is None:
            assert TEXT == text
            # An answer that broke off behind its last byte is whole.
            assert not fault.codes or fault.reused is None
        else:
            assert TEXT.startswith(text)
            assert code in fault.codes
            # Once something has been sent it stands in the stream, and the SDK has no status for it.
            assert error in (("InternalServerError", "APIError") if not text else ("APIError",))
        assert DATA == (await self.rig.ask()).data
        following = self.rig.upstream.requests[-1]
        if fault.reused is not None and self.rig.reader == "push":
            assert fault.reused == (faulty.connection == following.connection)
        if faulty.connection != following.connection:
            await self.rig.upstream.closed(faulty)
        await self.at_rest(ended + 2)
        return seen

    async def at_rest(self, ended):
        """Wait until all is as it was before the first fault."""
        rig = self.rig
        await rig.ended(ended)
        await rig.until(lambda: not rig.app._tasks)
        await rig.upstream.until(lambda: rig.upstream.open_connections == 1)
        await rig.until(lambda: len(asyncio.all_tasks()) <= self.tasks)
        await rig.until(lambda: len(os.listdir("/proc/self/fd")) <= self.files)


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault(serve, name):
    """It ends with an error that the SDK raises on, or with the whole answer; nothing of it is left."""
    client = await Client.of(serve, FAULTS[name])
    await client.suffer()


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_again_and_again(serve, name, capsys):
    """The same on one relay, at forty places."""
    client = await Client.of(serve, FAULTS[name])
    ends = Counter([await client.suffer(run) for run in range(RUNS)])
    with capsys.disabled():
        told = ", ".join(
            f"{count} × {error or 'whole'} {code or ''}".strip() for (error, code), count in ends.most_common()
        )
        print(f"\n| {name} | {client.rig.reader} | {told} |", end="")
    assert RUNS == sum(ends.values())


@pytest.mark.parametrize(("name", "limit_bytes"), [("an event of 100 MB", LIMIT_BYTES), ("a body of 100 MB", 2**24)])
async def test_too_much_is_refused_at_its_limit(serve, name, limit_bytes):
    """No more is read than the limit and what was on its way, and nothing of it is kept."""
    client = await Client.of(serve, FAULTS[name])
    await client.suffer()
    faulty = client.rig.upstream.requests[-2]
    assert FAULTY == faulty.json["model"]
    assert limit_bytes < faulty.sent_bytes < limit_bytes + 8 * 2**20
    gc.collect()
    things = gc.get_objects()
    held = sum(len(thing._line) + len(thing._raw) + len(thing._data) for thing in things if isinstance(thing, Decoder))
    held += sum(sum(map(len, thing._parts)) for thing in things if isinstance(thing, WholeDelivery))
    assert held < len(PIECE)


async def test_a_reply_that_has_ended_is_forgotten(serve):
    """Nobody keeps it, not even the watch that has looked after it."""
    client = await Client.of(serve, FAULTS["a chunk shorter than it says, and silence"])
    await client.suffer()
    gc.collect()
    assert [] == [thing for thing in gc.get_objects() if isinstance(thing, Delivery)]


# What the SDK breaks on with an error of its own, or takes for an answer, where no guard reads the frames.
UNREAD = {
    "a list": frames.data("[]"),
    "null": frames.data("null"),
    "choices that are no list": frames.data('{"choices":"x"}'),
    "nested deeply": frames.data('{"x":' + "[" * 10_000 + "]" * 10_000 + "}"),
    "garbage": frames.data(GARBAGE),
    "an error without an error object": frames.data('{"object":"error","message":"no","type":"x","code":500}'),
}


@pytest.fixture(params=[True, False], ids=["guarded", "open"])
def chains(request, open_chain):
    """With moderation, and without."""
    return None if request.param else open_chain


@pytest.mark.parametrize("name", UNREAD)
async def test_a_frame_that_nobody_reads(serve, chains, name):
    """A frame that cannot be read ends the stream with an error of ours."""
    client = await Client.of(
        serve, Fault(lambda run: begun(run, Send(UNREAD[name]), rest(run)), MALFORMED + FAILED, None), chain=chains
    )
    await client.suffer()


async def test_half_a_character(serve, chains):
    """What is no UTF-8 becomes U+FFFD; the other frames go on as they came."""
    half = frames.text("世").replace("世".encode(), b"\xe4\xb8")
    rig = await serve(streamed([HELLO[0], half, *HELLO[1:]]), chain=chains)
    expected = b"".join([HELLO[0], frames.text("\N{REPLACEMENT CHARACTER}"), *HELLO[1:]])
    assert expected == (await rig.ask()).data


async def test_no_text_beside_the_data(serve, chains):
    """Bytes in a comment that are no UTF-8 break openai-python too."""
    rig = await serve(streamed([HELLO[0], b": caf\xe9\n" + HELLO[1], *HELLO[2:]]), chain=chains)
    said = (await rig.ask()).data.decode()
    assert HELLO[1].decode().strip() in said
    assert said.endswith(HELLO[-1].decode())


async def test_comments_for_ever(serve):
    """An upstream that only says that it is still there is waited for, but not without end."""
    endless = Repeat((Send(frames.comment("ping")), Pause(0.01)))
    client = await Client.of(serve, Fault(lambda run: begun(run, endless), SILENT))
    async with asyncio.timeout(5):
        await client.suffer()
