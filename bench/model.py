"""A model server to measure with: `python -m bench.model PORT`. Streams 200 chunks, 5 ms apart, or answers whole at once,
with as little CPU as Python can, so that it does not compete with what is measured."""

import asyncio
import sys
import time
from typing import cast

import uvloop

CHUNKS, PACE_S = 200, 0.005
_TEXT = "你好,我是一个语言模型。我可以回答各种各样的问题,提供帮助。There is nothing forbidden in here. "
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FRAME = (
    b'data: {"id":"chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT","object":"chat.completion.chunk","created":1685526975,'
    b'"model":"bench","system_fingerprint":"fp_%d","choices":[{"delta":%b,"index":0,"finish_reason":%b}]}\n\n'
)

_WHOLE = (
    b'{"id":"chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT","object":"chat.completion","created":1685526975,"model":"bench",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"2"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":13}}'
)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_WHOLE), _WHOLE)


def _chunk(delta: bytes, finish: bytes = b"null") -> bytes:
    # The fingerprint says when it was sent, so that the client can tell how long it took.
    event = _FRAME % (time.monotonic_ns(), delta, finish)
    return b"%x\r\n%b\r\n" % (len(event), event)


class Model(asyncio.Protocol):
    """Answers every request with the same stream, or the same body."""

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
            if b'"stream":true' not in body:
                self._transport.write(_ANSWER)
                return
            self._transport.write(_HEAD + _chunk(b'{"role":"assistant"}'))
            self._next(0, asyncio.get_running_loop().time())

    def _next(self, sent: int, due: float) -> None:
        if self._transport.is_closing():
            return
        if sent < CHUNKS:
            at = sent * 2 % (len(_TEXT) - 1)
            self._transport.write(_chunk(b'{"content":"%b"}' % _TEXT[at : at + 2].encode()))
            due += PACE_S
            asyncio.get_running_loop().call_at(due, self._next, sent + 1, due)
        else:
            self._transport.write(_chunk(b"{}", b'"stop"') + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
