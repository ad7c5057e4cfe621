"""The event-stream decoder: bytes in, whole events out (HTML standard, section 9.2.6, "Interpreting an event stream").

What lives here: lines, fields, event borders and their bounds. What may not: JSON, `[DONE]`, or any idea of what the
data means. Nothing is decoded but event names and ids; UTF-8 in the data is the JSON parser's business.

Every event keeps the bytes it came in (`Event.raw`), so an event nobody changes is forwarded as it was read. Lines that
bring no event (comments, unknown fields, empty lines, fields without data) stand at the head of the next event's raw.
Joined, the raws are the stream, except for what is discarded:

- the byte order mark at the start, and later lines that begin with one. A mark counts only at the start of a stream,
  and in the client's stream other bytes may come first, or fewer: it would read what was not decoded here, or miss
  what was;
- a line that carries nothing (comment, unknown field) over 1,024 bytes; and such lines, and blocks without data, past
  4,096 bytes for one event. A block with fields goes as a whole, lest its `event` line meet the next one's data; its
  `id` and `retry` still count here. None of this ever raises: keep-alive comments may come for ever;
- what follows the last blank line of the input.

A field line is never discarded. It counts against both limits, without its line end for a line; an event is its field
lines joined by newlines.

How it works. `_lines` is the line machine: it takes any input, cut anywhere, in time linear in its size. `feed` is a
short cut before it for what upstreams really send, reads of whole `data: {...}` blocks with uniform line ends; it works
only at a clean border (nothing taken since the last event), and hands the machine the rest at the first other block.
Both share one buffer, the unfinished line, so neither needs to know what the other did.

A CR may be half of a CRLF. A line that ends a read with CR is kept until the next byte shows, so that the LF lands in
the same raw. Only a blank line after a line that was not ended by CRLF does not wait, so that a stream of bare CRs is
not delayed. An LF that follows after all is one more empty line, at the head of the next raw.
"""

from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar, cast, overload

BOM = b"\xef\xbb\xbf"
LF, CR, SPACE = b"\n\r "  # as numbers: `in` finds one in a tenth of the time
FIELDS = frozenset({b"data", b"event", b"id", b"retry"})
FIELD_STARTS = (b"data:", b"event:", b"id:", b"retry:")

LIMIT_BYTES = 4 * 1024 * 1024  # a frame of text takes some hundreds of bytes, a whole reply some tens of KiB
IDLE_LINE_BYTES = 1024  # keep-alive comments take some tens of bytes
IDLE_BYTES = 4096
TAIL_BYTES = 4096  # an unfinished line is copied with each read up to here; beyond, only the machine appends to it
RETRY_DIGITS = 18  # int() is quadratic in the digits and refuses more than 4,300 of them


class EventTooLarge(ValueError):
    """A line or an event is over its limit (HTML sets none). It names the limit and holds nothing of the payload."""

    def __init__(self, limit: str, limit_bytes: int) -> None:
        super().__init__(f"the event stream holds an event over {limit} ({limit_bytes:,} bytes)")
        self.limit = limit


class Event:
    """One dispatched event.

    raw:   every byte since the end of the event before, up to the end of this one's blank line
    data:  the values of its data lines joined with \\n, as bytes; b"" if they are all empty
    plain: whether data lines are all there was since the event before (empty lines apart). A raw that is not plain may
           hold text which is not in `data`
    name:  its `event` field, "" if there is none
    """

    __slots__ = ("data", "name", "plain", "raw")

    def __init__(self, raw: bytes, data: bytes, plain: bool = True, name: str = "") -> None:
        self.raw = raw
        self.data = data
        self.plain = plain
        self.name = name


E = TypeVar("E", bound=Event)


class Decoder(Generic[E]):
    """Decodes one stream. `event` makes the events: `Event`, or a subclass of it with the same arguments.

    last_event_id: the last `id` that a blank line confirmed, "" if none
    retry_ms:      the last valid `retry`, in milliseconds
    """

    @overload
    def __init__(self: "Decoder[Event]", *, max_line_bytes: int = ..., max_event_bytes: int = ...) -> None: ...
    @overload
    def __init__(
        self, event: Callable[[bytes, bytes, bool, str], E], *, max_line_bytes: int = ..., max_event_bytes: int = ...
    ) -> None: ...
    def __init__(
        self,
        event: Callable[[bytes, bytes, bool, str], Event] = Event,
        *,
        max_line_bytes: int = LIMIT_BYTES,
        max_event_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._event = cast("Callable[[bytes, bytes, bool, str], E]", event)  # as the overloads promise
        self._max_line_bytes = max_line_bytes
        self._max_event_bytes = max_event_bytes
        self._fast_bytes = min(max_line_bytes, max_event_bytes)  # nothing in a buffer of this size can be too large
        self._refusal: tuple[str, int] | None = None
        self._opening = True  # the byte order mark may still come
        self._line = bytearray()  # the unfinished line; also one that is whole but for the LF after its CR
        self._crlf = False  # the line before was ended by CRLF
        self._id = ""
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._clean = False  # nothing was taken since the last event: the short cut may be used
        self._reset()

    def _reset(self) -> None:
        """Forget what was taken since the last event."""
        self._raw = bytearray()
        self._block = 0  # where in raw the block begins that no blank line has ended yet
        self._idle = 0  # bytes in raw that carry nothing
        self._data = bytearray()  # each value with its newline: empty means no data line, as in the standard
        self._size = 0  # the field lines of the block, each with one newline
        self._plain = True
        self._name = ""

    @property
    def idle(self) -> bool:
        """Whether nothing has come since the last event: what comes now begins another."""
        return self._clean and not self._line

    def feed(self, data: bytes) -> list[E]:
        """The events completed by these bytes.

        Raises EventTooLarge, now and from then on; what the same bytes completed before it is lost with it.
        """
        line = self._line
        if not self._clean or len(line) > TAIL_BYTES:
            return self._lines(data)
        if line:
            data = bytes(line) + data
            line.clear()
        size = len(data)
        if size > self._fast_bytes:
            return self._lines(data)
        if data.startswith(b"data: ") and data.endswith(b"\n\n") and data.find(b"\n") == size - 2 and CR not in data:
            return [self._event(data, data[6:-2], True, "")]
        newline = b"\n"
        if CR in data:
            if not data.count(b"\r\n") == data.count(b"\r") == data.count(b"\n"):
                return self._lines(data)
            newline = b"\r\n"
        events: list[E] = []
        start, width = 0, len(newline)
        while start < size:
            stop = data.find(b"\n", start) + 1  # 0 if there is none, and then no newline is found there either
            if not data.startswith(newline, stop) or not data.startswith(b"data:", start):
                return events + self._lines(data[start:])
            end = stop + width
            value = start + 6 if data[start + 5] == SPACE else start + 5
            events.append(self._event(data[start:end], data[value : stop - width], True, ""))
            start = end
        return events

    def close(self) -> list[E]:
        """End of input: an event that waited only for the LF after its CR; all else unfinished is discarded."""
        events: list[E] = []
        if self._line.endswith(b"\r"):
            self._take(bytes(self._line), events)
        self._line.clear()
        self._reset()
        return events

    def _lines(self, data: bytes) -> list[E]:
        """The line machine, from whatever state."""
        if self._refusal is not None:
            raise EventTooLarge(*self._refusal)
        line = self._line
        if self._opening:
            data = bytes(line) + data
            line.clear()
            if len(data) < len(BOM):
                line += data
                return []
            self._opening = False
            self._clean = True
            return self.feed(data.removeprefix(BOM))
        events: list[E] = []
        if line.endswith(b"\r") or LF in data or CR in data:
            lines = (bytes(line) + data).splitlines(keepends=True)  # of bytes: at \n, \r and \r\n only
            line.clear()
            data = b"" if lines[-1].endswith(b"\n") else lines.pop()
            for each in lines:
                self._take(each, events)
            if data == b"\r" and not self._crlf:
                self._take(data, events)
                data = b""
        self._hold(data)
        return events

    def _hold(self, data: bytes) -> None:
        """Append to the unfinished line. Of an overlong one that carries nothing, just enough stays to tell."""
        line = self._line
        line += data
        length = len(line) - line.endswith(b"\r")
        if line.startswith(FIELD_STARTS):
            self._bound(length)
        else:
            del line[IDLE_LINE_BYTES + 1 : length]

    def _take(self, line: bytes, events: list[E]) -> None:
        """Interpret one line, given with its end."""
        self._clean = False
        self._crlf = line.endswith(b"\r\n")
        text = line.rstrip(b"\r\n")
        name, _, value = text.partition(b":")
        if not text:
            self._blank(line, events)
        elif name in FIELDS:
            self._bound(len(text))
            self._size += len(text) + 1
            self._raw += line
            self._field(name, value.removeprefix(b" "))
        else:
            self._plain = False
            fits = len(text) <= IDLE_LINE_BYTES and self._idle + len(line) <= IDLE_BYTES
            if fits and not line.startswith(BOM):
                self._raw += line
                self._idle += len(line)

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"data":
            self._data += value
            self._data += b"\n"
            return
        self._plain = False
        if name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= RETRY_DIGITS:
            self.retry_ms = int(value)

    def _blank(self, line: bytes, events: list[E]) -> None:
        self.last_event_id = self._id
        raw = self._raw
        raw += line
        if self._data:
            del self._data[-1]
            events.append(self._event(bytes(raw), bytes(self._data), self._plain, self._name))
            self._reset()
            self._clean = True
            return
        if len(raw) > IDLE_BYTES:  # with field lines in it the block goes as a whole, otherwise the empty line will do
            del raw[self._block if self._size else len(raw) - len(line) :]
        self._block = self._idle = len(raw)
        self._name = ""
        self._size = 0

    def _bound(self, length: int) -> None:
        if length > self._max_line_bytes:
            self._refuse("max_line_bytes", self._max_line_bytes)
        if self._size + length > self._max_event_bytes:
            self._refuse("max_event_bytes", self._max_event_bytes)

    def _refuse(self, limit: str, limit_bytes: int) -> NoReturn:
        # A fresh error each time: a stored one would keep its traceback, and with that the payload, alive.
        self._refusal = limit, limit_bytes
        self._line.clear()
        self._reset()
        self._clean = False  # the machine is where a refusal is repeated
        raise EventTooLarge(limit, limit_bytes)
