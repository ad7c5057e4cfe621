"""Processes are replaced under live streams, one after the other: nobody is cut off, and nobody is refused.

Two ways. A supervisor replaces its workers (SIGHUP). And relays behind a balancer that goes by `/readyz` are ended by SIGTERM
and started anew: the balancer here is what Kubernetes is to clients, a choice of an address at the moment of the connect, and
a poll behind the scenes that drops an address when it has seen that it is not ready.
"""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver

from relay.serve import allow_many_files
from relay.testing import Gate, Head, Pause, Script, ScriptedUpstream, Send, frames, whole

PATIENCE_S = 120.0
KEY = "sk-0123456789"
POLL_S = 0.2

CONFIG = """\
[server]
port = 0
workers = {workers}
shutdown_delay_s = {delay_s}
drain_s = {drain_s}
[admin]
port = 0
[store]
url = "{store}"
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


class Process:
    """`relay serve` in a process of its own, and its log."""

    def __init__(self, process):
        self.log = []
        self.counts = Counter()
        self._process = process
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        while data := await self._process.stdout.readline():
            line = json.loads(data)
            if line["event"] == "request":  # too many to be kept
                when = "draining" if self.lines("draining") else "serving"
                self.counts[line["operation"], line["outcome"], line["code"], when] += 1
            else:
                self.log.append(line)
            self._news.set()
            self._news = asyncio.Event()

    def lines(self, event):
        return [line for line in self.log if line["event"] == event]

    async def says(self, event, count=1):
        """Wait for so many lines of an event."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.lines(event)) < count:
                assert not self._reading.done(), self.log
                await self._news.wait()

    def told(self, number):
        self._process.send_signal(number)

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

    @property
    def port(self):
        return self.lines("serving")[0]["port"]

    @property
    def readyz(self):
        return f"http://127.0.0.1:{self.lines('serving')[0]['admin_port']}/readyz"


@pytest.fixture
async def launch(tmp_path):
    """`await launch(upstream, …)`: a relay that serves."""
    started = []

    async def start(upstream, *, workers=1, delay_s=0.0, drain_s=60, store="memory:"):
        text = CONFIG.format(
            base_url=upstream.base_url, key=KEY, workers=workers, delay_s=delay_s, drain_s=drain_s, store=store
        )
        folder = tmp_path / str(len(started))
        folder.mkdir()
        (folder / "relay.toml").write_text(text)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve"),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "RELAY_ADMIN_TOKEN": ""},
        )
        relay = Process(process)
        started.append(relay)
        await relay.says("serving")
        return relay

    yield start
    for relay in started:
        await relay.close()


class Balancer(AbstractResolver):
    """The addresses of a service: each connection goes to one of those that were ready when they were last asked."""

    def __init__(self):
        self._relays = {}  # port → the relay, of those that are in
        self._turns = itertools.count()
        self._changed = asyncio.Condition()

    async def resolve(self, host, port=0, family=0):
        ports = list(self._relays)
        port = ports[next(self._turns) % len(ports)]
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 6, "flags": 0}]

    async def close(self): ...

    async def poll(self, relay):
        """Ask a relay for as long as it is there, take it in when it is ready and out when it is not any more."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as client:
            while True:
                try:
                    async with client.get(relay.readyz) as response:
                        ready = response.status == 200
                except aiohttp.ClientError:
                    ready = False
                async with self._changed:
                    if ready:
                        self._relays[relay.port] = relay
                    else:
                        self._relays.pop(relay.port, None)
                    self._changed.notify_all()
                    if not ready and relay.lines("draining"):
                        return
                await asyncio.sleep(POLL_S)

    async def until(self, relay, *, is_in):
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: (relay.port in self._relays) == is_in)


class Crowd:
    """Clients that never stop asking, and what they have met.

    met: how often each of "stream" (whole), "short" (answered), or something that nobody should meet, which is anything else.
    live: streams that have begun and not ended. url: where they ask; resolver: where that is, if it moves.
    """

    def __init__(self, url, resolver=None):
        self.met = Counter()
        self.live = 0
        self._url = f"{url}/v1/chat/completions"
        self._resolver = resolver
        self._stopped = False
        self._changed = asyncio.Event()

    def _client(self, **options):
        connector = aiohttp.TCPConnector(limit=0, resolver=self._resolver, use_dns_cache=False, **options)
        headers = {"Authorization": f"Bearer {KEY}"}
        timeout = aiohttp.ClientTimeout(PATIENCE_S)
        return aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)

    async def _ask(self, client, *, stream):
        asked = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        begun = False
        try:
            async with client.post(self._url, json=asked) as response:
                if response.status != 200:
                    self.met[response.status, (await response.json())["error"]["code"]] += 1
                    return
                if begun := stream:
                    self._now_live(1)
                data = await response.read()
        except aiohttp.ClientError as error:
            self.met["cut" if begun else "refused", type(error).__name__] += 1
            return
        finally:
            if begun:
                self._now_live(-1)
        if not stream:
            self.met["short"] += 1
        elif b'"finish_reason":"stop"' in data.replace(b" ", b"") and data.endswith(b"data: [DONE]\n\n"):
            self.met["stream"] += 1
        else:
            self.met["cut", "ended early"] += 1

    def stop(self):
        """Ask no more."""
        self._stopped = True

    def _now_live(self, change):
        self.live += change
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep_asking(self, *, stream, fresh, pause_s=0.0):
        async with self._client(force_close=fresh) as client:
            while not self._stopped:
                await self._ask(client, stream=stream)
                await asyncio.sleep(pause_s)

    async def until_live(self, streams):
        async with asyncio.timeout(PATIENCE_S):
            while self.live < streams:
                await self._changed.wait()

    @asynccontextmanager
    async def asking(self, streams, *, short=6):
        """So many streams are live while the block runs, half of them each on a connection that it keeps; and `short` ask
        for short replies meanwhile. All that has begun comes to its end when the block has ended."""
        async with asyncio.TaskGroup() as group:
            for number in range(streams):
                group.create_task(self._keep_asking(stream=True, fresh=bool(number % 2)))
            for number in range(short):
                group.create_task(self._keep_asking(stream=False, fresh=bool(number % 2), pause_s=0.03))
            try:
                await self.until_live(streams * 9 // 10)  # one that ends is followed by the next
                yield
            finally:
                self.stop()


def slow(pieces, pace_s):
    """An upstream whose streams last about `pieces` × `pace_s` seconds, each another time; other replies come at once."""
    turns = itertools.count()
    texts = [frames.text(f"piece {number} ") for number in range(pieces * 3 // 2)]

    def script(request):
        if not request.streams:
            return whole(frames.body("Hello"))
        count = pieces // 2 + 7 * next(turns) % pieces
        steps = [step for text in texts[:count] for step in (Send(text), Pause(pace_s))]
        return Script(Head(), Send(frames.role()), *steps, Send(frames.finish() + frames.done()))

    return ScriptedUpstream(script, keep_requests=1)


async def reload_under(launch, *, streams, reloads, pieces, pace_s, at_once):
    """So many reloads of a supervisor with two workers; `at_once`: each when all serve, and not when the old have ended."""
    async with slow(pieces, pace_s) as upstream:
        relay = await launch(upstream, workers=2, store="embedded:")
        crowd = Crowd(f"http://127.0.0.1:{relay.port}")
        async with crowd.asking(streams):
            for number in range(1, reloads + 1):
                relay.told(signal.SIGHUP)
                await relay.says("reloaded", number)
                if not at_once:
                    await relay.says("worker ended", 2 * number)
                await crowd.until_live(streams * 9 // 10)
        await relay.says("worker ended", 2 * reloads)
        relay.told(signal.SIGTERM)
        await relay.ends()
        assert {"left"} == {line["reason"] for line in relay.lines("worker ended")}
    assert {"stream", "short"} == set(crowd.met), crowd.met
    return crowd.met


async def roll_under(launch, *, streams, rolls, pieces, pace_s, delay_s, workers=1, polls=True):
    """So many times one of two relays behind a balancer is ended, and another one started in its place."""
    store = "memory:" if workers == 1 else "embedded:"
    async with slow(pieces, pace_s) as upstream, asyncio.TaskGroup() as polling:
        balancer = Balancer()
        tasks = []

        async def start():
            relay = await launch(upstream, delay_s=delay_s, workers=workers, store=store)
            tasks.append(polling.create_task(balancer.poll(relay)))
            await balancer.until(relay, is_in=True)
            return relay

        relays = [await start(), await start()]
        crowd = Crowd("http://relay.test", balancer)
        late = Counter()
        async with crowd.asking(streams):
            for _ in range(rolls):
                old = relays.pop(0)
                old.told(signal.SIGTERM)
                await balancer.until(old, is_in=False)
                await old.ends()
                late += old.counts
                relays.append(await start())
                await crowd.until_live(streams * 9 // 10)
        for relay in relays:
            relay.told(signal.SIGTERM)
            await relay.ends()
    crowd.late = Counter({key[1:3]: count for key, count in late.items() if key[3] == "draining" and key[0] == "chat"})
    return crowd


async def test_workers_are_replaced_under_live_streams(launch):
    """Three reloads, one at the heels of the other."""
    met = await reload_under(launch, streams=60, reloads=3, pieces=8, pace_s=0.1, at_once=True)
    assert met["stream"] >= 60


@pytest.mark.long
@pytest.mark.parametrize("at_once", [False, True])
async def test_workers_are_replaced_under_five_hundred_streams(launch, at_once):
    """Twenty reloads, each when the old workers have ended; and twenty that do not wait for that."""
    met = await reload_under(launch, streams=500, reloads=20, pieces=24, pace_s=0.25, at_once=at_once)
    print(f"20 reloads under 500 streams: {dict(met)}")


async def test_relays_are_replaced_under_live_streams(launch):
    """Two are, and those whom the balancer still sent to one that was leaving were served by it."""
    crowd = await roll_under(launch, streams=60, rolls=2, pieces=8, pace_s=0.1, delay_s=1.5)
    assert {"stream", "short"} == set(crowd.met), crowd.met
    assert {("completed", None)} == set(crowd.late)


async def test_a_supervisor_closes_its_port_after_the_delay(launch):
    """Its workers take no connections any more, so nobody is to wait in vain for one that does; streams go on."""
    go = asyncio.Event()
    stream = frames.stream(["Hello"])
    async with ScriptedUpstream(Script(Head(), Send(stream[0]), Gate(go), *map(Send, stream[1:]))) as upstream:
        relay = await launch(upstream, workers=2, delay_s=0.3, store="embedded:")
        crowd = Crowd(f"http://127.0.0.1:{relay.port}")
        async with crowd.asking(4, short=0):
            relay.told(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while await lets_in(relay.port):
                    await asyncio.sleep(0.05)
            crowd.stop()
            go.set()
        await relay.ends()
    assert {"stream": 4} == crowd.met


async def lets_in(port):
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_without_a_delay_some_are_refused(launch):
    """So it is the delay that does it: without one, who comes before the balancer has noticed hears `draining`."""
    crowd = await roll_under(launch, streams=20, rolls=1, pieces=8, pace_s=0.1, delay_s=0)
    assert (503, "draining") in crowd.met
    assert ("unavailable", "draining") in crowd.late


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_relays_are_replaced_under_five_hundred_streams(launch, workers):
    """Twenty times, of one process each and of a supervisor with two workers."""
    crowd = await roll_under(launch, streams=500, rolls=20, pieces=24, pace_s=0.25, delay_s=3, workers=workers)
    assert {"stream", "short"} == set(crowd.met), crowd.met
    assert {("completed", None)} == set(crowd.late)
    print(f"20 restarts under 500 streams: {dict(crowd.met)}, after SIGTERM {dict(crowd.late)}")
