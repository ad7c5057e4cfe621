"""Clients to measure with: `python -m bench.load PORT STREAMS SECONDS KEY [options]` prints one JSON object.

Each client holds a connection and asks again as soon as its reply has ended, until the time is up; with --every, at set
times. What is printed is a `Told`.

It shares the machine with what it measures, so it is one loop over `epoll` and plain sockets, which counts events without
looking at them, and reads the stamps of those that come with every --sample'th read.
"""

import argparse
import errno
import gc
import json
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, TypedDict

from bench.shapes import END, STAMPS

_MESSAGES: Final = [
    {"role": "user", "content": "你是谁"},
    {"role": "assistant", "content": "我是一个AI语言模型,由OpenAI开发。"},
    {"role": "user", "content": "1+1=?"},
]
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_READ: Final = 65_536
# How long after the time is up replies may go on.
_PATIENCE_S: Final = 60.0


class Told(TypedDict):
    """What clients have seen.

    requests: replies that came to their end. error: the first of the errors. peak: how many streams were open at a time.
    delay_us, first_us: median and 99th percentile of an event's way from the model server's write to the client's read,
    and of the time from a request to the first event, or to the end of a reply that is not streamed; None if there was
    none. cpu_us: of the clients' process, for each event, or each reply that is not streamed.
    """

    seconds: float
    requests: int
    events: int
    errors: int
    error: str
    peak: int
    delay_us: tuple[float, float] | None
    first_us: tuple[float, float] | None
    cpu_us: float


def request(key: str, *, model: str = "bench", stream: bool = True) -> bytes:
    """A conversation of three messages, as HTTP."""
    asked = {"model": model, "stream": stream, "messages": _MESSAGES}
    body = json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nAccept: */*\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
    )


class Client:
    """One connection, and the reply on it.

    asked_ns: when it was asked for; begun: its head is here; first: its first event is. left: how many of its bytes have
    not come, None if it ends with a chunk. last: the read before.
    """

    __slots__ = ("asked_ns", "begun", "busy", "first", "last", "left", "recv", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.recv = self.socket.recv
        self.asked_ns = 0
        self.busy = self.begun = self.first = False
        self.left: int | None = None
        self.last = b""

    def asked(self, now_ns: int) -> None:
        self.asked_ns = now_ns
        self.busy, self.begun, self.first = True, False, False
        self.left = None


class Load:
    """All clients, and what they have seen."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._request = request(args.key, stream=not args.whole)
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._delays_ns: list[int] = []
        self._firsts_ns: list[int] = []
        self._until_ns = 0
        self._reads = self._events = self._requests = self._errors = self._open = self._peak = 0
        self._error = ""

    def run(self) -> Told:
        args = self._args
        for _ in range(args.streams):
            client = Client(args.port)
            self._clients[client.socket.fileno()] = client
            self._epoll.register(client.socket.fileno(), select.EPOLLIN)
        if args.prompted:
            print("ready", flush=True)
            sys.stdin.readline()
        began = time.monotonic()
        until = began + args.seconds
        self._until_ns = int(until * 1e9)
        apart_s = args.over / args.streams
        due = deque((began + place * apart_s, client) for place, client in enumerate(self._clients.values()))
        prompted = args.prompted
        while self._clients:
            now = time.monotonic()
            while due and due[0][0] <= now:
                at, client = due.popleft()
                if not client.busy:
                    self._ask(client)
                if args.every and at + args.every < until:
                    due.append((at + args.every, client))
            if prompted and self._peak == args.streams:
                prompted = False
                print("open", flush=True)
            if (not due and not self._open) or (args.cut and now >= until) or now > until + _PATIENCE_S:
                break
            for fd, _ in self._epoll.poll(min(0.1, max(0.0, due[0][0] - now)) if due else 0.1, 512):
                self._read(fd, self._clients[fd])
        return self._told(time.monotonic() - began)

    def _ask(self, client: Client) -> None:
        client.asked(time.monotonic_ns())
        self._open += 1
        self._peak = max(self._peak, self._open)
        client.socket.send(self._request)

    def _read(self, fd: int, client: Client) -> None:
        try:
            data = client.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(fd, client, errno.errorcode.get(error.errno or 0, "?"))
            return
        if not data:
            self._lost(fd, client, "closed by the other side")
            return
        now_ns = time.monotonic_ns()
        if not client.first:
            self._begin(client, data, now_ns)
        self._events += data.count(b"data: ")
        self._reads += 1
        if not self._reads % self._args.sample:
            self._delays_ns += [now_ns - int(sent) for sent in STAMPS.findall(data)]
        if client.left is not None:
            client.left -= len(data)
            ended = client.left <= 0
        else:
            if len(data) <= len(END):
                data = client.last + data
            client.last = data
            ended = data.endswith(END)
        if ended:
            self._end(client, data, now_ns)

    def _begin(self, client: Client, data: bytes, now_ns: int) -> None:
        """The reply's head, or what follows it."""
        if not client.begun:
            client.begun = True
            length = _LENGTH.search(data)
            if length is not None:
                client.left = int(length[1]) + data.index(b"\r\n\r\n") + 4
            if not data.startswith(b"HTTP/1.1 200"):
                self._wrong(data.partition(b"\r\n")[0].decode(errors="replace"))
        if not self._args.whole and b"data: " in data:
            client.first = True
            self._firsts_ns.append(now_ns - client.asked_ns)

    def _end(self, client: Client, data: bytes, now_ns: int) -> None:
        client.busy = False
        self._open -= 1
        self._requests += 1
        if self._args.whole:
            self._firsts_ns.append(now_ns - client.asked_ns)
        elif b"[DONE]" not in data[-64:]:
            self._wrong("a stream without its end")
        if not self._args.every and not self._args.once and now_ns < self._until_ns:
            self._ask(client)

    def _lost(self, fd: int, client: Client, why: str) -> None:
        self._wrong(why)
        self._open -= client.busy
        self._epoll.unregister(fd)
        del self._clients[fd]

    def _wrong(self, what: str) -> None:
        self._errors += 1
        self._error = self._error or what

    def _told(self, seconds: float) -> Told:
        if self._open and not self._args.cut:
            self._errors += self._open
            self._error = self._error or "streams that do not end"
        return {
            "seconds": seconds,
            "requests": self._requests,
            "events": self._events,
            "errors": self._errors,
            "error": self._error,
            "peak": self._peak,
            "delay_us": percentiles_us(self._delays_ns),
            "first_us": percentiles_us(self._firsts_ns),
            "cpu_us": time.process_time() * 1e6 / max(1, self._events, self._requests),
        }


def percentiles_us(times_ns: Sequence[int]) -> tuple[float, float] | None:
    """The median and the 99th percentile."""
    if not times_ns:
        return None
    ordered = sorted(times_ns)
    return ordered[len(ordered) // 2] / 1000, ordered[len(ordered) * 99 // 100] / 1000


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("port", type=int)
    options.add_argument("streams", type=int)
    options.add_argument("seconds", type=float)
    options.add_argument("key")
    options.add_argument(
        "--over", type=float, default=0, metavar="S", help="the first requests are spread over so long"
    )
    options.add_argument("--every", type=float, default=0, metavar="S", help="ask again after so long, not at the end")
    options.add_argument("--once", action="store_true", help="do not ask again")
    options.add_argument("--cut", action="store_true", help="leave when the time is up, not at the ends of streams")
    options.add_argument("--whole", action="store_true", help="ask for replies that are not streamed")
    options.add_argument("--prompted", action="store_true", help="say ready, wait for a line, say when all are open")
    options.add_argument("--sample", type=int, default=1, metavar="N", help="look for stamps in every N'th read")
    return options


if __name__ == "__main__":
    load = Load(parser().parse_args())
    gc.collect()
    gc.disable()
    print(json.dumps(load.run()))
