"""A real relay between real clients and a scripted upstream, all on loopback and in one process.

`serve(script, …)` starts both and gives a `Rig`: what a test asks through, and where it looks. Whatever a test does,
it holds afterwards that no reply is open, that a request has left exactly one line in the log and one count in the
metrics, that nothing was logged above info (a test that expects more says so in `rig.loudest`), and that no prompt and
no key stands in the log or in the metrics. tests/conftest.py looks for tasks and sockets that were left.

Every wait is bounded by `PATIENCE_S` and asserts nothing about time.
"""

import asyncio
import io
import json
import logging
import socket
import struct
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import openai
import pytest
from aiohttp_sse_client.client import EventSource

from relay.config import parse
from relay.log import LEVELS, configure
from relay.serve import allow_many_files, running
from relay.testing import ScriptedUpstream

PATIENCE_S = 10.0

KEY = "sk-canary-client-2f6b1c90d7e84a53"
UPSTREAM_KEY = "sk-canary-upstream-91d4e7a03bc65f28"
PROMPT = "canary-prompt"
MODEL = "gpt-3.5-turbo-1106"
FORBIDDEN = ("forbidden fruit", "敏感词")

allow_many_files()  # clients, relay and upstream are one process here, and a shell's limit may be 1,024

AUTH = {"use": "auth", "keys": [{"name": "tester", "key": KEY}]}


def moderation(**options):
    """The plugin's table, with the phrases of `FORBIDDEN`."""
    return {"use": "moderation", "moderators": [{"use": "lexicon", "words": list(FORBIDDEN)}], **options}


@pytest.fixture(params=["push", "await"])
def reader(request):
    """How the relay reads upstream bodies."""
    return request.param


@pytest.fixture
async def serve(reader, caplog):
    """`rig = await serve(script, …)`; see `Rig.start`."""
    async with AsyncExitStack() as stack:
        rigs = []

        async def start(*scripts, **options):
            rig = Rig(reader)
            rigs.append(rig)
            await rig.start(stack, *scripts, **options)
            return rig

        yield start
        for rig in rigs:
            await rig.rest()
    for rig in rigs:
        rig.look_round()
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Rig:
    """A relay, its upstreams and its clients.

    loudest: the highest level that the log may hold; app: the relay's own, for what cannot be seen from outside.
    """

    def __init__(self, reader):
        self.reader = reader
        self.loudest = "info"
        self.stopped = False
        self.upstreams = []
        self._log = io.BytesIO()
        self._exposition = ""

    async def start(
        self,
        stack,
        *scripts,
        chain=None,
        server=None,
        upstreams=None,
        upstream=None,
        buffer=None,
        store="memory:",
        timeout_ms=5000,
        folder=None,
        chains=(),
    ):
        """One upstream for each of `scripts`; `upstreams` are the tables of each, `upstream` is for all of them.

        chain: the tables of the plugins, chains: those of `[[chains]]`; buffer: what the kernel holds of an upstream's reply, in bytes. folder: where
        relay.toml is to lie; `document` is what is written there.
        """
        for script in scripts:
            self.upstreams.append(
                await stack.enter_async_context(ScriptedUpstream(script, send_buffer_bytes=buffer))
                if not isinstance(script, str)
                else None
            )
        tables = []
        for number, (script, fake) in enumerate(zip(scripts, self.upstreams, strict=True)):
            own = (upstreams or [{}] * len(scripts))[number]
            table = {"name": f"u{number}", "base_url": fake.base_url if fake else script, "models": [MODEL, "*"]}
            tables.append({**table, "api_key": UPSTREAM_KEY, **(upstream or {}), **own})
        self.document = document = {
            "server": {"port": 0, **(server or {})},
            "admin": {"port": 0},
            # This machine is busy with other tests: nothing is to be late.
            "store": {"url": store} if store == "memory:" else {"url": store, "timeout_ms": timeout_ms},
            "upstreams": tables,
            "plugins": [AUTH, moderation()] if chain is None else chain,
            "chains": list(chains),
        }
        self.file = (folder or Path(__file__).parent) / "relay.toml"
        if folder is not None:
            self.file.write_text(toml(document))
        config = parse(toml(document), self.file)
        self._running = await stack.enter_async_context(AsyncExitStack())
        self.relay = await self._running.enter_async_context(
            running(config, configure(self._log, "debug"), reader=self.reader)
        )
        self.app = self.relay.app
        self.session = await stack.enter_async_context(
            aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=aiohttp.ClientTimeout(PATIENCE_S),
                connector=aiohttp.TCPConnector(limit=0),
            )
        )
        self.url = f"http://127.0.0.1:{self.relay.public_port}"
        self.chat_url = self.url + "/v1/chat/completions"
        self._stack = stack

    @property
    def upstream(self):
        """The first one."""
        return self.upstreams[0]

    # Asking

    def post(self, *, stream=True, headers=None, **fields):
        """A chat request: a context manager of aiohttp's response. `fields` go into the body."""
        data = io.BytesIO(body(stream=stream, **fields))  # aiohttp warns of long bytes
        return self.session.post(self.chat_url, data=data, headers=headers)

    async def ask(self, **asked):
        """A chat request and all of its answer."""
        async with self.post(**asked) as response:
            return Reply(response.status, response.headers, await response.read())

    async def events(self, **fields):
        """The data of every event of a streamed answer, as an independent reader understands them."""
        source = EventSource(
            self.chat_url, option={"method": "POST"}, session=self.session, data=body(stream=True, **fields)
        )
        events = []
        async with source, asyncio.timeout(PATIENCE_S):
            async for event in source:
                events.append(event.data)
                if event.data == "[DONE]":
                    break
        return events

    async def sdk(self, **options):
        """The official client."""
        return await self._stack.enter_async_context(
            openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=KEY, timeout=PATIENCE_S, **options)
        )

    async def dial(self, *, receive_buffer_bytes=None, limit=2**22):
        """A bare connection. With a small receive buffer and limit it reads no more than it is asked to."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.relay.public_port))
        wire = Wire(*await asyncio.open_connection(sock=sock, limit=limit))
        self._stack.push_async_callback(wire.close)
        return wire

    def request(self, *, stream=True, version="1.1", headers=(), **fields):
        """The bytes of a chat request."""
        data = body(stream=stream, **fields)
        lines = [
            f"POST /v1/chat/completions HTTP/{version}",
            "Host: relay",
            f"Authorization: Bearer {KEY}",
            f"Content-Length: {len(data)}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data

    # Looking

    @property
    def log(self):
        """The lines so far."""
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    @property
    def requests(self):
        """The lines of the requests that have ended."""
        return [line for line in self.log if line["event"] == "request"]

    @property
    def replies(self):
        """The replies that are open now."""
        return list(self.app._open)

    async def metrics(self):
        """The samples that are not zero: name with labels → value."""
        async with self.session.get(f"http://127.0.0.1:{self.relay.admin_port}/metrics") as response:
            self._exposition = await response.text()
        samples = (line.rsplit(" ", 1) for line in self._exposition.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples if float(value)}

    async def readiness(self):
        async with self.session.get(f"http://127.0.0.1:{self.relay.admin_port}/readyz") as response:
            return response.status, (await response.json())["reasons"]

    async def until(self, condition):
        """Wait until the condition holds; TimeoutError if it does not in time."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.002)

    async def ended(self, count=1):
        """Wait until so many requests have ended and none is open; their lines."""
        await self.until(lambda: len(self.requests) >= count and not self.app._open)
        return self.requests

    def text(self, document):
        """As it stands in a file."""
        return toml(document)

    async def reload(self, text=None):
        """Write `document`, or a text in its place, to the file of relay.toml, and have it read again."""
        self.file.write_text(toml(self.document) if text is None else text)
        await self.relay.reloader.reload()

    async def stop(self):
        """Stop the relay as it is, without draining it first."""
        await self.metrics()
        self.stopped = True
        await self._running.aclose()

    # Afterwards

    async def rest(self):
        """Wait until nothing is open, and take the last metrics."""
        if self.stopped:
            return
        await self.until(lambda: not self.app._open and not self.app._tasks)
        counted = await self.metrics()
        assert sum(value for name, value in counted.items() if name.startswith("relay_requests_total")) == len(
            self.requests
        )
        assert "relay_open_streams" not in counted

    def look_round(self):
        written = self._log.getvalue().decode()
        above = LEVELS[LEVELS.index(self.loudest) + 1 :]
        assert [] == [line for line in self.log if line["level"] in above]
        for canary in (KEY, UPSTREAM_KEY, PROMPT):
            assert canary not in written
            assert canary not in self._exposition


class Reply:
    """An answer that has come whole."""

    def __init__(self, status, headers, data):
        self.status = status
        self.headers = headers
        self.data = data

    @property
    def error(self):
        """The error object of a refusal."""
        error = json.loads(self.data)["error"]
        assert {"message", "type", "param", "code"} == set(error)
        assert self.headers["Content-Type"].startswith("application/json")
        return error

    @property
    def frames(self):
        """The payloads of a stream, after checking that it ended in good order."""
        events = self.data.replace(b"\r\n", b"\n").split(b"\n\n")
        assert b"" == events.pop()
        payloads = [event.removeprefix(b"data: ") for event in events if not event.startswith(b":")]
        assert b"[DONE]" == payloads.pop()
        assert b"[DONE]" not in payloads
        return [json.loads(payload) for payload in payloads]

    @property
    def broken_by(self):
        """The code of the error that ended the stream; None if none did."""
        last = self.frames[-1] if self.frames else {}
        return last["error"]["code"] if "error" in last else None

    def texts(self):
        """What each choice says, by index, streamed or not."""
        said = {}
        for frame in self.frames if self.data.startswith((b"data:", b":")) else [json.loads(self.data)]:
            for choice in frame.get("choices", ()):
                text = choice.get("delta", choice.get("message", {})).get("content") or ""
                said[choice["index"]] = said.get(choice["index"], "") + text
        return said

    def finishes(self):
        """The finish_reason of each choice that has one, by index."""
        every = self.frames if self.data.startswith((b"data:", b":")) else [json.loads(self.data)]
        return {
            choice["index"]: choice["finish_reason"]
            for frame in every
            for choice in frame.get("choices", ())
            if choice["finish_reason"] is not None
        }


class Wire:
    """A bare client connection."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, data):
        self.writer.write(data)

    async def through(self, mark):
        """What comes up to and with `mark`."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(mark)

    async def head(self):
        """The status and the headers of the next response, names in lower case."""
        first, *lines = (await self.through(b"\r\n\r\n")).decode().strip().split("\r\n")
        return int(first.split(" ")[1]), {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }

    async def reply(self):
        """The next response whole, by its framing."""
        status, headers = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            if "content-length" in headers:
                return Reply(status, _cased(headers), await self.reader.readexactly(int(headers["content-length"])))
            if headers.get("transfer-encoding") != "chunked":
                return Reply(status, _cased(headers), await self.reader.read())
            parts = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append((await self.reader.readexactly(size + 2))[:-2])
            assert b"\r\n" == await self.reader.readexactly(2)
            return Reply(status, _cased(headers), b"".join(parts))

    async def rest(self):
        """Everything up to the end of the connection, however it ends."""
        parts = []
        with suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while part := await self.reader.read(2**16):
                    parts.append(part)
        return b"".join(parts)

    def hurry(self):
        """Read as fast as anyone from now on."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        self.reader._limit = 2**22

    def leave(self, how="close"):
        """Be gone: "close" in good order, "reset" at once, "half" by ending only this side."""
        match how:
            case "half":
                self.writer.write_eof()
            case "reset":
                option = struct.pack("ii", 1, 0)  # a linger time of zero makes the kernel send RST
                self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                self.writer.transport.abort()
            case _:
                self.writer.close()

    async def close(self):
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def _cased(headers):
    return {name.title(): value for name, value in headers.items()}


def body(*, stream, **fields):
    """A chat request whose prompt is the canary."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": stream, **fields}
    return json.dumps(asked, ensure_ascii=False).encode()


def toml(document):
    """A document of tables and arrays of tables."""
    lines = []
    for name, table in document.items():
        for each in table if isinstance(table, list) else [table]:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines += [f"{key} = {_inline(value)}" for key, value in each.items()]
    return "\n".join(lines)


def _inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture
def guarded():
    """The moderation plugin's table with other options, behind `auth`: a chain."""
    return lambda **options: [AUTH, moderation(**options)]


@pytest.fixture
def open_chain():
    """A chain of `auth` alone."""
    return [AUTH]
