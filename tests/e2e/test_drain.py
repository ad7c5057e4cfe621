"""The end of a real `relay serve`: what was open goes on, what is new is sent elsewhere, and the listener goes last."""

import asyncio
import json
import signal
import sys

import aiohttp
import pytest

from relay.serve import allow_many_files
from relay.testing import Gate, Hang, Head, Pause, Script, ScriptedUpstream, Send, frames, whole

PATIENCE_S = 30.0
STREAMS = 200
KEY = "sk-0123456789"
HELLO = frames.stream(["Hel", "lo ", "世", "界"])
DATA = b"".join(HELLO)
ASKED = {"model": "m", "messages": [{"role": "user", "content": "canary-prompt"}]}

CONFIG = """\
[server]
port = 0
shutdown_delay_s = {delay_s}
drain_s = {drain_s}
[admin]
port = 0
[store]
url = "memory:"
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["*"]
[[plugins]]
use = "auth"
keys = [{{ name = "k", key = "{key}" }}]
[[plugins]]
use = "moderation"
moderators = [{{ use = "lexicon", words = ["forbidden fruit"] }}]
"""

allow_many_files()


class Serving:
    """`relay serve` in a process of its own, and its log."""

    def __init__(self, process):
        self.log = []
        self._process = process
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        while line := await self._process.stdout.readline():
            self.log.append(json.loads(line))
            self._news.set()
            self._news = asyncio.Event()

    async def says(self, event):
        """Wait for a line of the log."""
        async with asyncio.timeout(PATIENCE_S):
            while not any(line["event"] == event for line in self.log):
                await self._news.wait()

    @property
    def outcomes(self):
        return [line["outcome"] for line in self.log if line["event"] == "request"]

    def told(self, number):
        """Send a signal."""
        self._process.send_signal(number)

    async def drains(self):
        """Send SIGTERM and wait until it has been heard."""
        self.told(signal.SIGTERM)
        await self.says("draining")

    async def ends(self):
        """Wait for the end, which has to be in good order."""
        async with asyncio.timeout(PATIENCE_S):
            assert 0 == await self._process.wait()
            await self._reading
        assert "stopped" == self.log[-1]["event"]
        assert [] == [line for line in self.log if line["level"] not in ("debug", "info")]

    async def close(self):
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._reading

    # Asking

    @property
    def port(self):
        return self.log[0]["port"]

    async def readiness(self):
        async with aiohttp.ClientSession() as client:
            async with client.get(f"http://127.0.0.1:{self.log[0]['admin_port']}/readyz") as response:
                return response.status, (await response.json())["reasons"]

    async def lets_in(self):
        """Whether it takes a connection."""
        try:
            (await self.dial()).close()
        except ConnectionError:
            return False
        return True

    async def dial(self):
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port))


class Wire:
    """A bare connection."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer

    def ask(self, *, stream=True, withheld=0):
        """Send a request but for its last bytes; those are returned."""
        body = json.dumps({**ASKED, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {KEY}\r\n"
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._writer.write(data[: len(data) - withheld])
        return data[len(data) - withheld :]

    def send(self, data):
        self._writer.write(data)

    async def through(self, mark):
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readuntil(mark)

    async def head(self):
        """Status and headers, names in lower case."""
        first, *lines = (await self.through(b"\r\n\r\n")).decode().strip().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines)

    async def body(self, headers):
        """The rest of a response whose head has come."""
        async with asyncio.timeout(PATIENCE_S):
            if "content-length" in headers:
                return await self._reader.readexactly(int(headers["content-length"]))
            parts = []
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                parts.append((await self._reader.readexactly(size + 2))[:-2])
            await self._reader.readexactly(2)
            return b"".join(parts)

    async def reply(self):
        status, headers = await self.head()
        return status, headers, await self.body(headers)

    async def closed(self):
        """Whether nothing but the end comes."""
        async with asyncio.timeout(PATIENCE_S):
            return b"" == await self._reader.read()

    def close(self):
        self._writer.close()


@pytest.fixture
async def serving(tmp_path):
    """`await serving(upstream)`: a process that serves it."""
    started = []

    async def start(upstream, drain_s=30, delay_s=0):
        values = {"base_url": upstream.base_url, "key": KEY, "drain_s": drain_s, "delay_s": delay_s}
        (tmp_path / "relay.toml").write_text(CONFIG.format(**values))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        started.append(Serving(process))
        await started[-1].says("serving")
        return started[-1]

    yield start
    for process in started:
        await process.close()


@pytest.fixture
async def streams(serving):
    """`await streams(relay, count)`: so many connections on which the first frame of a stream has come, and their heads."""
    wires = []

    async def begin(relay, count=STREAMS):
        for _ in range(count):
            wire = await relay.dial()
            wires.append(wire)
            wire.ask()
        return [(wire, (await wire.head())[1]) for wire in wires]

    yield begin
    for wire in wires:
        wire.close()


def begun(*steps):
    """A stream that has begun when it comes to `steps`."""
    return Script(Head(), Send(HELLO[0]), *steps)


def gone_on(go):
    """One that goes on, frame by frame, when `go` is set."""
    return begun(Gate(go), *(step for frame in HELLO[1:] for step in (Send(frame), Pause(0.01))))


def code(body):
    """The code of an error, in a stream or not."""
    return json.loads(body.split(b"data: ")[-2] if body.startswith(b"data: ") else body)["error"]["code"]


async def test_live_streams_are_not_cut(serving, streams):
    """Two hundred streams are open at SIGTERM and all of them come to their own ends, one frame after the other."""
    go = asyncio.Event()
    async with ScriptedUpstream(gone_on(go)) as upstream:
        relay = await serving(upstream)
        wires = await streams(relay)
        await relay.drains()
        go.set()
        bodies = await asyncio.gather(*(wire.body(headers) for wire, headers in wires))
        assert {DATA} == set(bodies)
        await relay.ends()
    assert ["completed"] * STREAMS == relay.outcomes


async def test_nobody_new_is_let_in(serving, streams):
    """While a stream is live readiness is red at once, and whoever asks is answered: 503, and the end of his connection.

    It makes no difference whether the connection is new, was kept alive, or has been sent a stream until now.
    """
    go = asyncio.Event()
    async with ScriptedUpstream([whole(frames.body("Hello")), gone_on(go), gone_on(go)]) as upstream:
        relay = await serving(upstream)
        kept = await relay.dial()
        kept.ask(stream=False)
        assert 200 == (await kept.reply())[0]
        (live, headers), (busy, _) = await streams(relay, 2)
        busy.ask()
        assert (200, []) == await relay.readiness()
        await relay.drains()
        assert (503, ["draining"]) == await relay.readiness()
        for wire in (kept, await relay.dial()):
            wire.ask()
            status, headers_503, body = await wire.reply()
            assert (503, "draining", "close") == (status, code(body), headers_503["connection"])
            assert "1" == headers_503["retry-after"]
            assert await wire.closed()
            wire.close()
        go.set()
        assert DATA == await live.body(headers)
        assert DATA == await busy.body(headers)
        status, headers_503, body = await busy.reply()
        assert (503, "draining") == (status, code(body))
        assert await busy.closed()
        await relay.ends()
        assert 3 == upstream.received
    assert ["completed", "unavailable", "unavailable"] == relay.outcomes[:3]
    with pytest.raises(ConnectionRefusedError):
        await relay.dial()


async def test_all_are_served_until_the_balancer_knows(serving, streams):
    """For `shutdown_delay_s` readiness is red and nobody is refused; each answer says that the next one is to be had elsewhere.

    A second signal ends that time too.
    """
    async with ScriptedUpstream(
        lambda request: begun(Hang()) if request.streams else whole(frames.body("Hello"))
    ) as upstream:
        relay = await serving(upstream, drain_s=3600, delay_s=3600)
        kept, idle = await relay.dial(), await relay.dial()
        kept.ask(stream=False)
        status, headers, _ = await kept.reply()
        assert (200, False) == (status, "connection" in headers)
        await relay.drains()
        assert (503, ["draining"]) == await relay.readiness()
        for wire in (kept, await relay.dial()):
            wire.ask(stream=False)
            status, headers, _ = await wire.reply()
            assert (200, "close") == (status, headers["connection"])
            assert await wire.closed()
            wire.close()
        [(live, headers)] = await streams(relay, 1)
        relay.told(signal.SIGTERM)
        assert "draining" == code(await live.body(headers))
        assert await idle.closed()
        idle.close()
        await relay.ends()
    assert ["completed"] * 3 + ["drained"] == relay.outcomes


async def test_the_balancer_has_had_its_time(serving, streams):
    """After `shutdown_delay_s` nobody new is let in; streams go on, and who asks on after his is answered once more."""
    go = asyncio.Event()
    async with ScriptedUpstream(gone_on(go)) as upstream:
        relay = await serving(upstream, drain_s=3600, delay_s=0.2)
        wires = await streams(relay, 20)
        await relay.drains()
        async with asyncio.timeout(PATIENCE_S):
            while await relay.lets_in():
                pass
        go.set()
        assert {DATA} == set(await asyncio.gather(*(wire.body(headers) for wire, headers in wires)))
        for wire, _ in wires:
            wire.ask()
            status, headers, body = await wire.reply()
            assert (200, "close", DATA) == (status, headers["connection"], body)
            assert await wire.closed()
        await relay.ends()
    assert ["completed"] * 40 == relay.outcomes


async def test_the_grace_begins_after_it(serving, streams):
    """Streams that last longer are ended as ever."""
    async with ScriptedUpstream(begun(Hang())) as upstream:
        relay = await serving(upstream, drain_s=0.1, delay_s=0.1)
        wires = await streams(relay, 5)
        await relay.drains()
        bodies = await asyncio.gather(*(wire.body(headers) for wire, headers in wires))
        assert {"draining"} == {code(body) for body in bodies}
        await relay.ends()


async def test_a_second_signal_ends_them(serving, streams):
    """At once, with an error in each of two hundred streams; `drain_s` is not waited for."""
    async with ScriptedUpstream(begun(Hang())) as upstream:
        relay = await serving(upstream, drain_s=3600)
        wires = await streams(relay)
        await relay.drains()
        relay.told(signal.SIGTERM)
        for body in await asyncio.gather(*(wire.body(headers) for wire, headers in wires)):
            assert body.startswith(HELLO[0])
            assert body.endswith(b"data: [DONE]\n\n")
            assert "draining" == code(body)
        await relay.ends()
        await upstream.until(lambda: not upstream.open_connections)
    assert ["drained"] * STREAMS == relay.outcomes


async def test_the_grace_has_an_end(serving, streams):
    """After `drain_s` it is the same, and a reply that is not streamed is a 503."""
    async with ScriptedUpstream(lambda request: begun(Hang()) if request.streams else Script(Hang())) as upstream:
        relay = await serving(upstream, drain_s=0.2)
        [(live, headers)] = await streams(relay, 1)
        waiting = await relay.dial()
        waiting.ask(stream=False)
        await upstream.request(2)
        relay.told(signal.SIGINT)
        body = await live.body(headers)
        assert ("draining", True) == (code(body), body.endswith(b"data: [DONE]\n\n"))
        status, _, body = await waiting.reply()
        assert (503, "draining") == (status, code(body))
        waiting.close()
        await relay.ends()
    assert ["drained"] * 2 == relay.outcomes


async def test_a_request_that_was_let_in_is_served(serving):
    """Its body was still on its way when the signal came."""
    async with ScriptedUpstream(whole(frames.body("Hello"))) as upstream:
        relay = await serving(upstream)
        wire = await relay.dial()
        rest = wire.ask(stream=False, withheld=5)
        async with aiohttp.ClientSession() as client:  # whoever is answered after it has been heard after it
            async with client.get(f"http://127.0.0.1:{relay.port}/") as response:
                assert 404 == response.status
        await relay.drains()
        wire.send(rest)
        assert 200 == (await wire.reply())[0]
        wire.close()
        await relay.ends()


async def test_idle_connections_hold_nothing_up(serving):
    """Those kept alive, and those on which nothing or half a head has come, are closed; the process ends at once."""
    async with ScriptedUpstream(whole(frames.body("Hello"))) as upstream:
        relay = await serving(upstream, drain_s=3600)
        kept, silent, half = [await relay.dial() for _ in range(3)]
        kept.ask(stream=False)
        assert 200 == (await kept.reply())[0]
        half.send(b"POST /v1/chat/completions HTTP/1.1\r\n")
        relay.told(signal.SIGTERM)
        for wire in (kept, silent, half):
            assert await wire.closed()
            wire.close()
        await relay.ends()
