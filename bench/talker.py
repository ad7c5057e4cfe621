"""A model server that speaks prose: `python -m bench.talker PORT CHARS_PER_S`.

A request's `seed` says which reply it gets (`bench.texts`), its `max_tokens` how long that is at least, in characters.
Each chunk says when it was written, in its fingerprint.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

from bench.texts import chunks, reply

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FRAME = (
    b'data: {"id":"chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT","object":"chat.completion.chunk","created":1685526975,'
    b'"model":"bench","system_fingerprint":"fp_%d","choices":[{"delta":%b,"index":0,"finish_reason":%b}]}\n\n'
)
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _chunk(delta: bytes, finish: bytes = b"null") -> bytes:
    event = _FRAME % (time.monotonic_ns(), delta, finish)
    return b"%x\r\n%b\r\n" % (len(event), event)


class Talker(asyncio.Protocol):
    """One connection, one reply after the other."""

    def __init__(self, chars_per_s: float) -> None:
        self._chars_per_s = chars_per_s
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._buffer = body[length:]
            asked = json.loads(body[:length])
            seed = int(asked.get("seed", 0))
            said = [
                (len(part), b'{"content":%b}' % json.dumps(part, ensure_ascii=False).encode())
                for part in chunks(reply(seed, int(asked.get("max_tokens", 0))), seed)
            ]
            self._transport.write(_HEAD + _chunk(b'{"role":"assistant"}'))
            self._next(iter(said), self._loop.time())

    def _next(self, said: Iterator[tuple[int, bytes]], due: float) -> None:
        if self._transport.is_closing():
            return
        for length, delta in said:
            self._transport.write(_chunk(delta))
            due += length / self._chars_per_s
            self._loop.call_at(due, self._next, said, due)
            return
        self._transport.write(_chunk(b"{}", b'"stop"') + _END)


async def main(port: int, chars_per_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Talker(chars_per_s), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
