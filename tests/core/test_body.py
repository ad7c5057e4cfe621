"""A pushed body says the same however its bytes come: in whole HTTP chunks, past the parser, or in any other way."""

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.body import PushedBody, PushProtocol, push
from relay.pure.framing import payload, split

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Recorder:
    """A consumer that keeps what it is told."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.ends: list[str] = []

    def on_data(self, data: bytes) -> None:
        assert not self.ends
        self.data.append(data)

    def on_chunks(self, data: bytes) -> bool:
        assert not self.ends
        chunks = split(data)
        self.data += map(payload, chunks)
        return bool(chunks)

    def on_eof(self) -> None:
        self.ends.append("eof")

    def on_error(self, error: BaseException) -> None:
        self.ends.append(type(error).__name__)


def pushed(reads: Iterable[bytes]) -> Recorder:
    """What a consumer is told of a chunked body that comes in these reads, after its head."""

    async def run() -> Recorder:
        loop = asyncio.get_running_loop()
        protocol = PushProtocol(loop)
        transport = Mock(spec=asyncio.Transport)
        transport.is_closing.return_value = False
        protocol.connection_made(transport)
        answer = protocol.expect()
        protocol.data_received(HEAD)
        _, reader = await answer
        recorder = Recorder()
        push(reader, recorder)
        for read in reads:
            protocol.data_received(read)
        if not recorder.ends:
            protocol.connection_lost(None)
        return recorder

    return asyncio.run(run())


def chunk(data: bytes, size: str = "{:x}") -> bytes:
    return size.format(len(data)).encode() + b"\r\n" + data + b"\r\n"


datas = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"\r\n", b"a\r\n", b"\r\n1\r\na\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"x" * 300, b"x" * 3000]),
)
sizes = st.sampled_from(["{:x}", "{:X}", "{:05x}", "{:x};name=value", "{:x} "])


@given(st.lists(st.tuples(datas, sizes), max_size=8), st.data())
def test_a_body_is_the_same_however_it_is_cut(chunks: list[tuple[bytes, str]], data: st.DataObject) -> None:
    """Chunks as they come, joined, and torn."""
    stream = [*(chunk(*each) for each in chunks), b"0\r\n\r\n"]
    cuts = data.draw(st.lists(st.integers(0, sum(map(len, stream))), max_size=6))
    whole = b"".join(stream)
    borders = sorted({0, *cuts, len(whole)})
    torn = [whole[start:stop] for start, stop in pairwise(borders)]
    for reads in (stream, [whole], torn):
        recorder = pushed(reads)
        assert (b"".join(each for each, _ in chunks), ["eof"]) == (b"".join(recorder.data), recorder.ends)


def test_every_cut_of_some_chunks() -> None:
    """Byte by byte, and in two at every position; the size of a chunk among them."""
    chunks = [b"one", b"\r\n3\r\nabc\r\n", b"x" * 20, b"two"]
    whole = b"".join(map(chunk, chunks)) + b"0\r\n\r\n"
    for cut in range(1, len(whole)):
        recorder = pushed([whole[:cut], whole[cut:]])
        assert (b"".join(chunks), ["eof"]) == (b"".join(recorder.data), recorder.ends)
    recorder = pushed([bytes([byte]) for byte in whole])
    assert (b"".join(chunks), ["eof"]) == (b"".join(recorder.data), recorder.ends)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"6\r\nabc\r\n", id="shorter than it says"),
        pytest.param(b"2\r\nabc\r\n", id="longer than it says"),
        pytest.param(b"3\r\nabcde", id="no line end"),
        pytest.param(b"0x3\r\nabc\r\n", id="a size that int() would read"),
        pytest.param(b"+3\r\nabc\r\n", id="a sign"),
        pytest.param(b"\r\nabc\r\n", id="no size"),
        pytest.param(b"g\r\nabc\r\n", id="no digit"),
    ],
)
def test_a_malformed_chunk_is_for_the_parser(bad: bytes) -> None:
    """After good ones have gone past it; nothing behind it is told."""
    recorder = pushed([chunk(b"one"), chunk(b"two"), bad, chunk(b"three")])
    assert "three" not in b"".join(recorder.data).decode()
    assert ["eof"] != recorder.ends


def test_a_consumer_that_has_enough_is_told_no_more() -> None:
    """When its connection is closed from inside what it is told."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        protocol = PushProtocol(loop)
        protocol.connection_made(Mock(spec=asyncio.Transport))
        answer = protocol.expect()
        protocol.data_received(HEAD)
        _, reader = await answer
        recorder = Recorder()
        push(reader, recorder)
        for data in (b"one", b"two"):
            protocol.data_received(chunk(data))
        reader.set_exception(ConnectionResetError())
        protocol.data_received(chunk(b"three"))
        assert ([b"one", b"two"], ["ConnectionResetError"]) == (recorder.data, recorder.ends)

    asyncio.run(run())


def test_a_pause_for_what_had_come_before_the_body_was_taken() -> None:
    """Then the parser has nothing in hand, and must not stop behind what it hands over next."""

    class Pausing(Recorder):
        def on_data(self, told: bytes) -> None:
            super().on_data(told)
            if len(self.data) == 1:
                bodies[0].pause()

    bodies: list[PushedBody] = []

    async def run() -> Recorder:
        protocol = PushProtocol(asyncio.get_running_loop())
        transport = Mock(spec=asyncio.Transport)
        protocol.connection_made(transport)
        answer = protocol.expect()
        protocol.data_received(HEAD + chunk(b"one"))
        _, reader = await answer
        bodies.append(PushedBody(Mock(content=reader)))
        recorder = Pausing()
        bodies[0].start(recorder)
        transport.pause_reading.assert_called()
        bodies[0].resume()
        transport.resume_reading.assert_called()
        protocol.data_received(chunk(b"two") + chunk(b"three") + b"0\r\n\r\n")
        return recorder

    recorder = asyncio.run(run())
    assert ([b"one", b"two", b"three"], ["eof"]) == (recorder.data, recorder.ends)


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=12), st.data())
def test_a_pause_loses_nothing(pieces: list[bytes], data: st.DataObject) -> None:
    """Paused while it is being told something, or between two reads as a slow client has it, a body goes on behind it."""
    whole = b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
    # Between chunks for the most part: what is one whole chunk comes past the parser.
    edges = [sum(len(chunk(piece)) for piece in pieces[:count]) for count in range(1, len(pieces) + 1)]
    cuts = data.draw(st.sets(st.one_of(st.sampled_from(edges), st.integers(1, len(whole) - 1)), max_size=8))
    reads = [whole[start:end] for start, end in pairwise([0, *sorted(cuts), len(whole)])]
    between = data.draw(st.sets(st.integers(0, len(reads))))
    inside = data.draw(st.sets(st.integers(0, len(pieces))))
    early = data.draw(st.integers(0, len(reads)))  # reads that come before anybody takes them

    class Pausing(Recorder):
        paused = False

        def on_data(self, told: bytes) -> None:
            super().on_data(told)
            if len(self.data) in inside:
                self.paused = True
                bodies[0].pause()

    bodies: list[PushedBody] = []

    async def run() -> Recorder:
        protocol = PushProtocol(asyncio.get_running_loop())
        transport = Mock(spec=asyncio.Transport)
        transport.is_closing.return_value = False
        protocol.connection_made(transport)
        answer = protocol.expect()
        protocol.data_received(HEAD)
        _, reader = await answer
        body = PushedBody(Mock(content=reader))
        bodies.append(body)
        recorder = Pausing()
        for read in reads[:early]:
            protocol.data_received(read)
        body.start(recorder)

        def go_on() -> None:
            while recorder.paused:  # resumed once for each pause, and what that brings may pause it again
                recorder.paused = False
                body.resume()

        go_on()
        for position, read in enumerate(reads[early:], early):
            if position in between:
                body.pause()
                body.resume()
            protocol.data_received(read)
            go_on()
        return recorder

    recorder = asyncio.run(run())
    assert b"".join(recorder.data) == b"".join(pieces)
    assert recorder.ends == ["eof"]
