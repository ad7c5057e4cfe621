"""The whole relay in one process and without a socket, to count and to profile: `python -m bench.inside WORK COUNT`.

A loop that opens no connection hands requests to the relay's listener and answers in the place of the upstream, in one
fixed order, so that two runs of the same code do the same to the last branch. `bench.instructions` counts by it. What
stands in for client and upstream is a few calls a read.

WORK: `plain` (replies that are not streamed), `stream` (200 events, each in a read of its own), `long` (400 events).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import math
import os
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import uvloop

from bench.phrases import phrases
from relay.config import load
from relay.log import configure
from relay.serve import running

MODEL_PORT: Final = 9  # nobody listens there, and nobody is asked
KEY: Final = "sk-bench"
WARM: Final = 20  # requests before the first that is looked at
TOKENS: Final = "我 是 一个 AI 语 言 模 型 , , 专 门 用 来 回 答 问题 和 提 供 帮 助 的 。".split()

RELAY_TOML: Final = f"""\
[server]
port = 0
[admin]
port = 0
[store]
url = "memory:"
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{MODEL_PORT}/v1"
models = ["bench"]
[[plugins]]
use = "auth"
keys = [{{ name = "bench", key = "{KEY}" }}]
[[plugins]]
use = "parameters"
[[plugins]]
use = "rate_limit"
requests_per_minute = 100_000_000
concurrent_streams = 10_000
[[plugins]]
use = "moderation"
moderators = [{{ use = "lexicon", files = ["phrases.txt"] }}]
[[plugins]]
use = "history"
max_tokens = 3000
"""

_MESSAGES: Final = [
    {"role": "user", "content": "你是谁"},
    {"role": "assistant", "content": "我是一个AI语言模型,由OpenAI开发。"},
    {"role": "user", "content": "1+1=?"},
]
_FRAME: Final = (
    '{"id":"chatcmpl-7MCqtZcvn8rKPLlY5582","object":"chat.completion.chunk","created":1685526975,"model":"bench",'
    '"system_fingerprint":"fp_%d","choices":[{"delta":%s,"index":0,"finish_reason":%s}]}'
)


class Wire(asyncio.Transport):
    """One end of a connection that leads nowhere: what is written goes to `on_write`."""

    def __init__(self, protocol: asyncio.Protocol, on_write: Callable[[bytes], None]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.write = on_write  # type: ignore[method-assign, assignment]
        self._protocol = protocol
        self._closing = False
        protocol.connection_made(self)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is kept."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError

    def is_reading(self) -> bool:
        return True


class Loop(uvloop.Loop):
    """uvloop without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.upstream: asyncio.Protocol | None = None
        self.asked = asyncio.Event()

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connected."""

    async def create_connection(self, factory: Any, *args: Any, **options: Any) -> Any:
        self.upstream = protocol = factory()
        return Wire(protocol, self._take), protocol

    def _take(self, data: bytes) -> None:
        if data.endswith(b"}"):  # the head may come by itself
            self.asked.set()


class Client:
    """One connection to the relay."""

    def __init__(self, listener: Callable[[], asyncio.Protocol], body: bytes) -> None:
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nAccept: */*\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
        )
        self._end = b"0\r\n\r\n" if b'"stream":true' in body else b"}"
        self._said: list[bytes] = []
        self._over = asyncio.Event()
        self._protocol = listener()
        self._wire = Wire(self._protocol, self._read)

    def _read(self, data: bytes) -> None:
        self._said.append(data)
        if data.endswith(self._end):
            self._over.set()

    def ask(self) -> None:
        self._said: list[bytes] = []
        self._over.clear()
        self._protocol.data_received(self._request)

    async def answered(self) -> bytes:
        await self._over.wait()
        return b"".join(self._said)

    def leave(self) -> None:
        self._wire.close()


def events(count: int) -> list[bytes]:
    """The reads of one streamed reply, its head first: an HTTP chunk each, with one event."""
    said = [('{"role":"assistant"}', "null")]
    said += [(json.dumps({"content": TOKENS[n % len(TOKENS)]}, ensure_ascii=False), "null") for n in range(count)]
    said.append(("{}", '"stop"'))
    frames = [_FRAME % (10**14 + 5_000_000 * n, delta, finish) for n, (delta, finish) in enumerate(said)]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head, *(chunked(f"data: {frame}\n\n".encode()) for frame in [*frames, "[DONE]"]), b"0\r\n\r\n"]


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(count: int) -> list[bytes]:
    """The read of one reply that is not streamed."""
    text = "".join(TOKENS[n % len(TOKENS)] for n in range(count))
    reply = {
        "id": "chatcmpl-7MCqEj6w5C4fUuLcTrsDH2e6ExYkv",
        "object": "chat.completion",
        "created": 1685526934,
        "model": "bench",
        "usage": {"prompt_tokens": 41, "completion_tokens": count, "total_tokens": 41 + count},
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "index": 0}],
        "system_fingerprint": "fp_123456789012345",
    }
    body = json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return [head + body]


WORKS: Final = {"plain": (False, whole(200)), "stream": (True, events(200)), "long": (True, events(400))}


class Inside:
    """A relay that serves on a loop without a network."""

    def __init__(self, loop: Loop, listener: Callable[[], asyncio.Protocol]) -> None:
        self._loop = loop
        self._listener = listener

    async def ask(self, kind: str, count: int) -> bytes:
        """Take `count` requests through the relay, one after the other; returns what the last client got."""
        loop = self._loop
        stream, reads = WORKS[kind]
        asked = {"model": "bench", "stream": stream, "messages": _MESSAGES}
        client = Client(self._listener, json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode())
        said = b""
        for _ in range(count):
            loop.asked.clear()
            client.ask()
            await loop.asked.wait()
            assert loop.upstream is not None
            for read in reads:
                loop.upstream.data_received(read)
                await asyncio.sleep(0)
            said = await client.answered()
        client.leave()
        return said


@asynccontextmanager
async def inside(plugin: str = "") -> AsyncIterator[Inside]:
    """On a `Loop`, while the block runs. plugin: one more, behind the others."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, open(os.devnull, "wb") as nowhere:  # noqa: ASYNC230
        config = Path(folder, "relay.toml")
        added = f'[[plugins]]\nuse = "{plugin}"\n' if plugin else ""
        config.write_text(RELAY_TOML + added)  # noqa: ASYNC240 — nothing runs yet
        Path(folder, "phrases.txt").write_text("\n".join(phrases()), encoding="utf-8")  # noqa: ASYNC240
        # In the slow motion of a tool that counts everybody seems to block; nobody looks who.
        with patch("relay.watchdog.LOOKS", math.inf):
            async with running(load(config), configure(nowhere)) as relay:
                yield Inside(loop, relay.listener)


async def work(kind: str, count: int, profile: cProfile.Profile | None) -> bytes:
    async with inside() as relay:
        await relay.ask(kind, WARM)
        if profile is not None:
            profile.enable()
        said = await relay.ask(kind, count)
        if profile is not None:
            profile.disable()
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("count", type=int)
    parser.add_argument("--show", action="store_true", help="print what the last client got")
    parser.add_argument("--profile", metavar="FILE", help="write what cProfile says of all but the start")
    args = parser.parse_args()
    random.seed(0)
    profile = cProfile.Profile() if args.profile else None
    with asyncio.Runner(loop_factory=Loop) as runner:
        said = runner.run(work(args.work, args.count, profile))
    if profile is not None:
        profile.dump_stats(args.profile)
    if args.show:
        print(said.decode())


if __name__ == "__main__":
    main()
