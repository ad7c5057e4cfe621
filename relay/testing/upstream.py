"""An upstream that does what a script says, byte for byte, and tells what it saw.

What it does stands in a `Script` (`relay.testing.script`). Two nouns live here:

- a `Request` is what one client request looked like and what became of its connection;
- `ScriptedUpstream` is the server: HTTP/1.1 on loopback, on a bare `asyncio.Protocol`, because a correct HTTP server
  will not stop in the middle of a chunk, lie about a length or reset a connection when asked to.

How a reply is written: two turns of the loop, so that a reader in the same process gets each write as a read of its
own; one write for each step that sends; a wait until the kernel has taken all of it, so that a slow reader stops the
script (the transport's own buffer is kept at zero).

What it does not do: TLS, HTTP/1.0, HEAD, `Expect: 100-continue`, compressed request bodies (recorded as they came). A
client that half-closes counts as gone.
"""

import asyncio
import json
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Self, TypeAlias, cast

from relay.testing import frames
from relay.testing.script import Abort, Act, Close, Gate, Hang, Pause, Script, refused, streamed, whole

# -------------------------------------------------------------------------------------------------------- request


class Request:
    """One request as it came, and what became of its connection. Times are those of the loop's clock, in seconds."""

    __slots__ = ("_connection", "_from", "_to", "at", "body", "finished_at", "headers", "method", "path")

    def __init__(
        self,
        connection: "_Connection",
        method: str,
        path: str,
        headers: tuple[tuple[str, str], ...],
        body: bytes,
    ) -> None:
        self.method = method
        self.path = path  # the request target, query included
        self.headers = headers  # in order, as written; a repeated name stands twice
        self.body = body
        self.at = connection.loop.time()  # when the last byte of the body had come
        self.finished_at: float | None = None  # when the last step of its script was done; None: not yet, or never
        self._connection = connection
        self._from = connection.taken
        self._to: int | None = None

    def __repr__(self) -> str:
        # No headers and no body: they hold keys and prompts.
        return f"<Request {self.method} {self.path} on connection {self.connection}>"

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def json(self) -> object:
        """The body parsed; ValueError if it is not JSON."""
        return json.loads(self.body)

    @property
    def streams(self) -> bool:
        """Whether the body is a JSON object that asks for a stream."""
        try:
            asked = self.json
        except ValueError:
            return False
        return isinstance(asked, dict) and asked.get("stream") is True

    @property
    def connection(self) -> int:
        """Number of the connection it came on, from 1. Equal numbers are a connection used again."""
        return self._connection.number

    @property
    def sent_bytes(self) -> int:
        """Bytes of the reply that the kernel has taken, head and framing counted.

        Once the client has left in the middle of a write, that write may be missing from it.
        """
        return (self._connection.taken if self._to is None else self._to) - self._from

    @property
    def closed_at(self) -> float | None:
        """When its connection was closed here or seen closed or reset by the client; None while it is open."""
        return self._connection.closed_at

    @property
    def closed_by(self) -> Literal["client", "upstream"] | None:
        """Which side ends the connection; told as soon as it has begun to."""
        return self._connection.closed_by

    def _finish(self) -> None:
        self.finished_at = self._connection.loop.time()
        self._to = self._connection.taken


# --------------------------------------------------------------------------------------------------------- server

Scripts: TypeAlias = Script | Iterable[Script] | Callable[[Request], Script]

_PATIENCE_S = 5.0  # a wait that is longer than this in a test on one machine will not end
_MAX_HEAD_BYTES = 1 << 20
_MAX_BODY_BYTES = 64 << 20
_MAX_INBOX_BYTES = _MAX_HEAD_BYTES + _MAX_BODY_BYTES
_TURNS = 2  # asyncio's loop runs what is ready before what has become readable, so one turn is not enough
_QUIET_STEPS, _QUIET_STEP_S = 20, 0.005  # together above the 40 ms that Linux may hold back an acknowledgement


class ScriptedUpstream:
    """A server on loopback that answers every request by its script; an async context manager.

    `script`: one for all requests; several, one for each request in order; or a callable that is given the request.
    A callable that raises, or more requests than scripts, is answered with a 500 and raised when the block is left.
    ``GET …/models`` is answered with `models` and takes no script, unless `models` is None.

    `send_buffer_bytes` limits what the kernel holds of a reply (SO_SNDBUF), so that a slow reader is felt sooner.
    `keep_requests` is how many requests are remembered.
    """

    def __init__(
        self,
        script: Scripts,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        models: Sequence[str] | None = ("gpt-3.5-turbo-1106",),
        send_buffer_bytes: int | None = None,
        keep_requests: int = 1000,
    ) -> None:
        self.host = host
        self.port = port  # 0: any; the real one inside the block
        self.requests: deque[Request] = deque(maxlen=keep_requests)
        self.connections = 0  # accepted so far
        self.received = 0  # requests so far
        self._choose = _chooser(script)
        self._models = None if models is None else whole(frames.models(models))
        self._send_buffer_bytes = send_buffer_bytes
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []
        self._news = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), self.host, self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in tuple(self._open):
            connection.end(reset=True)
        await self.until(lambda: not self._open and not self._tasks)
        await server.wait_closed()
        if not self._failures:
            return
        if error is None:
            raise ExceptionGroup("the upstream's script failed", self._failures)
        for failure in self._failures:  # what went wrong in the block comes first, but may well come from this
            error.add_note(f"the upstream's script failed: {failure!r}")

    @property
    def base_url(self) -> str:
        """What stands as `base_url` in relay.toml."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def until(self, condition: Callable[[], bool], timeout_s: float = _PATIENCE_S) -> None:
        """Wait until the condition holds; TimeoutError if it does not in time.

        It is asked at once, and again whenever a connection opens or ends, a request arrives or its script is done.
        """
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self._news.wait()

    async def request(self, number: int = 1, timeout_s: float = _PATIENCE_S) -> Request:
        """Wait for the request of that number, from 1; LookupError if it came too long ago (`keep_requests`)."""
        await self.until(lambda: self.received >= number, timeout_s)
        place = number - 1 - (self.received - len(self.requests))
        if place < 0:
            raise LookupError(f"request {number} is forgotten: only the last {self.requests.maxlen} are kept")
        return self.requests[place]

    async def finished(self, request: Request, timeout_s: float = _PATIENCE_S) -> float:
        """Wait until every step of the request's script is done; return when that was."""
        await self.until(lambda: request.finished_at is not None, timeout_s)
        return cast(float, request.finished_at)

    async def closed(self, request: Request, timeout_s: float = _PATIENCE_S) -> float:
        """Wait until the connection of the request is closed or reset; return when that was seen."""
        await self.until(lambda: request.closed_at is not None, timeout_s)
        return cast(float, request.closed_at)

    async def stalled(self, request: Request, timeout_s: float = _PATIENCE_S) -> int:
        """Wait until the client of the request has stopped reading; return `sent_bytes`.

        Stopped means: a write is under way, the kernel takes nothing more, and for 0.1 s and 20 turns of the loop that
        stayed so. So it is for a reader that has stopped, not for one that is slow.
        """
        connection, quiet, last = request._connection, 0, -1
        async with asyncio.timeout(timeout_s):
            while quiet < _QUIET_STEPS:
                await asyncio.sleep(_QUIET_STEP_S)
                quiet = quiet + 1 if connection.blocked and request.sent_bytes == last else 0
                last = request.sent_bytes
        return last

    def _opened(self, connection: "_Connection", task: asyncio.Task[None]) -> int:
        """Count a connection and own its task; return the connection's number."""
        if self._send_buffer_bytes is not None:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)
        if self._server is None:  # accepted while the block was being left
            connection.end(reset=True)
        self._open.add(connection)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(connection, task))
        self.connections += 1
        self._tell()
        return self.connections

    def _script_for(self, request: Request) -> Script:
        """Remember the request and choose its script."""
        self.requests.append(request)
        self.received += 1
        self._tell()
        if self._models is not None and request.method == "GET" and request.path.endswith("/models"):
            return self._models
        try:
            return self._choose(request)
        except Exception as failure:  # noqa: BLE001 — whatever the author's callable raises is kept for the author
            self._failures.append(failure)
            return refused(500)

    def _lost(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _done(self, connection: "_Connection", task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(failure := task.exception(), Exception):
            self._failures.append(failure)  # not a script, say
            connection.end(reset=True)
        self._tell()


def _chooser(script: Scripts) -> Callable[[Request], Script]:
    if isinstance(script, Script):
        return lambda _: script
    if callable(script):
        return script
    row = iter(tuple(script))

    def following(request: Request) -> Script:
        following = next(row, None)
        if following is None:
            raise LookupError(f"no script is left for {request!r}")
        return following

    return following


def answers(texts: Sequence[str], pace_s: float = 0) -> "Callable[[Request], Script]":
    """Reply with `texts`, streamed if the request asks for a stream and in one body if not."""
    reply, stream = whole(frames.body("".join(texts))), streamed(frames.stream(texts), pace_s)
    return lambda request: stream if request.streams else reply


# ----------------------------------------------------------------------------------------------------- connection


class _MalformedError(Exception):
    """What came is not a request this server reads; the message says why."""


class _Connection(asyncio.Protocol):
    """One connection: requests read one after another, each answered by its script, by one task.

    The task ends with the connection. Bytes that come while a reply is going out wait in the inbox, which is bounded.
    """

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed_at: float | None = None
        self.closed_by: Literal["client", "upstream"] | None = None
        self._upstream = upstream
        self._inbox = bytearray()
        self._fed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._written = 0  # bytes given to the transport
        self._taken = 0  # bytes of these that the kernel is known to have taken

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport.set_write_buffer_limits(high=0)
        self.socket: socket.socket = transport.get_extra_info("socket")
        self._task = self.loop.create_task(self._serve())
        self.number = self._upstream._opened(self, self._task)

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        self._fed.set()
        if len(self._inbox) > _MAX_INBOX_BYTES:
            self.end(reset=True)

    def eof_received(self) -> None:
        self._ends("client")
        self._ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ends("client")  # unless this side had begun to
        self._ended()
        self._task.cancel()
        self._upstream._lost(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What requests and the upstream ask.

    @property
    def taken(self) -> int:
        """Bytes the kernel has taken since the connection began."""
        if self.closed_by is None:  # afterwards the transport has thrown its buffer away and looks empty
            self._taken = self._written - self._transport.get_write_buffer_size()
        return self._taken

    @property
    def blocked(self) -> bool:
        """Whether bytes wait here because the kernel takes no more."""
        if self.closed_by is not None or not self._transport.get_write_buffer_size():
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLOUT)
        return not poll.poll(0)

    def end(self, *, reset: bool) -> None:
        """Close the connection from this side."""
        self._ends("upstream")
        if reset:
            # A linger time of zero makes the kernel send RST where it would send FIN (socket(7), SO_LINGER).
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    def _ends(self, by: Literal["client", "upstream"]) -> None:
        if self.closed_by is None:
            self._taken, self.closed_by = self.taken, by

    def _ended(self) -> None:
        if self.closed_at is None:
            self.closed_at = self.loop.time()
            self._upstream._tell()

    # Replies.

    async def _serve(self) -> None:
        while self.closed_by is None:
            try:
                request = await self._read()
            except _MalformedError as wrong:
                reply = refused(400, frames.error_body(str(wrong), kind="invalid_request_error", code="malformed"))
                await self._write(reply.wire())
                self.end(reset=False)
                return
            for act in self._upstream._script_for(request).acts():
                if self.closed_by == "client":
                    return
                if self.closed_by == "upstream":
                    break
                await self._carry_out(act)
            request._finish()
            self._upstream._tell()
            if request.header("connection") == "close":
                self.end(reset=False)

    async def _carry_out(self, act: Act) -> None:
        match act:
            case bytes():
                await self._write(act)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Gate(event):
                await event.wait()
            case Hang():
                await self.loop.create_future()  # the task is cancelled when the connection ends
            case Close() | Abort():
                self.end(reset=isinstance(act, Abort))

    async def _write(self, data: bytes) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._written += len(data)
        self._transport.write(data)
        await self._writable.wait()

    # Requests (RFC 9112), as strict as a server may be: the relay must not send what two servers could read in two ways.

    async def _read(self) -> Request:
        head = await self._take_through(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        try:
            method, path, version = first.split(" ")
            pairs = [line.split(":", 1) for line in rest]
            headers = tuple((name, value.strip(" \t")) for name, value in pairs)
        except ValueError:
            raise _MalformedError("the head is not HTTP") from None
        if version != "HTTP/1.1":
            raise _MalformedError(f"{version} is not HTTP/1.1")
        return Request(self, method, path, headers, await self._read_body(headers))

    async def _read_body(self, headers: tuple[tuple[str, str], ...]) -> bytes:
        framing = [(name.lower(), value) for name, value in headers if name.lower() in _FRAMING]
        match framing:
            case []:
                return b""
            case [("content-length", length)]:
                return await self._take(_number(length, 10))
            case [("transfer-encoding", "chunked")]:
                body = bytearray()
                while size := _number((await self._take_through(b"\r\n")).partition(b";")[0].decode("latin-1"), 16):
                    if len(body) + size > _MAX_BODY_BYTES:
                        raise _MalformedError("the body is too large")
                    body += await self._take(size)
                    if await self._take(2) != b"\r\n":
                        raise _MalformedError("a chunk is longer than it says")
                while await self._take_through(b"\r\n"):  # trailers
                    pass
                return bytes(body)
            case _:
                raise _MalformedError("the length of the body is said twice, or in an encoding other than chunked")

    async def _take_through(self, mark: bytes) -> bytes:
        """Bytes up to `mark`, which is taken as well and not returned."""
        while (end := self._inbox.find(mark, 0, _MAX_HEAD_BYTES)) < 0:
            if len(self._inbox) >= _MAX_HEAD_BYTES:
                raise _MalformedError("the head is too large")
            await self._more()
        taken = bytes(self._inbox[:end])
        del self._inbox[: end + len(mark)]
        return taken

    async def _take(self, count: int) -> bytes:
        if count > _MAX_BODY_BYTES:
            raise _MalformedError("the body is too large")
        while len(self._inbox) < count:
            await self._more()
        taken = bytes(self._inbox[:count])
        del self._inbox[:count]
        return taken

    async def _more(self) -> None:
        self._fed.clear()
        await self._fed.wait()


_FRAMING = ("content-length", "transfer-encoding")
_DIGITS = {10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}


def _number(digits: str, base: int) -> int:
    """A length. `int` alone would also take signs, spaces, underscores and other scripts' digits."""
    if not digits or not _DIGITS[base].issuperset(digits):
        raise _MalformedError("a length is not a number")
    return int(digits, base)
