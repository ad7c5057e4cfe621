"""The event-stream decoder against the web-platform-tests, against a plain whole-input reading, and against floods.

Every stream runs whole, byte by byte, cut in two at each boundary, and cut at random; where its lines all end alike,
with each of the three line ends. `machine` is the decoder without its short cut: both must always agree.
"""

import re
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.pure.sse import Decoder, Event, EventTooLarge

BOM = b"\xef\xbb\xbf"
ENDS = [pytest.param(b"\n", id="lf"), pytest.param(b"\r", id="cr"), pytest.param(b"\r\n", id="crlf")]
MIB = 1024 * 1024

Seen = tuple[bytes, bytes, bool, str]


class Chunk(Event):
    __slots__ = ()


class Machine(Decoder[Event]):
    """Every read goes through the line machine."""

    feed = Decoder._lines


def shown(events: Iterable[Event]) -> list[Seen]:
    return [(event.raw, event.data, event.plain, event.name) for event in events]


def decode(pieces: Iterable[bytes], decoder: Decoder[Event] | None = None) -> list[Event]:
    decoder = Decoder() if decoder is None else decoder
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.close()


def in_bytes(stream: bytes, size: int = 1) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(borders)]


def every_way(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream]
    yield in_bytes(stream)
    yield [piece for byte in in_bytes(stream) for piece in (byte, b"")]
    for place in range(1, len(stream)):
        yield [stream[:place], stream[place:]]


class Reference:
    """The standard's algorithm on a whole stream, line by line, with what the decoder says it discards."""

    def __init__(self, stream: bytes, max_line: int = 4 * MIB, max_event: int = 4 * MIB) -> None:
        self.events: list[Seen] = []
        self.last_event_id, self.retry_ms, self.limit = "", None, ""
        stream = stream.removeprefix(BOM)
        lines = re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)", stream)
        unfinished = stream[sum(map(len, lines)) :]
        carried, block, fields, idle = b"", b"", [], 0
        data, name, pending_id, plain = [], "", "", True
        for line in lines:
            text = line.strip(b"\r\n")
            field, _, value = text.partition(b":")
            value = value[1:] if value[:1] == b" " else value
            if text and field not in (b"data", b"event", b"id", b"retry"):
                plain = False
                if len(text) <= 1024 and idle + len(line) <= 4096 and not text.startswith(BOM):
                    block += line
                    idle += len(line)
                continue
            if text:
                fields.append(text)
                block += line
                plain = plain and field == b"data"
                if self._over(fields, max_line, max_event):
                    return
            if field == b"data" and text:
                data.append(value)
            elif field == b"event":
                name = value.decode(errors="replace")
            elif field == b"id" and b"\0" not in value:
                pending_id = value.decode(errors="replace")
            elif field == b"retry" and re.fullmatch(rb"[0-9]{1,18}", value):
                self.retry_ms = int(value)
            elif not text:
                self.last_event_id = pending_id
                block += line
                if data:
                    self.events.append((carried + block, b"\n".join(data), plain, name))
                    carried, data, plain = b"", [], True
                elif len(carried + block) <= 4096:
                    carried += block
                elif not fields:
                    carried += block[: -len(line)]
                block, fields, name, idle = b"", [], "", len(carried)
        if unfinished.startswith((b"data:", b"event:", b"id:", b"retry:")):
            self._over([*fields, unfinished], max_line, max_event)

    def _over(self, fields: list[bytes], max_line: int, max_event: int) -> bool:
        if len(fields[-1]) > max_line:
            self.limit = "max_line_bytes"
        elif len(b"\n".join(fields)) > max_event:
            self.limit = "max_event_bytes"
        return bool(self.limit)


# The web-platform-tests `eventsource/format-*`; their server ends each message with the blank line written here.
LONG = b"x" * 2048
WPT = {
    "bom": (BOM + b"data:1\n\n" + BOM + b"data:2\n\ndata:3\n\n", [b"1", b"3"]),
    "bom-2": (BOM + BOM + b"data:1\n\ndata:2\n\ndata:3\n\n", [b"2", b"3"]),
    "newlines": (b"data:test\r\ndata\ndata:test\r\n\r", [b"test\n\ntest"]),
    "comments": (
        b"data:1\r:\0\n:\r\ndata:2\n:" + LONG + b"\rdata:3\n:data:fail\r:" + LONG + b"\ndata:4\n\n",
        [b"1\n2\n3\n4"],
    ),
    "field-parsing": (
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
        [b"\0\n 2\n1\n3\n\n4"],
    ),
    "field-data": (b"data:\n\ndata\ndata\n\ndata:test\n\n", [b"", b"\n", b"test"]),
    "field-unknown": (b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:comment\ndata:test\n\n", [b"test\n\ntest"]),
    "leading-space": (b"data:\ttest\rdata: \ndata:test\n\n", [b"\ttest\n\ntest"]),
    "data-before-final-empty-line": (b"retry:1000\ndata:test1\n\nid:test\ndata:test2", [b"test1"]),
    "null-character": (b"data:\0\n\n\n\n", [b"\0"]),
    "utf-8": ("data:ok…\n\n".encode(), ["ok…".encode()]),
    "field-event": (b"event:test\ndata:x\n\ndata:x\n\n", [b"x", b"x"]),
    "field-event-empty": (b"event: \ndata:data\n\n", [b"data"]),
    "field-retry-empty": (b"retry\ndata:test\n\n", [b"test"]),
}

# From eventsource-parser, httpx-sse and the official SDKs' suites, and this decoder's own corners.
FURTHER = {
    "nothing": (b"", []),
    "only empty lines": (b"\n\n\n\n", []),
    "dispatch once, whatever follows": (b"data: 1\n\n\n\n\ndata: 2\n\n\n", [b"1", b"2"]),
    "no data, no event": (b"event: a\nid: 1\nretry: 1\n\n: c\n\ndata: 1\n\n", [b"1"]),
    "no space, one space, two": (b"data:1\n\ndata: 1\n\ndata:  1\n\n", [b"1", b"1", b" 1"]),
    "empty frames": (b"data: \n\ndata:\n\ndata\n\n", [b"", b"", b""]),
    "empty lines of data at both ends": (b"data:\ndata: 1\ndata:\n\n", [b"\n1\n"]),
    "a colon in the value": (b"data: a: b:\n\n", [b"a: b:"]),
    "only these end lines": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\n".encode(),
        ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg".encode()],
    ),
    "C1 and separators as single bytes": (b"data: a\x85\x0b\x0c\x1c\x1d\x1e\n\n", [b"a\x85\x0b\x0c\x1c\x1d\x1e"]),
    "characters of 2 to 4 bytes": ("data: é…🙂\n\n".encode(), ["é…🙂".encode()]),
    "bytes that are not UTF-8 stay": (b"data: \xff\xc3\x28\n\n", [b"\xff\xc3\x28"]),
    "a BOM in a value": (b"data: " + BOM + b"1\n\n", [BOM + b"1"]),
    "a BOM later": (b"data: 1\n\n" + BOM + b"data: 2\n\ndata: 3\n\n", [b"1", b"3"]),
    "a BOM alone": (BOM, []),
    "half a BOM": (BOM[:2], []),
    "half a BOM, then a field": (BOM[:2] + b"data: 1\n\ndata: 2\n\n", [b"2"]),
    "a BOM, then a comment": (BOM + b": hi\n\ndata: 1\n\n", [b"1"]),
    "a bare CR in a block": (b"data: 1\rdata: 2\n\ndata: 3\r\rdata: 4\n\n", [b"1\n2", b"3", b"4"]),
    "a bare LF or CR among CRLFs": (
        b"data: 1\ndata: 2\r\n\r\ndata: 3\rdata: 4\r\n\r\ndata: 5\r\n\n",
        [b"1\n2", b"3\n4", b"5"],
    ),
    "a CRLF among LFs": (b"data: 1\r\ndata: 2\n\ndata: 3\n\r\n", [b"1\n2", b"3"]),
    "fields that begin like data": (b"database: 1\n\ndata_\n\ndata : 1\n\ndata: 2\n\n", [b"2"]),
    "a forged end is data": (b"data: [DONE]x\n\ndata: [DONE]\n\ndata: 1\n\n", [b"[DONE]x", b"[DONE]", b"1"]),
    "OpenRouter's comment": (b": OPENROUTER PROCESSING\n\ndata: 1\n\n", [b"1"]),
    "no blank line at the end": (b"data: 1\n\ndata: 2\n", [b"1"]),
    "no line end at the end": (b"data: 1\n\ndata: 2", [b"1"]),
    "JSON over lines": (b'data: {\ndata: "a":\ndata: 1}\n\n', [b'{\n"a":\n1}']),
}


def with_ends() -> Iterator[object]:
    for name, (stream, expected) in (WPT | FURTHER).items():
        yield pytest.param(stream, expected, id=name)
        if b"\r" not in stream:
            yield pytest.param(stream.replace(b"\n", b"\r"), expected, id=f"{name}, cr")
            yield pytest.param(stream.replace(b"\n", b"\r\n"), expected, id=f"{name}, crlf")


class TestFormat:
    @pytest.mark.parametrize(("stream", "expected"), list(with_ends()))
    def test_data(self, stream: bytes, expected: list[bytes]) -> None:
        """The data of a stream does not depend on where it is cut, and is what the standard says."""
        assert expected == [data for _, data, _, _ in Reference(stream).events]
        for pieces in every_way(stream):
            assert expected == [event.data for event in decode(pieces)]
            assert expected == [event.data for event in decode(pieces, Machine())]

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ("event: error|data: 1||data: 2||", ["error", ""]),
            ("event:a|event: b|data: 1||", ["b"]),
            ("event: a|event|data: 1||", [""]),
            ("event: a||data: 1||", [""]),
            ("event:  é…|data: 1||", [" é…"]),
            ("Event: a|data: 1||", [""]),
        ],
    )
    def test_name(self, lines: str, expected: list[str], end: bytes) -> None:
        """An event has the last name its own block gives it, and none from a block without data."""
        for pieces in every_way(lines.encode().replace(b"|", end)):
            assert expected == [event.name for event in decode(pieces)]

    def test_every_other_byte_stays(self) -> None:
        """All bytes but CR and LF are kept, also at the end of a value."""
        values = [b"%c" % i for i in range(256) if i not in b"\r\n"]
        stream = b"".join(b"data: " + value + b"\n" for value in values) + b"\n"
        for pieces in [[stream], in_bytes(stream)]:
            assert [b"\n".join(values)] == [event.data for event in decode(pieces)]

    def test_name_that_is_not_utf_8(self) -> None:
        """What is not UTF-8 in a name is replaced."""
        expected = ["a\ufffd"]
        assert expected == [event.name for event in decode([b"event: a\xff\ndata: 1\n\n"])]

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ("data: 1||", ""),
            ("id: 1|data: 1||data: 2||", "1"),
            ("id: 1||", "1"),
            ("id: 1|data: 1||id: 2|data: 2||", "2"),
            ("id: 1|data: 1||id:|data: 2||", ""),
            ("id: 1|data: 1||id|data: 2||", ""),
            ("id: …|data: hello||", "…"),
            ("id: 1|data: 1||id: 2|data: 2|", "1"),
            ("id: 1|data: 1||id: \0\0||", "1"),
            ("id: 1|data: 1||id: x\0||", "1"),
            ("id: 1|data: 1||id: \0x||", "1"),
            ("id: 1|data: 1||id: x\0x||", "1"),
            ("id: 1|data: 1||id:  \0||", "1"),
        ],
    )
    def test_last_event_id(self, lines: str, expected: str, end: bytes) -> None:
        """An id persists once a blank line confirms it; without a value it resets; with a NUL it is ignored."""
        for pieces in every_way(lines.encode().replace(b"|", end)):
            decoder = Decoder()
            decode(pieces, decoder)
            assert expected == decoder.last_event_id

    def test_last_event_id_that_is_not_utf_8(self) -> None:
        """What is not UTF-8 in an id is replaced."""
        expected, decoder = "a\ufffd", Decoder()
        decoder.feed(b"id: a\xff\n\n")
        assert expected == decoder.last_event_id

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ("data: 1||", None),
            ("retry: 3000|", 3000),
            ("retry:03000|data: x||", 3000),
            ("retry:3000|retry:1000x|data:x||", 3000),
            ("retry:3000|retry|retry:|retry: -1|retry: 1.5|retry:  1|retry: ²|", 3000),
            ("retry: 1|retry: " + "9" * 18 + "|", 10**18 - 1),
            ("retry: 1|retry: " + "9" * 19 + "|", 1),
            ("retry: 1|retry: " + "9" * 5000 + "|", 1),
            ("retry: 3000|retry: 10", 3000),
        ],
    )
    def test_retry(self, lines: str, expected: int | None, end: bytes) -> None:
        """A retry counts at the end of its line, and only if it is all digits and fits 18 of them."""
        stream = lines.encode().replace(b"|", end)
        for pieces in [[stream], in_bytes(stream)]:
            decoder = Decoder()
            decode(pieces, decoder)
            assert expected == decoder.retry_ms


class TestPlain:
    @pytest.mark.parametrize(
        ("stream", "expected"),
        [
            (b"data: 1\n\ndata\ndata:2\n\n", [True, True]),
            (b"\n\ndata: 1\n\n", [True]),
            (BOM + b"data: 1\n\n", [True]),
            (b": c\ndata: 1\n\ndata: 2\n\n", [False, True]),
            (b": c\n\ndata: 1\n\ndata: 2\n\n", [False, True]),
            (b":" + LONG + b"\n\ndata: 1\n\ndata: 2\n\n", [False, True]),
            (b":" + LONG + b"\ndata: 1\n\n", [False]),
            (b"event: e\ndata: 1\n\n", [False]),
            (b"event\ndata: 1\n\n", [False]),
            (b"id: 1\ndata: 1\n\n", [False]),
            (b"id: \0\ndata: 1\n\n", [False]),
            (b"data: 1\nretry: 1\n\n", [False]),
            (b"data: 1\nretry: x\n\n", [False]),
            (b"data: 1\n data: 2\n\n", [False]),
            (b"event: e\n\ndata: 1\n\n", [False]),
        ],
    )
    def test_plain(self, stream: bytes, expected: list[bool]) -> None:
        """An event is plain if data lines are all there was since the one before, kept in raw or not."""
        for pieces in every_way(stream):
            assert expected == [event.plain for event in decode(pieces)]


CLEAN = [
    b"data: 1||data: 2||",
    b": hi|||data: 1||event: e|: c|id: 1|data: 1|data: 2|unknown|||data: 3||",
    b'|data: {"a":1}||||data:|retry: 1||: ping||: ping||data: [DONE]||',
    b"event: ping||id: 7||data: 1||",
]


class TestRaw:
    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("lines", CLEAN)
    def test_joined(self, lines: bytes, end: bytes) -> None:
        """The raws joined are the stream, cut anywhere and with any line end, up to the last event's end."""
        stream = lines.replace(b"|", end)
        for pieces in every_way(stream):
            assert stream == b"".join(event.raw for event in decode(pieces))

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("lines", CLEAN)
    def test_borders(self, lines: bytes, end: bytes) -> None:
        """A raw ends with its event's blank line, cut anywhere."""
        stream = lines.replace(b"|", end)
        for pieces in every_way(stream):
            assert Reference(stream).events == shown(decode(pieces))

    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    @pytest.mark.parametrize("before", [b"", b"data: 0|", b": c|", b": c||data: 0||", b":" + LONG + b"||data: 0||"])
    def test_short_cut(self, before: bytes, end: bytes) -> None:
        """A read that is one event is its raw, not a copy, as soon as an event has ended all that came before."""
        decoder = Decoder()
        decoder.feed(before.replace(b"|", end))
        read = b"data: 1" + end * 2
        (event,) = decoder.feed(read)
        assert before.endswith((b"0|", b"c|")) == (read is not event.raw)

    def test_one_event_in_two_reads(self) -> None:
        """An event that comes in two reads is one event, and the next one's raw is its own read."""
        expected, decoder = [(b"data: 0\n\n", b"0", True, "")], Decoder()
        assert not decoder.feed(b"data: ")
        assert expected == shown(decoder.feed(b"0\n\n"))
        read = b"data: 1\n\n"
        assert read is decoder.feed(read)[0].raw

    def test_bom_is_not_forwarded(self) -> None:
        """A BOM at the start and lines that begin with one are in no raw, so no client can read them otherwise."""
        stream = BOM + BOM + b"data: 1\n\n" + BOM + b"data: 2\n\ndata: 3\n\n"
        expected = [(b"\n\ndata: 3\n\n", b"3", False, "")]
        for pieces in every_way(stream):
            assert expected == shown(decode(pieces))

    def test_subclass(self) -> None:
        """The decoder makes the events it was told to make, on both paths."""
        events = Decoder(Chunk).feed(b"data: 1\n\n: c\ndata: 2\n\n")
        assert [Chunk, Chunk] == [type(event) for event in events]

    def test_event_defaults(self) -> None:
        """An event made by hand is plain and has no name."""
        expected = [(b"r", b"d", True, "")]
        assert expected == shown([Event(b"r", b"d")])

    def test_event_is_small(self) -> None:
        """An event has its four slots and nothing else."""
        assert not hasattr(Event(b"r", b"d"), "__dict__")


class TestCarriageReturn:
    """When an event is returned, read by read."""

    @pytest.mark.parametrize(
        ("pieces", "expected"),
        [
            # After a CRLF the blank line's LF is waited for, whether it comes or not.
            ([b"data: 1\r\n\r", b"\n", b""], [[], [b"data: 1\r\n\r\n"], [], []]),
            ([b"data: 1\r\n\r", b"", b"\n"], [[], [], [b"data: 1\r\n\r\n"], []]),
            ([b"data: 1\r\n\r", b"d"], [[], [b"data: 1\r\n\r"], []]),
            ([b"data: 1\r\n\r"], [[], [b"data: 1\r\n\r"]]),
            ([b"data: 1\r\n", b"\r", b"\n"], [[], [], [b"data: 1\r\n\r\n"], []]),
            ([b"data: 1\r", b"\n", b"\r", b"\n"], [[], [], [], [b"data: 1\r\n\r\n"], []]),
            ([b"data: 1\r\n:c\r\n\r", b"\n"], [[], [b"data: 1\r\n:c\r\n\r\n"], []]),
            # After a bare CR it is not.
            ([b"data: 1\r\r", b"data: 2\r\r"], [[b"data: 1\r\r"], [b"data: 2\r\r"], []]),
            ([b"data: 1\r", b"\r"], [[], [b"data: 1\r\r"], []]),
            ([b"data: 1\r\n:c\r\r"], [[b"data: 1\r\n:c\r\r"], []]),
            ([b": c\r\r", b"\ndata: 2\n\n"], [[], [b": c\r\r\ndata: 2\n\n"], []]),
            # Nor after an LF; and a late LF belongs to the next event.
            ([b"data: 1\n\r"], [[b"data: 1\n\r"], []]),
            ([b"data: 1\r\r", b"\n", b"data: 2\n\n"], [[b"data: 1\r\r"], [], [b"\ndata: 2\n\n"], []]),
            ([b"data: 1\r\r", b"\ndata: 2\n\n"], [[b"data: 1\r\r"], [b"\ndata: 2\n\n"], []]),
            # In one read a CRLF is one line end.
            ([b"data: 1\r\r\ndata: 2\n\r\n"], [[b"data: 1\r\r\n", b"data: 2\n\r\n"], []]),
            ([b"data: 1\r\r\n\r\n"], [[b"data: 1\r\r\n"], []]),
        ],
    )
    def test_reads(self, pieces: list[bytes], expected: list[list[bytes]]) -> None:
        """An event is returned with the read that ends it, or with the one that shows whether an LF follows."""
        decoder = Decoder()
        got = [*(decoder.feed(piece) for piece in pieces), decoder.close()]
        assert expected == [[event.raw for event in events] for events in got]

    def test_late_lf_leaves_the_next_event_plain(self) -> None:
        """The LF at the head of a raw is an empty line."""
        expected, decoder = [(b"\ndata: 2\n\n", b"2", True, "")], Decoder()
        decoder.feed(b"data: 1\r\r")
        assert expected == shown(decoder.feed(b"\ndata: 2\n\n"))

    def test_id_in_a_stream_of_bare_crs(self) -> None:
        """An id counts with the CR that confirms it, without waiting for an LF."""
        expected, decoder = "1", Decoder()
        decoder.feed(b"id: 1\r\r")
        assert expected == decoder.last_event_id

    def test_close_twice(self) -> None:
        """Closing again brings nothing again."""
        expected, decoder = [1, 0], Decoder()
        decoder.feed(b"data: 1\r\n\r")
        assert expected == [len(decoder.close()), len(decoder.close())]


class TestCarried:
    """What comes before an event and carries nothing."""

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(("length", "kept"), [(1023, True), (1024, True), (1025, False), (1026, False)])
    @pytest.mark.parametrize("start", [b":", b"x", b"x:", b"data_", b"data\0:", b"Data:", b" data:"])
    def test_line(self, start: bytes, length: int, kept: bool, end: bytes) -> None:
        """A line that carries nothing is in raw if it is 1,024 bytes or less, its end not counted."""
        line, event = start.ljust(length, b"x") + end, b"data: 1" + end + end
        expected = line + event if kept else event
        for pieces in [[line + event], in_bytes(line + event), cut(line + event, [1025]), cut(line + event, [length])]:
            assert [expected] == [event.raw for event in decode(pieces)]

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("over", [0, 1])
    def test_bytes_of_one_event(self, over: int, end: bytes) -> None:
        """Such lines are in raw up to 4,096 bytes for one event, with their ends; a shorter one may still fit."""
        full = (b":".ljust(1024 - len(end), b"x") + end) * 3
        last = b":".ljust(1024 - len(end) + over, b"x") + end
        small, event = b":" + end, b"data: 1" + end + end
        stream = full + b"data: 0" + end + last + small + end + full + last + event
        tail = small if over else last
        expected = [full + b"data: 0" + end + tail + end, full + (b"" if over else last) + event]
        for pieces in [[stream], in_bytes(stream)]:
            assert expected == [event.raw for event in decode(pieces)]

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("over", [0, 1])
    def test_block_without_data(self, over: int, end: bytes) -> None:
        """A block without data is in raw as a whole or not at all, and then its name meets no other data."""
        first = b": c" + end + end
        room = 4096 - len(first) - len(b"id: 7event: " + end * 3) + over
        block = b"id: 7" + end + b"event: " + b"e" * room + end + end
        stream = first + block + b"data: 1" + end + end
        kept = b"" if over else block
        expected = ([(first + kept + b"data: 1" + end + end, b"1", False, "")], "7")
        for pieces in [[stream], in_bytes(stream)]:
            decoder = Decoder()
            assert expected == (shown(decode(pieces, decoder)), decoder.last_event_id)

    @pytest.mark.parametrize("end", ENDS)
    def test_block_right_after_an_event(self, end: bytes) -> None:
        """The block goes as a whole, whatever stood before the event before."""
        event = b"data: 1" + end + end
        stream = b": c" + end + end + event + b"event: " + b"e" * 4096 + end + end + event
        for pieces in [[stream], in_bytes(stream)]:
            assert event == decode(pieces)[1].raw

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(
        "block", [b": ping||", b"|", b"event: ping||", b"id: 1|retry: 1||", b":|", b"x|", b": a|x|||"]
    )
    def test_flood(self, block: bytes, end: bytes) -> None:
        """A flood that carries nothing never raises, whatever the limits, and only its first 4,096 bytes are kept."""
        stream = block.replace(b"|", end) * 6000 + end + b"data: 1" + end + end
        for pieces in [[stream], in_bytes(stream, 1000)]:
            decoder = Decoder(max_line_bytes=100, max_event_bytes=100)
            (event,) = decode(pieces, decoder)
            assert 4000 < len(event.raw) <= 4096 + len(b"data: 1" + end + end)
            assert event.raw.endswith(b"data: 1" + end + end)

    @pytest.mark.parametrize("start", [b":", b"data", b"event", b"id", b"retry", b"unknown: "])
    @pytest.mark.parametrize("before", [b"", b"data: 1\n"])
    def test_unterminated_line_costs_no_memory(self, before: bytes, start: bytes) -> None:
        """100 MB of a line that carries nothing leave next to nothing behind, and the event is read after it."""
        read = b"x" * 100_000
        decoder = Decoder()
        decoder.feed(before + start)
        tracemalloc.start()
        try:
            for _ in range(1000):
                decoder.feed(read)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 8_000
        assert peak < 5 * len(read)
        assert [before + b"data: 2\n\n"] == [event.raw for event in decoder.feed(b"\ndata: 2\n\n")]


LINE_LIMIT = [
    (b"data: 123456\n\n", True),
    (b"data: 1234567\n\n", False),
    (b"event: 12345\ndata\n\n", True),
    (b"event: 123456\ndata\n\n", False),
    (b"id: 12345678\ndata\n\n", True),
    (b"id: 123456789\ndata\n\n", False),
    (b"retry: 12345\ndata\n\n", True),
    (b"retry: 123456\ndata\n\n", False),
    (b": 1234567890123456\nx: 1234567890123456\ndata\n\n", True),
    (b"data: 1\n\ndata: 1234567", False),
    (b"data: 1\n\ndata: 123456", True),
    (b"data: 123456\r", True),
    (b"data: 1234567\r", False),
    (b"data: 1\n\n\n\n\n\n\n\n\n\n\n\n\n\n\ndata: 2\n\n", True),
]


EVENT_LIMIT = [
    (b"data: 12345678901234\n\n", True),
    (b"data: 123456789012345\n\n", False),
    (b"data: 12\ndata: 34567\n\n", True),
    (b"data: 12\ndata: 345678\n\n", False),
    (b"data\n" * 4 + b"\n", True),
    (b"data\n" * 5 + b"\n", False),
    (b"id: 4567\ndata: 12\nid\n\n" * 3, True),
    (b"id: 4567\ndata: 12\nid:\n\n", False),
    (b"event: 8\nretry: 8\nid\n\n" * 3, True),
    (b"event: 8\nretry: 8\nid:\n\n", False),
    (b":" + LONG + b"\n: 1234567890\ndata: 1\n: 1234567890\ndata: 2\n\n", True),
    (b"data: 1\n\n" * 10, True),
    (b"event: 1\n\n" * 10 + b"data: 1\n\n", True),
    (b"event: 1\n\ndata: 12345678901234\n\n", True),
    (b"event: 1\n\ndata: 123456789012345\n\n", False),
    (b"data: 1\n\ndata: 123456789012345\n\n", False),
    (b"data: 12\ndata: 345678", False),
    (b"data: 12\ndata: 34567", True),
    (b"data: 12\ndata: 34567\r", True),
]


class TestLimits:
    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(("stream", "fits"), LINE_LIMIT)
    def test_line(self, stream: bytes, fits: bool, end: bytes) -> None:
        """A field line may have just max_line_bytes without its end; at one more the decoder raises, finished or not."""
        self.check(stream.replace(b"\n", end), fits, "max_line_bytes", max_line_bytes=12)

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize(("stream", "fits"), EVENT_LIMIT)
    def test_event(self, stream: bytes, fits: bool, end: bytes) -> None:
        """An event's field lines, joined by newlines, may have just max_event_bytes; comments do not count."""
        self.check(stream.replace(b"\n", end), fits, "max_event_bytes", max_event_bytes=20)

    @staticmethod
    def check(stream: bytes, fits: bool, limit: str, **limits: int) -> None:
        for pieces in every_way(stream):
            decoder = Decoder(**limits)
            if fits:
                assert len(Reference(stream).events) == len(decode(pieces, decoder))
            else:
                with pytest.raises(EventTooLarge) as caught:
                    decode(pieces, decoder)
                assert limit == caught.value.limit

    def test_defaults(self) -> None:
        """Without limits given, a line and an event may have 4 MiB each."""
        line = b"data: ".ljust(4 * MIB, b"x")
        assert [line[6:]] == [event.data for event in decode([line + b"\n\n"])]
        with pytest.raises(EventTooLarge, match=r"max_line_bytes \(4,194,304 bytes\)"):
            decode([line + b"x"])
        with pytest.raises(EventTooLarge, match=r"max_event_bytes \(4,194,304 bytes\)"):
            decode([b"data:\n", line])

    @pytest.mark.parametrize("first", [b"event: e\nid: 1\ndata: secret", b"data: secret", b"data: secret\n\n"])
    def test_refusal(self, first: bytes) -> None:
        """After the first error every feed raises the same, whatever it brings; closing brings nothing."""
        decoder = Decoder(max_line_bytes=10)
        messages = []
        for piece in [first, b"data: 1\n\n", b"\n\n", b""]:
            with pytest.raises(EventTooLarge) as caught:
                decoder.feed(piece)
            messages.append(str(caught.value))
        expected = ["the event stream holds an event over max_line_bytes (10 bytes)"] * 4
        assert expected == messages
        assert not decoder.close()
        assert not decoder.last_event_id
        with pytest.raises(EventTooLarge):
            decoder.feed(b"data: 1\n\n")

    def test_error(self) -> None:
        """The error is a ValueError and names the limit; nothing of the payload is in it."""
        with pytest.raises(ValueError) as caught:
            Decoder(max_event_bytes=9).feed(b"data: secret\n\n")
        assert "secret" not in repr(vars(caught.value)) + repr(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("piece", [b"data: " + b"x" * 1000, b"data: x\n", b"event: x\n", b"data:\r\n", b"id\r"])
    def test_state_is_freed(self, piece: bytes) -> None:
        """What a too large event held is freed with the error, and until then stays near the limit."""
        decoder = Decoder(max_line_bytes=MIB // 4, max_event_bytes=MIB // 4)
        tracemalloc.start()
        try:
            decoder.feed(piece)
            read = b"x" * 10_000 if b"x" * 1000 in piece else piece * 1000
            with pytest.raises(EventTooLarge):
                decode([read] * 2000, decoder)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 50_000
        assert peak < 2 * MIB

    @pytest.mark.parametrize("start", [b"data: ", b"data:", b"event: ", b"id: ", b"retry: ", b"retry:"])
    def test_long_field_line(self, start: bytes) -> None:
        """A long line of any field is kept whole while it comes, and refused at the limit before it has ended."""
        line = start.ljust(3000, b"9")
        stream = line + b"\ndata: 1\n\n"
        assert [stream] == [event.raw for event in decode(in_bytes(stream, 100))]
        with pytest.raises(EventTooLarge):
            decode(in_bytes(line, 100), Decoder(max_line_bytes=2999))

    def test_long_line_is_only_appended_to(self) -> None:
        """A short read does not copy the long unfinished line before it."""
        decoder = Decoder()
        tracemalloc.start()
        try:
            events = [decoder.feed(b"data: ".ljust(MIB, b"x")), decoder.feed(b"x")]
            tracemalloc.reset_peak()
            held, _ = tracemalloc.get_traced_memory()
            events += [decoder.feed(b"x") for _ in range(100)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert not any(events)
        assert peak - held < 100_000

    def test_close_frees(self) -> None:
        """Closing frees what was unfinished."""
        decoder = Decoder()
        tracemalloc.start()
        try:
            decoder.feed(b"data: ".ljust(MIB, b"x") + b"\ndata: ".ljust(MIB, b"x"))
            decoder.close()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 10_000

    @pytest.mark.parametrize("size", [1, 1024, 65536])
    @pytest.mark.parametrize("end", ENDS)
    def test_long_events(self, size: int, end: bytes) -> None:
        """An event of one long line and one of 10,000 lines are whole, in reads of any size."""
        long, many = b"y" * 200_000, [b"%d" % i for i in range(10_000)]
        stream = b"data: " + long + end * 2 + b"".join(b"data: " + each + end for each in many) + end
        events = decode(in_bytes(stream, size))
        assert [long, b"\n".join(many)] == [event.data for event in events]
        assert stream == b"".join(event.raw for event in events)


FRAGMENTS = [
    b"data: ", b"data:", b"data", b'data: {"a":1}\n\n', b'data: {"a":1}\r\n\r\n', b"event: e", b"event", b"id: 1", b"id:\0",
    b"retry: 5", b"retry: x", b":", b" ", b"x", b"\0", BOM, BOM[:1], BOM[1:], "…".encode(), "\u2028".encode(), b"\x85",
    b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\r\n\r",
]  # fmt: skip
PLACES = st.lists(st.integers(min_value=0, max_value=100_000), max_size=8)
ANY = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(b"".join)
LINES = [
    b"data: 1", b"data:", b"data", b"event: e", b"id: 1", b"retry: 1", b"", b"", b"", b": c", b"x",
    *(b":".ljust(n, b"x") for n in (900, 1022, 1023, 1024, 1025, 3000)), b"event: ".ljust(3000, b"e"),
]  # fmt: skip
ALIKE = st.builds(
    lambda lines, end: end.join([*lines, b""]),
    st.lists(st.sampled_from(LINES), max_size=60),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
)


class TestProperties:
    @given(ANY, PLACES)
    @settings(max_examples=400, deadline=None)
    def test_fast_is_slow(self, stream: bytes, places: list[int]) -> None:
        """With the short cut or without: the same events from the same read, and the same state after it."""
        fast, slow = Decoder(), Machine()
        for piece in cut(stream, places):
            assert shown(slow.feed(piece)) == shown(fast.feed(piece))
            assert (slow.last_event_id, slow.retry_ms) == (fast.last_event_id, fast.retry_ms)
        assert shown(slow.close()) == shown(fast.close())

    @given(ANY, PLACES)
    @settings(max_examples=400, deadline=None)
    def test_any_stream(self, stream: bytes, places: list[int]) -> None:
        """Any stream, cut anywhere, is read as the standard reads it whole; where the cuts fall moves only late LFs."""
        expected = Reference(stream)
        for pieces in (cut(stream, places), in_bytes(stream)):
            decoder = Decoder()
            events = decode(pieces, decoder)
            assert [seen[1:] for seen in expected.events] == [seen[1:] for seen in shown(events)]
            raws = b"".join(seen[0] for seen in expected.events)
            got = b"".join(event.raw for event in events)
            assert raws in (got, got + b"\n")  # the last event's late LF has no next event to go to
            assert (expected.last_event_id, expected.retry_ms) == (decoder.last_event_id, decoder.retry_ms)
        assert expected.events == shown(decode([stream]))

    @given(ALIKE, PLACES)
    @settings(max_examples=300, deadline=None)
    def test_lines_that_end_alike(self, stream: bytes, places: list[int]) -> None:
        """Where all lines end alike, what is kept of a flood does not depend on the cuts."""
        expected = Reference(stream).events
        assert expected == shown(decode(cut(stream, places)))
        assert expected == shown(decode(cut(stream, places), Machine()))

    @given(ANY, PLACES, st.integers(6, 30), st.integers(6, 30))
    @settings(max_examples=300, deadline=None)
    def test_limits(self, stream: bytes, places: list[int], max_line: int, max_event: int) -> None:
        """A stream over a limit is refused wherever it is cut, after none but its first events."""
        expected = Reference(stream, max_line, max_event)
        for pieces in (cut(stream, places), in_bytes(stream), [stream]):
            decoder = Decoder(max_line_bytes=max_line, max_event_bytes=max_event)
            data, refused = [], False
            try:
                for piece in pieces:
                    data += [event.data for event in decoder.feed(piece)]
            except EventTooLarge:
                refused = True
            data += [event.data for event in decoder.close()]
            assert bool(expected.limit) == refused
            assert [seen[1] for seen in expected.events][: len(data) if refused else None] == data
