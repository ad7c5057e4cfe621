"""Several workers behind one socket, as real processes: they share the load, are replaced, reloaded, drained; none is left."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from relay.serve import allow_many_files
from relay.testing import Gate, Hang, Head, Pause, Script, ScriptedUpstream, Send, frames, whole
from relay_plugins.audit.verify import verify

PATIENCE_S = 60.0
HELLO = frames.stream(["Hel", "lo ", "世", "界"])
DATA = b"".join(HELLO)
KEY, NEW_KEY = "sk-0123456789", "sk-9876543210"
TOKEN = "admin-0123456789"

CONFIG = """\
[server]
port = 0
workers = {workers}
drain_s = {drain_s}
[admin]
port = 0
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["*"]
[[plugins]]
use = "auth"
keys = [{keys}]
{more}
"""

allow_many_files()


class Relay:
    """`relay serve` in a process of its own, its workers, and their common log."""

    def __init__(self, folder, process):
        self.log = []
        self.errors = []
        self._folder = folder
        self._process = process
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        while line := await self._process.stdout.readline():
            if line.startswith(b"{"):
                self.log.append(json.loads(line))
            else:
                self.errors.append(line.decode())
            self._news.set()
            self._news = asyncio.Event()

    async def until(self, condition):
        """Wait until the log makes it true; what is true then."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                assert not self._reading.done(), self.errors
                await self._news.wait()
        return found

    async def says(self, event, count=1):
        """Wait until the log has as many lines of an event; all of them."""
        await self.until(lambda: len(self.lines(event)) >= count)
        return self.lines(event)

    def lines(self, event):
        return [line for line in self.log if line["event"] == event]

    @property
    def workers(self):
        """Number → process id of those that serve."""
        alive = {}
        for line in self.log:
            if line["event"] == "worker serves":
                alive[line["worker"]] = line["pid"]
            elif line["event"] == "worker ended" and alive.get(line["worker"]) == line["pid"]:
                del alive[line["worker"]]
        return alive

    def told(self, number):
        self._process.send_signal(number)

    async def ends(self, status=0):
        """Wait for the end: the status is as expected, no worker is left."""
        async with asyncio.timeout(PATIENCE_S):
            assert status == await self._process.wait(), self.errors
            await self._reading
        await self.nobody_is_left()

    async def nobody_is_left(self):
        for line in self.lines("worker serves"):
            async with asyncio.timeout(PATIENCE_S):
                while lives(line["pid"]):
                    await asyncio.sleep(0.02)

    async def close(self):
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        async with asyncio.timeout(PATIENCE_S):
            await self._reading  # which ends when the last worker has let go of the log

    def write(self, upstream, *, keys=(KEY,), workers=2, drain_s=30, more=""):
        """Write the configuration anew."""
        tables = ", ".join(f'{{ name = "{key}", key = "{key}" }}' for key in keys)
        text = CONFIG.format(base_url=upstream.base_url, keys=tables, workers=workers, drain_s=drain_s, more=more)
        (self._folder / "relay.toml").write_text(text)

    # Asking

    @property
    def port(self):
        return self.lines("serving")[0]["port"]

    def admin(self, path):
        return f"http://127.0.0.1:{self.lines('serving')[0]['admin_port']}{path}"

    async def readiness(self):
        async with aiohttp.ClientSession() as client, client.get(self.admin("/readyz")) as response:
            return response.status, (await response.json())["reasons"]

    async def metrics(self):
        """Series → value."""
        async with aiohttp.ClientSession() as client, client.get(self.admin("/metrics")) as response:
            assert 200 == response.status
            lines = (await response.text()).splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def post(self, client, *, key=KEY, stream=False):
        return client.post(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json={"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}]},
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(PATIENCE_S),
        )

    async def ask(self, **asked):
        """One request on a connection of its own; its status."""
        async with aiohttp.ClientSession() as client, self.post(client, **asked) as response:
            await response.read()
            return response.status


def lives(pid):
    """Whether there is a process that has not ended; one that nobody has asked about yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
async def launch(tmp_path):
    """`relay = await launch(upstream, …)`; with `ready=False` it is not waited for."""
    started = []

    async def start(upstream, *, ready=True, **options):
        relay = Relay(tmp_path, None)
        relay._reading.cancel()
        relay.write(upstream, **options)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "RELAY_ADMIN_TOKEN": TOKEN},
        )
        relay = Relay(tmp_path, process)
        started.append(relay)
        if ready:
            await relay.says("serving")
        return relay

    yield start
    for relay in started:
        await relay.close()


@pytest.fixture
async def streams():
    """`await streams(relay, count)`: so many streams of which the first frame has come, each on its own connection."""
    clients = []

    async def begin(relay, count):
        opened = []
        for _ in range(count):
            client = aiohttp.ClientSession()
            clients.append(client)
            response = await relay.post(client, stream=True)
            assert 200 == response.status
            opened.append(response)
        return opened

    yield begin
    for client in clients:
        await client.close()


async def rest(response):
    """What a stream says to its end, without the comments of one that is kept alive; None if it is broken off."""
    try:
        return (await response.read()).replace(b": keep-alive\n\n", b"")
    except aiohttp.ClientError:
        return None


def gated(go):
    """Streams that go on when `go` is set, and whole replies at once."""
    after = [step for frame in HELLO[1:] for step in (Send(frame), Pause(0.01))]
    stream = Script(Head(), Send(HELLO[0]), Gate(go), *after)
    return lambda request: stream if request.streams else whole(frames.body("Hello"))


async def test_all_of_them_serve(launch, streams):
    """Every worker gets its part of a hundred streams; each line of the log is whole and says whose it is."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream)
        assert (200, []) == await relay.readiness()
        opened = await streams(relay, 100)
        assert 100 == (await relay.metrics())["relay_open_streams"]
        go.set()
        assert {DATA} == {await rest(response) for response in opened}
        requests = await relay.says("request", 100)
        assert {0, 1} == set(Counter(line["worker"] for line in requests))
        counts = await relay.metrics()
        assert 100 == counts['relay_requests_total{operation="chat",outcome="completed"}']
        assert (0, 2) == (counts["relay_open_streams"], counts['relay_workers{state="serving"}'])
        relay.told(signal.SIGTERM)
        await relay.ends()
    assert "stopped" == relay.log[-1]["event"]
    assert [] == [line for line in relay.log if line["level"] not in ("debug", "info")]


async def test_each_has_a_record_of_its_own(launch, tmp_path):
    """Files of `audit` in one folder, each whole; that of a worker that was killed has no end, and what stood there stays."""
    async with ScriptedUpstream(whole(frames.body("Hi"))) as upstream:
        relay = await launch(upstream, more='[[plugins]]\nuse = "audit"\nfolder = "records"')
        for _ in range(20):
            assert 200 == await relay.ask()
        served = {line["request_id"] for line in await relay.says("request", 20)}
        async with asyncio.timeout(PATIENCE_S):
            while served != recorded(tmp_path / "records"):
                await asyncio.sleep(0.01)
        pid = next(iter(relay.workers.values()))
        os.kill(pid, signal.SIGKILL)
        await relay.says("worker ended")
        relay.told(signal.SIGTERM)
        await relay.ends()
    found = await asyncio.to_thread(verify, [tmp_path / "records"])
    assert {""} == {checked.problem for checked in found}
    assert len(found) > 1
    assert [f"-{pid}-" in checked.path.name for checked in found] == [not checked.ended for checked in found]
    assert served == recorded(tmp_path / "records")


def recorded(folder):
    """The ids of the requests that stand in the files of a folder."""
    lines = [json.loads(line) for path in folder.iterdir() for line in path.read_bytes().splitlines()]
    return {line["request_id"] for line in lines if line["kind"] == "exchange"}


async def test_a_dead_worker_is_replaced(launch, streams):
    """Its streams break off and all others go on; what it counted stays, what its gauges said does not."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream)
        for _ in range(40):
            assert 200 == await relay.ask()
        opened = await streams(relay, 40)
        before = await relay.metrics()
        victim, pid = next(iter(relay.workers.items()))
        os.kill(pid, signal.SIGKILL)
        [ended] = await relay.says("worker ended")
        assert (victim, pid, "died", "error") == (ended["worker"], ended["pid"], ended["reason"], ended["level"])
        after = await relay.metrics()
        assert [] == [
            name for name, value in before.items() if name.startswith("relay_requests_total") and after[name] < value
        ]
        assert after["relay_open_streams"] < 40
        served = await relay.says("worker serves", 3)
        assert victim == served[2]["worker"]
        go.set()
        bodies = [await rest(response) for response in opened]
        assert {DATA, None} == set(bodies)
        assert after["relay_open_streams"] == bodies.count(DATA)
        while victim not in {line["worker"] for line in relay.lines("request")[80 - bodies.count(None) :]}:
            assert 200 == await relay.ask()  # the new one takes its part
            await relay.says("request", len(relay.lines("request")))
        last = await relay.metrics()
        assert [] == [
            name for name, value in after.items() if name.startswith("relay_requests_total") and last[name] < value
        ]
        assert 1 == last['relay_worker_ends_total{reason="died"}']
        assert (200, []) == await relay.readiness()


async def test_a_signal_drains_all(launch, streams):
    """Ready turns red, streams come to their ends, new requests are refused; no process is left."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream)
        opened = await streams(relay, 30)
        relay.told(signal.SIGTERM)
        await relay.says("draining")
        assert (503, ["draining"]) == await relay.readiness()
        async with asyncio.timeout(PATIENCE_S):
            while await relay.ask() != 503:  # the workers hear of it a little later
                pass
        go.set()
        assert {DATA} == {await rest(response) for response in opened}
        await relay.ends()
    assert "stopped" == relay.log[-1]["event"]
    assert 30 == Counter((line["outcome"], line["stream"]) for line in relay.lines("request"))["completed", True]


async def test_a_second_signal_ends_them(launch, streams):
    """At once, each with an error; `drain_s` is not waited for."""
    async with ScriptedUpstream(Script(Head(), Send(HELLO[0]), Hang())) as upstream:
        relay = await launch(upstream, drain_s=3600)
        opened = await streams(relay, 10)
        relay.told(signal.SIGTERM)
        await relay.says("draining")
        relay.told(signal.SIGTERM)
        for response in opened:
            body = await rest(response)
            assert body.endswith(b"data: [DONE]\n\n")
            assert b'"draining"' in body
        await relay.ends()


async def test_reload(launch, streams):
    """Under a stream of requests, on new connections and on kept ones: none is refused, and an open stream ends whole.

    When all is replaced, the new configuration holds for whoever comes; the number of workers is among what can change.
    """
    go, over = asyncio.Event(), asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream)
        opened = await streams(relay, 10)
        assert 401 == await relay.ask(key=NEW_KEY)
        statuses = Counter()

        async def come():
            while not over.is_set():
                statuses[await relay.ask()] += 1

        async def stay():
            async with aiohttp.ClientSession() as client:
                while not over.is_set():
                    async with relay.post(client) as response:
                        await response.read()
                        statuses[response.status] += 1

        async def reloaded():
            relay.write(upstream, keys=(KEY, NEW_KEY), workers=3)
            relay.told(signal.SIGHUP)
            await relay.says("reloaded")
            assert [200] * 20 == [await relay.ask(key=NEW_KEY) for _ in range(20)]

        async with asyncio.TaskGroup() as asking:
            for work in (come, come, stay, stay):
                asking.create_task(work())
            await asking.create_task(reloaded())
            over.set()
        assert [200] == list(statuses)
        go.set()
        assert {DATA} == {await rest(response) for response in opened}
        await relay.says("worker ended", 2)
        assert 3 == len(relay.workers)
        counts = await relay.metrics()
        assert statuses[200] <= counts['relay_requests_total{operation="chat",outcome="completed"}']
        relay.told(signal.SIGTERM)
        await relay.ends()
    assert [] == [line for line in relay.log if line["level"] not in ("debug", "info")]


async def test_a_reload_gives_streams_all_the_time_they_take(launch, streams):
    """`drain_s` is for the end of the relay: a worker whose place is taken stays for its last stream."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream, workers=2, drain_s=0.01)
        opened = await streams(relay, 10)
        for count in (1, 2):  # the second one takes longer than `drain_s` by far
            relay.told(signal.SIGHUP)
            await relay.says("reloaded", count)
        go.set()
        assert {DATA} == {await rest(response) for response in opened}
        relay.told(signal.SIGTERM)
        await relay.ends()


async def test_who_is_left_of_reloads_drains_with_all(launch, streams):
    """SIGTERM is for the former workers too: what is open has `drain_s`."""
    async with ScriptedUpstream(Script(Head(), Send(HELLO[0]), Hang())) as upstream:
        relay = await launch(upstream, workers=2, drain_s=0.01)
        opened = await streams(relay, 4)
        relay.told(signal.SIGHUP)
        await relay.says("reloaded")
        relay.told(signal.SIGTERM)
        for response in opened:
            assert b'"draining"' in await rest(response)
        await relay.ends()


async def test_keys_are_common(launch):
    """A key that is made at the supervisor works with every worker, and with none when it is disabled."""
    async with ScriptedUpstream(gated(asyncio.Event())) as upstream:
        relay = await launch(upstream)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as admin:
            async with admin.post(relay.admin("/admin/keys"), json={"name": "k2"}) as response:
                assert 201 == response.status, await response.text()
                secret = (await response.json())["secret"]
            async with asyncio.timeout(PATIENCE_S):
                while {0, 1} != {line["worker"] for line in relay.lines("request")}:
                    assert [200] * 5 == await asyncio.gather(*(relay.ask(key=secret) for _ in range(5)))
            # The name of a key in the configuration, which the workers alone have built.
            async with admin.post(relay.admin("/admin/keys"), json={"name": KEY}) as response:
                assert response.status in (400, 409), await response.text()
            async with admin.patch(relay.admin("/admin/keys/k2"), json={"disabled": True}) as response:
                assert 200 == response.status, await response.text()
        async with asyncio.timeout(PATIENCE_S):
            while {await relay.ask(key=secret) for _ in range(20)} != {401}:
                pass


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("[sevrer]\n", "sevrer"),  # seen by the supervisor
        ('[[plugins]]\nuse = "moderatoin"\n', "moderatoin"),  # seen by the first worker that shall serve it
        ('[[plugins]]\nuse = "broken:Plugin"\n', "status 7"),  # which may also just end
    ],
)
async def test_a_broken_configuration_changes_nothing(launch, tmp_path, more, named):
    """The log says why; the same workers serve what they served; a sound one can be loaded afterwards."""
    (tmp_path / "broken.py").write_text("import os\nos._exit(7)\n")
    async with ScriptedUpstream(gated(asyncio.Event())) as upstream:
        relay = await launch(upstream)
        before = relay.workers
        relay.write(upstream, keys=(NEW_KEY,), more=more)
        relay.told(signal.SIGHUP)
        [line] = await relay.says("not reloaded")
        assert named in "".join(line["problems"])
        assert before == relay.workers
        assert [200] * 10 == [await relay.ask() for _ in range(10)]
        assert (200, []) == await relay.readiness()
        relay.write(upstream, keys=(NEW_KEY,))
        relay.told(signal.SIGHUP)
        await relay.says("reloaded")
        assert [200] * 10 == [await relay.ask(key=NEW_KEY) for _ in range(10)]


async def test_what_takes_a_restart_is_said(launch):
    """The listeners stay where they are."""
    async with ScriptedUpstream(gated(asyncio.Event())) as upstream:
        relay = await launch(upstream)
        relay.write(upstream)
        config = relay._folder / "relay.toml"
        config.write_text(config.read_text().replace("port = 0\nworkers", 'host = "127.0.0.2"\nport = 0\nworkers'))
        relay.told(signal.SIGHUP)
        [line] = await relay.says("takes a restart")
        assert ["server.host"] == line["what"]
        await relay.says("reloaded")
        assert 200 == await relay.ask()


@pytest.mark.parametrize(
    ("more", "named"),
    [('[[plugins]]\nuse = "moderatoin"\n', "moderatoin"), ('[[plugins]]\nuse = "broken:Plugin"\n', "status 7")],
)
async def test_workers_that_cannot_start(launch, tmp_path, more, named):
    """The end, with status 2 and what is wrong, instead of one try after the other."""
    (tmp_path / "broken.py").write_text("import os\nos._exit(7)\n")
    async with ScriptedUpstream(whole(frames.body("Hello"))) as upstream:
        relay = await launch(upstream, more=more, ready=False)
        await relay.ends(status=2)
    assert named in "".join(relay.errors)
    assert "Traceback" not in "".join(relay.errors)
    assert [] == relay.lines("serving")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_signals_before_there_are_workers(launch, number):
    """While the store starts: the end without more ado, or what a reload would read is served."""
    async with ScriptedUpstream(whole(frames.body("Hello"))) as upstream:
        relay = await launch(upstream, ready=False)
        await relay.says("embedded store")
        relay.told(number)
        if number == signal.SIGHUP:
            await relay.says("reloaded")
            await relay.says("serving")
        else:
            await relay.ends(status=0)
            assert relay.lines("stopped before it was started")


async def test_a_worker_that_is_told_to_end(launch, streams):
    """A signal to a worker: another one takes its place, and its streams come to their ends."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream)
        opened = await streams(relay, 20)
        for pid in list(relay.workers.values()):
            os.kill(pid, signal.SIGTERM)
        await relay.says("worker serves", 4)
        assert 200 == await relay.ask()
        go.set()
        assert {DATA} == {await rest(response) for response in opened}
        assert {"left"} == {line["reason"] for line in await relay.says("worker ended", 2)}


async def test_no_worker_outlives_its_supervisor(launch, streams):
    """It is killed: the port is free at once, streams come to their ends, then no process is left."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream:
        relay = await launch(upstream)
        opened = await streams(relay, 10)
        relay.told(signal.SIGKILL)
        await relay.says("the supervisor is gone", 2)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with socket.socket() as taking:
                    taking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        taking.bind(("127.0.0.1", relay.port))
                        break
                    except OSError:
                        await asyncio.sleep(0.02)
        go.set()
        assert {DATA} == {await rest(response) for response in opened}
        await relay.ends(status=-signal.SIGKILL)


@pytest.mark.long
async def test_a_worker_that_hangs(launch, tmp_path):
    """Its loop stands still: it is killed and replaced, the others go on."""
    (tmp_path / "hanging.py").write_text(
        "import time\nfrom relay.plugin import Plugin\n"
        "class Hanging(Plugin):\n    async def on_request(self, ex):\n"
        "        if ex.request.stream:\n            time.sleep(3600)\n"
    )
    async with ScriptedUpstream(gated(asyncio.Event())) as upstream:
        relay = await launch(upstream, more='[[plugins]]\nuse = "hanging:Hanging"\n')
        async with aiohttp.ClientSession() as client:
            with pytest.raises(aiohttp.ClientError):
                await relay.post(client, stream=True)
        [line] = await relay.says("worker ended")
        assert "hung" == line["reason"]
        await relay.says("worker serves", 3)
        assert [200] * 20 == [await relay.ask() for _ in range(20)]


async def test_one_process(launch):
    """It is reloaded by itself: who streams goes on, who asks is served by the new one."""
    go = asyncio.Event()
    async with ScriptedUpstream(gated(go)) as upstream, aiohttp.ClientSession() as client:
        relay = await launch(upstream, workers=1)
        async with relay.post(client, stream=True) as streaming:
            relay.write(upstream, keys=(NEW_KEY,), workers=1)
            relay.told(signal.SIGHUP)
            [line] = await relay.says("reloaded")
            assert 1 == line["workers"]
            assert 401 == await relay.ask()
            assert 200 == await relay.ask(key=NEW_KEY)
            go.set()
            assert DATA == await rest(streaming)
        relay.told(signal.SIGTERM)
        await relay.ends()
    assert [] == relay.lines("worker serves")
