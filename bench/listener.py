"""Clients that read prose and clock it: `python -m bench.listener PORT STREAMS ROUNDS SPREAD_S CHARS KEY`.

STREAMS clients begin within SPREAD_S seconds; each reads ROUNDS replies, one after the other. Prints one JSON object:
what became of every reply that was asked for, and how late what it said was. A delay is of a character, from the moment in which the model
server wrote it; both clocks are the machine's monotonic one.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import uvloop

_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
_ID = re.compile(rb"x-request-id: *([^\r\n]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_SAID = re.compile(rb'"fp_(\d+)","choices":\[\{"delta":\{"content":("(?:[^"\\]|\\.)*")\}')
_CODE = re.compile(rb'"code": ?"(\w+)"')

Delay = tuple[float, int]
"""Seconds, and of how many characters."""


class Listener(asyncio.Protocol):
    """One connection, one reply after the other.

    replies: what became of each. delays: of all that was said. firsts: of the first words of each reply, in seconds.
    """

    def __init__(self, seeds: Sequence[int], chars: int, key: str) -> None:
        self.replies: list[dict[str, Any]] = []
        self.delays: list[Delay] = []
        self.firsts: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self._seeds = list(reversed(seeds))
        self._chars = chars
        self._key = key.encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._seed = self._seeds.pop()
        asked = {
            "model": "bench",
            "stream": True,
            "seed": self._seed,
            "max_tokens": self._chars,
            "messages": [{"role": "user", "content": f"请讲第{self._seed}个故事。"}],
        }
        body = json.dumps({name: value for name, value in asked.items() if value}, ensure_ascii=False).encode()
        self._transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (self._key, len(body), body)
        )
        self._buffer = b""
        self._waiting = True
        self._status = 0
        self._length: int | None = None  # of a body that is no stream
        self._id = ""
        self._said: list[str] = []
        self._began = time.monotonic()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._buffer += data
        if not self._status:
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            self._read_head(head)
        end_of_last = 0
        for found in _SAID.finditer(self._buffer):
            part: str = json.loads(found[2])
            delay_s = (now - int(found[1])) / 1e9
            if not self._said:
                self.firsts.append(delay_s)
            self.delays.append((delay_s, len(part)))
            self._said.append(part)
            end_of_last = found.end()
        if end_of_last:
            self._buffer = self._buffer[end_of_last:]
        if self._length is not None:
            if len(self._buffer) >= self._length:
                self._over(b"")
        elif self._buffer.endswith(b"\r\n0\r\n\r\n"):
            self._over(self._buffer)

    def _read_head(self, head: bytes) -> None:
        status, ours, length = _STATUS.match(head), _ID.search(head), _LENGTH.search(head)
        self._status = int(status[1]) if status else -1
        self._id = ours[1].decode() if ours else ""
        self._length = int(length[1]) if length else None

    def _over(self, tail: bytes) -> None:
        self._waiting = False
        code = _CODE.search(self._buffer)
        self.replies.append(
            {
                "id": self._id,
                "seed": self._seed,
                "chars": self._chars,
                "status": self._status,
                "complete": b'"finish_reason":"stop"' in tail and b"data: [DONE]" in tail,
                "code": code[1].decode() if code else "",
                "began": self._began,
                "ended": time.monotonic(),
                "said": "".join(self._said),
            }
        )
        if not self._seeds:
            self._transport.close()
        elif not self._transport.is_closing():
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._over(b"")
        if not self.done.done():
            self.done.set_result(None)


def said(body: bytes) -> str:
    """What a whole reply says."""
    return "".join(json.loads(found[2]) for found in _SAID.finditer(body))


def at_share(delays: Sequence[Delay], share: float) -> float | None:
    """The delay that a share of all characters does not exceed; `delays` are sorted."""
    left = share * sum(chars for _, chars in delays)
    for delay_s, chars in delays:
        left -= chars
        if left <= 0:
            return delay_s
    return None


async def main(port: int, streams: int, rounds: int, spread_s: float, chars: int, key: str) -> None:
    loop = asyncio.get_running_loop()
    listeners = []
    began = loop.time()
    for number in range(streams):
        await asyncio.sleep(max(0.0, began + number * spread_s / streams - loop.time()))
        seeds = range(number * rounds, (number + 1) * rounds)
        listener = Listener([seed + 1 for seed in seeds], chars, key)
        await loop.create_connection(lambda listener=listener: listener, "127.0.0.1", port)  # type: ignore[misc]
        listeners.append(listener)
    await asyncio.gather(*(listener.done for listener in listeners))
    delays = sorted(delay for listener in listeners for delay in listener.delays)
    firsts = sorted((first_s, 1) for listener in listeners for first_s in listener.firsts)
    json.dump(
        {
            "replies": [reply for listener in listeners for reply in listener.replies],
            "chunks": len(delays),
            "delay_s": [at_share(delays, 0.5), at_share(delays, 0.99), delays[-1][0] if delays else None],
            "first_s": [at_share(firsts, 0.5), at_share(firsts, 0.99), firsts[-1][0] if firsts else None],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    port, streams, rounds = map(int, sys.argv[1:4])
    uvloop.run(main(port, streams, rounds, float(sys.argv[4]), int(sys.argv[5]), sys.argv[6]))
