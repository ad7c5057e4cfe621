"""A model server to measure with: `python -m bench.model PORT [--whole TOKENS]`.

It says what its `Setting` says, to each request for the name of a model what is set for that name; another setting is
taken with `POST /setting/NAME`, in JSON. `GET /state/NAME` tells how many bytes have left in the newest stream of that
name, where to, and whether more wait for its reader. Every other GET is answered with 200.

It shares the machine with what it measures, so it is one loop over `epoll` and plain sockets: all streams that are due in
the same millisecond are written one after the other, and between two system calls there is little Python.
"""

import argparse
import gc
import json
import re
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final
from urllib.request import Request, urlopen

from bench.shapes import Setting, Write, stamp

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_MODEL: Final = re.compile(rb'"model": ?"([^"]*)"')
_STREAM: Final = re.compile(rb'"stream": ?true')
_READ: Final = 65_536
_ANY = "*"


@dataclass
class Script:
    """A setting, and what follows from it."""

    setting: Setting
    writes: list[Write] = field(init=False)
    answer: bytes = field(init=False)
    pace_ms: int = field(init=False)

    def __post_init__(self) -> None:
        self.writes = self.setting.writes()
        self.answer = self.setting.answer()
        self.pace_ms = self.setting.pace_ms * self.setting.together


class Connection:
    """One client, and the stream that it is being sent, if it is.

    next: of the writes, which is due next. left: what the client's window had no room for; till it is gone nothing is due.
    """

    __slots__ = ("fd", "got", "left", "model", "next", "script", "send", "sent", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.fd = accepted.fileno()
        self.send = accepted.send
        self.got = b""
        self.left = b""
        self.next = 0
        self.sent = 0
        self.model = ""
        self.script: Script | None = None


class Model:
    """The server. Times are milliseconds of the monotonic clock."""

    def __init__(self, port: int, setting: Setting) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._scripts = {_ANY: Script(setting)}
        self._newest: dict[str, Connection] = {}
        self._due: dict[int, list[Connection]] = {}
        self._streams = 0

    def run(self) -> None:
        listener = self._listener.fileno()
        next_ms = _now_ms()
        while True:
            if not self._streams:
                next_ms = _now_ms()
            timeout = max(0.0, next_ms + 1 - time.monotonic() * 1000) / 1000 if self._streams else None
            for fd, events in self._epoll.poll(timeout, 512):
                if fd == listener:
                    self._accept()
                elif (connection := self._connections.get(fd)) is not None:
                    if events & select.EPOLLOUT:
                        self._go_on(connection)
                    if events & ~select.EPOLLOUT:
                        self._read(connection)
            now_ms = _now_ms()
            while next_ms < now_ms:
                next_ms += 1
                for connection in self._due.pop(next_ms, ()):
                    self._write(connection, next_ms)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[accepted.fileno()] = Connection(accepted)
            self._epoll.register(accepted.fileno(), select.EPOLLIN)

    def _close(self, connection: Connection) -> None:
        if connection.script is not None:
            self._streams -= 1
            connection.script = None
        if self._connections.pop(connection.fd, None) is not None:
            self._epoll.unregister(connection.fd)
            connection.socket.close()

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        got = connection.got = connection.got + data
        head, end, rest = got.partition(_HEAD_END)
        if not end:
            return
        length = _LENGTH.search(head)
        if _CHUNKED.search(head):
            if not rest.endswith(b"0\r\n\r\n"):
                return
            body, connection.got = rest, b""
        else:
            size = int(length[1]) if length else 0
            if len(rest) < size:
                return
            body, connection.got = rest[:size], rest[size:]
        self._answer(connection, head, body)

    def _answer(self, connection: Connection, head: bytes, body: bytes) -> None:
        method, target, _ = head.split(b" ", 2)
        what, _, name = target.decode().lstrip("/").partition("/")
        if what == "setting":
            self._scripts[name] = Script(Setting(**json.loads(body)))
            self._say(connection, _json({}))
        elif what == "state":
            self._say(connection, _json(self._state(name)))
        elif method == b"GET":
            self._say(connection, _json({"object": "list", "data": [{"id": "bench", "object": "model"}]}))
        else:
            asked = _MODEL.search(body)
            name = asked[1].decode() if asked else _ANY
            script = self._scripts.get(name) or self._scripts[_ANY]
            if not _STREAM.search(body):
                self._say(connection, script.answer)
                return
            connection.model, connection.script = name, script
            connection.next = connection.sent = 0
            self._newest[name] = connection
            self._streams += 1
            self._write(connection, _now_ms())

    def _say(self, connection: Connection, answer: bytes) -> None:
        """At once: an answer is small, and nothing waits before it."""
        try:
            connection.send(answer)
        except OSError:
            self._close(connection)

    def _state(self, name: str) -> dict[str, Any]:
        newest = self._newest.get(name)
        if newest is None or newest.script is None:
            return {"sent": 0, "port": 0, "blocked": False}
        return {"sent": newest.sent, "port": newest.socket.getpeername()[1], "blocked": bool(newest.left)}

    def _write(self, connection: Connection, at_ms: int) -> None:
        script = connection.script
        if script is None:
            return
        write = stamp().join(script.writes[connection.next])
        try:
            sent = connection.send(write)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.sent += sent
        connection.next += 1
        if sent < len(write):
            connection.left = write[sent:]
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        else:
            self._after(connection, script, at_ms)

    def _after(self, connection: Connection, script: Script, at_ms: int) -> None:
        """The write that was due at `at_ms` has left."""
        if connection.next < len(script.writes):
            due = self._due.get(at_ms + script.pace_ms)
            if due is None:
                self._due[at_ms + script.pace_ms] = [connection]
            else:
                due.append(connection)
        else:
            connection.script = None
            self._streams -= 1

    def _go_on(self, connection: Connection) -> None:
        """There is room again."""
        if connection.script is None:
            return
        try:
            sent = connection.send(connection.left)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        connection.sent += sent
        connection.left = connection.left[sent:]
        if not connection.left:
            self._epoll.modify(connection.fd, select.EPOLLIN)
            self._after(connection, connection.script, _now_ms())


def say(port: int, setting: Setting, model: str = _ANY) -> None:
    """Have the server on `port` say this to whoever asks for `model`, from the next request on."""
    with urlopen(Request(f"http://127.0.0.1:{port}/setting/{model}", json.dumps(asdict(setting)).encode())):
        pass


def state(port: int, model: str) -> dict[str, Any]:
    """What `GET /state` tells."""
    with urlopen(f"http://127.0.0.1:{port}/state/{model}") as response:
        told: dict[str, Any] = json.load(response)
        return told


def _json(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--whole", type=int, default=Setting.whole, help="tokens of a reply that is not streamed")
    args = parser.parse_args()
    model = Model(args.port, replace(Setting(), whole=args.whole))
    gc.collect()
    gc.disable()
    model.run()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
