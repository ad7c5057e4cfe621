"""Clients to measure with: `python -m bench.load PORT STREAMS SECONDS KEY` prints one JSON object.

Each asks for one stream after the other and reads when each event was sent off its fingerprint.
"""

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

_SENT = re.compile(rb'"fp_(\d+)"')
_BODY = b'{"model":"bench","stream":true,"messages":[{"role":"user","content":"1+1=?"}]}'


class Client(asyncio.Protocol):
    """One connection, one stream after the other until the time is up."""

    def __init__(self, key: str, until: float, delays_us: list[float]) -> None:
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (key.encode(), len(_BODY), _BODY)
        )
        self._until = until
        self._delays_us = delays_us
        self.done = asyncio.get_running_loop().create_future()
        self.streams = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._delays_us.extend((now - int(sent)) / 1000 for sent in _SENT.findall(data))
        if data.endswith(b"0\r\n\r\n"):
            self.streams += 1
            if time.monotonic() < self._until:
                self._transport.write(self._request)
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self.streams)


async def main(port: int, streams: int, seconds: float, key: str) -> None:
    loop = asyncio.get_running_loop()
    delays_us: list[float] = []
    until = time.monotonic() + seconds
    clients = [
        (await loop.create_connection(lambda: Client(key, until, delays_us), "127.0.0.1", port))[1]
        for _ in range(streams)
    ]
    finished = sum(await asyncio.gather(*(client.done for client in clients)))
    delays_us.sort()
    print(
        json.dumps(
            {
                "events": len(delays_us),
                "streams": finished,
                "p50_us": delays_us[len(delays_us) // 2] if delays_us else None,
                "p99_us": delays_us[len(delays_us) * 99 // 100] if delays_us else None,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
