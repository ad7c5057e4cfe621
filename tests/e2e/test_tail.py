"""`relay tail` and `relay serve` as processes of their own: what an operator sees while workers die and relays are restarted."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from contextlib import suppress

import aiohttp
import pytest

from relay.commands.following import Heard
from relay.commands.tail import line
from relay.testing import ScriptedUpstream, frames, streamed

PATIENCE_S = 60.0
TOKEN = "admin-canary-77"
KEY = "sk-canary-0123456789"

CONFIG = """\
[server]
port = {port}
workers = {workers}
drain_s = 5
[admin]
port = {admin_port}
token = {{ env = "TAIL_TEST_TOKEN" }}
{store}
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["*"]
api_key = {{ env = "TAIL_TEST_UPSTREAM" }}
[[plugins]]
use = "auth"
keys = [{{ name = "ann", key = "{key}" }}]
"""


def free_port():
    """One that nobody has just now, and that the kernel gives to no connection."""
    while True:
        port = random.randint(12_000, 30_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Process:
    """`relay …`; the lines that it has written so far."""

    def __init__(self, process):
        self._process = process
        self.out, self.err = [], []
        self._news = asyncio.Event()
        self._is_over = False
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.err)),
        ]

    async def _read(self, stream, lines):
        while written := await stream.readline():
            lines.append(written.decode().removesuffix("\n"))
            self._news.set()
        self._is_over = lines is self.out
        self._news.set()

    async def until(self, condition):
        """Wait until what it has written makes this true; what is true then."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                self._news.clear()
                await self._news.wait()
                assert not self._is_over or condition(), (self.out, self.err)
        return found

    @property
    def events(self):
        """What `relay tail --json` has written."""
        return [json.loads(each) for each in self.out]

    async def event(self, kind, **fields):
        """The first event of a kind with these fields."""
        return await self.until(
            lambda: next((each for each in self.events if {**each, "kind": kind, **fields} == each), None)
        )

    def told(self, number):
        self._process.send_signal(number)

    async def ends(self):
        """Its status."""
        async with asyncio.timeout(PATIENCE_S):
            status = await self._process.wait()
            await asyncio.gather(*self._readers)
        return status

    async def close(self):
        if self._process.returncode is None:
            self._process.kill()
        await self.ends()


@pytest.fixture
async def relay(tmp_path):
    """`process = await relay("tail", …)`."""
    started = []

    async def start(*words, token=TOKEN, upstream="sk-upstream", of_environment=None):
        environ = {name: value for name, value in os.environ.items() if name != "RELAY_ADMIN_TOKEN"}
        given = {"TAIL_TEST_TOKEN": token, "TAIL_TEST_UPSTREAM": upstream, "RELAY_ADMIN_TOKEN": of_environment}
        process = Process(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "relay", *words),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**environ, **{name: value for name, value in given.items() if value is not None}},
            )
        )
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        await process.close()


@pytest.fixture
async def upstream():
    async with ScriptedUpstream(streamed(frames.stream(["Hello"]))) as upstream:
        yield upstream


class Place:
    """Where a relay is."""

    def __init__(self, folder, upstream):
        self._path = folder / "relay.toml"
        self._upstream = upstream
        self.port, self.admin_port = free_port(), free_port()

    def write(self, *, workers=2, more="", key=KEY):
        store = '[store]\nurl = "memory:"' if workers == 1 else ""
        fields = {"port": self.port, "admin_port": self.admin_port, "base_url": self._upstream.base_url, "store": store}
        self._path.write_text(CONFIG.format(**fields, workers=workers, key=key) + more)

    async def ask(self, path="/nowhere"):
        """The request's id."""
        async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{self.port}{path}") as response:
            return response.headers["x-request-id"]


@pytest.fixture
def place(tmp_path, upstream):
    place = Place(tmp_path, upstream)
    place.write()
    return place


def serving(process):
    return next((each for each in process.out if '"event":"serving"' in each), None)


async def serve(relay):
    process = await relay("serve")
    await process.until(lambda: serving(process))
    return process


async def test_it_survives_a_kill_and_a_restart(relay, place):
    """Of a relay with two workers, on the same ports: it says when the relay is away and back, and ends at Ctrl-C."""
    first = await serve(relay)
    tail = await relay("tail", "--json")
    started = await tail.event("start")
    assert 2 == started["workers"]
    asked = await place.ask()
    refusal = await tail.event("refusal", request_id=asked)
    assert (404, "not_found") == (refusal["status"], refusal["code"])
    assert refusal["worker"] in (0, 1)
    first.told(signal.SIGKILL)
    await tail.until(lambda: tail.err)
    await first.ends()
    await serve(relay)
    await tail.until(lambda: len(tail.err) > 1)
    await tail.event("missed", reason="restarted")
    await tail.until(lambda: [each for each in tail.events if each["kind"] == "start" and each != started])
    asked = await place.ask()
    await tail.event("refusal", request_id=asked)
    tail.told(signal.SIGINT)
    assert 130 == await tail.ends()
    away, back = tail.err
    assert "is away" in away
    assert "is there, after" in back
    assert f"http://127.0.0.1:{place.admin_port}" in away
    ids = [each["id"] for each in tail.events if each["kind"] != "missed"]
    assert len(set(ids)) == len(ids)
    assert all(canary not in written for canary in (TOKEN, KEY) for written in (*tail.out, *tail.err))


async def test_it_waits_for_a_relay_and_hears_its_whole_life(relay, place):
    """From the start to the drain, with what becomes of workers and of reloads; the stream ends with the relay."""
    tail = await relay("tail", "--json")
    await tail.until(lambda: tail.err)
    assert "does not answer" in tail.err[0]
    process = await serve(relay)
    await tail.until(lambda: len(tail.err) > 1)
    await tail.event("start")
    pid = (await tail.event("worker", worker=1, state="serves"))["pid"]
    os.kill(pid, signal.SIGKILL)
    ended = await tail.event("worker", pid=pid, state="ended")
    assert ("died", -signal.SIGKILL) == (ended["reason"], ended["exit_status"])
    await tail.until(
        lambda: [each for each in tail.events if each["kind"] == "worker" and each["state"] == "serves"][2:]
    )
    place.write(more="nonsense = 1\n")
    process.told(signal.SIGHUP)
    refused = await tail.event("reload", state="refused")
    assert "nonsense" in refused["reason"]
    place.write(key="sk-other-canary")
    process.told(signal.SIGHUP)
    await tail.event("reload", state="begun")
    await tail.event("reload", state="done", workers=2)
    await tail.event("worker", state="ended", reason="left")
    process.told(signal.SIGTERM)
    assert {"delay_s": 0.0, "grace_s": 5.0}.items() <= (await tail.event("drain")).items()
    assert 0 == await process.ends()
    await tail.until(lambda: len(tail.err) > 2)
    assert "is away (it has ended the stream)" in tail.err[2]
    assert [] == [each for each in process.out if TOKEN in each]


async def test_one_process(relay, place):
    """Has no workers to tell of, and reloads by itself: on SIGHUP, and when it is asked to, which tells whether it did."""
    place.write(workers=1)
    process = await serve(relay)
    tail = await relay("tail")
    process.told(signal.SIGHUP)
    await tail.until(lambda: any("  reload    state=done  workers=1" in each for each in tail.out))
    asked = await relay("reload")
    assert 0 == await asked.ends()
    assert ["Reloaded."] == asked.out
    place.write(workers=1, more='[[plugins]]\nuse = "parameters"\nmodle = "a"\n')
    asked = await relay("reload")
    assert 1 == await asked.ends()
    assert "Nothing has changed:" == asked.err[0]
    number = 1 + place._path.read_text().splitlines().index('modle = "a"')
    assert f"relay.toml:{number}: plugins[1] (parameters): unknown option 'modle'" in asked.err[1]
    process.told(signal.SIGTERM)
    assert 0 == await process.ends()
    assert ["start", *["reload"] * 6, "drain"] == [each.split()[1] for each in tail.out]
    asked = await relay("reload")
    assert 1 == await asked.ends()
    assert "does not answer" in asked.err[0]
    assert [] == [each for each in tail.out if "worker=" in each]


async def test_a_flood(relay, place):
    """Every refusal is told, or told as missed, and a rare event between them is told."""
    process = await serve(relay)
    tail = await relay("tail", "--json")
    await tail.event("start")
    count = 2000

    async def pour(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n" * number)
        for _ in range(number):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(each for each in head.lower().split(b"\r\n") if each.startswith(b"content-length:"))
            await reader.readexactly(int(length.split()[1]))
        writer.close()

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(pour(count // 8) for _ in range(8)))
    place.write(more="nonsense = 1\n")
    process.told(signal.SIGHUP)
    await tail.event("reload", state="refused")

    def told():
        kinds = Counter(each["kind"] for each in tail.events)
        missed = sum(each["count"] for each in tail.events if each["kind"] == "missed")
        return kinds["refusal"] + missed

    await tail.until(lambda: told() >= count)
    assert count == told()


async def test_filters(relay, place):
    """Are the endpoint's."""
    await serve(relay)
    tail = await relay("tail", "--json", "--kind", "worker", "--kind", "start", "--last", "100")
    await tail.event("start")
    assert {"worker", "start"} == {each["kind"] for each in tail.events}
    nobody = await relay("tail", "--kind", "cut", "--model", "m", "--caller", "a b", "--last", "1")
    tail.told(signal.SIGINT)
    assert 130 == await tail.ends()
    nobody.told(signal.SIGTERM)
    assert ([], []) == (nobody.out, nobody.err)


async def test_nobody_reads(relay, place, tmp_path):
    """`relay tail | head -1` ends when there is a second line; nothing is said of that."""
    await serve(relay)
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m relay tail --last 100 | head -1",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TAIL_TEST_TOKEN": TOKEN},
    )
    async with asyncio.timeout(PATIENCE_S):
        first = await process.stdout.readline()
        while process.returncode is None:
            await place.ask()
            await asyncio.sleep(0.05)
        assert b"" == await process.stderr.read()
    assert b"worker" in first


class TestWhereItIsNotLetIn:
    async def test_a_wrong_token(self, relay, place):
        """One sentence, without the token."""
        await serve(relay)
        tail = await relay("tail", token="wrong-canary")
        assert 1 == await tail.ends()
        [said] = tail.err
        assert "does not take this token" in said
        assert "wrong-canary" not in said

    async def test_a_relay_elsewhere(self, relay, place, tmp_path):
        """By its URL, without a relay.toml, and with the token of the environment; that of its public listener is none."""
        await serve(relay)
        (tmp_path / "relay.toml").unlink()
        tail = await relay("tail", "--json", "--url", f"http://127.0.0.1:{place.admin_port}/", of_environment=TOKEN)
        await tail.event("start")
        tail = await relay("tail", "--url", f"http://127.0.0.1:{place.port}", of_environment=TOKEN)
        assert 1 == await tail.ends()
        [said] = tail.err
        assert "has no /admin/events (status 404)" in said

    async def test_what_is_no_url(self, relay):
        tail = await relay("tail", "--url", "http://127.0.0.1:1")
        assert 2 == await tail.ends()
        assert ["Set RELAY_ADMIN_TOKEN to the admin token of the relay at --url."] == tail.err
        tail = await relay("tail", "--url", "127.0.0.1:8081", of_environment=TOKEN)
        assert 2 == await tail.ends()
        assert ["--url: '127.0.0.1:8081' is none; write it as in http://127.0.0.1:8081"] == tail.err

    async def test_a_relay_without_a_token(self, relay, place, tmp_path):
        """Says how to give it one."""
        path = tmp_path / "relay.toml"
        path.write_text(path.read_text().replace('token = { env = "TAIL_TEST_TOKEN" }\n', ""))
        await serve(relay)
        tail = await relay("tail", of_environment=TOKEN)
        assert 1 == await tail.ends()
        [said] = tail.err
        assert "closed because no token is configured" in said

    @pytest.mark.parametrize(
        ("more", "environ", "said"),
        [
            ({}, {"token": None, "upstream": None}, "TAIL_TEST_TOKEN"),
            ({"port": "0"}, {}, "--url http://HOST:PORT"),
            ({"token": ""}, {}, "no token is configured"),
        ],
    )
    async def test_what_it_has_to_know(self, relay, place, tmp_path, more, environ, said):
        """Status 2 and a sentence that says what to do."""
        path = tmp_path / "relay.toml"
        text = path.read_text()
        if "port" in more:
            text = text.replace(f"port = {place.admin_port}", "port = 0")
        if "token" in more:
            text = text.replace('token = { env = "TAIL_TEST_TOKEN" }\n', "")
        path.write_text(text)
        tail = await relay("tail", **environ)
        assert 2 == await tail.ends()
        assert said in "\n".join(tail.err)
        assert 1 == len(tail.err)

    async def test_the_relays_other_secrets_are_not_needed(self, relay, place):
        """An operator's shell has not all of them."""
        await serve(relay)
        tail = await relay("tail", "--json", upstream=None)
        await tail.event("start")


@pytest.mark.parametrize(
    ("kind", "data", "written"),
    [
        ("cut", {"label": "Porn", "moderator": "tms", "worker": 1}, "cut       moderator=tms  label=Porn  worker=1"),
        ("throttle", {"now": 70.0, "before": 100}, "throttle  before=100  now=70.0"),
        ("refusal", {"model": "a b"}, 'refusal   model="a b"'),
        ("refusal", {"model": ""}, 'refusal   model=""'),
        ("refusal", {"model": "\x1b[2J\n\u202e"}, 'refusal   model="\\u001b[2J\\n\\u202e"'),
        ("refusal", {"model": "通义"}, "refusal   model=通义"),
        ("newer", {"other": [1, None]}, "newer     other=[1,null]"),
        ("drain", {}, "drain"),
    ],
)
def test_a_line(kind, data, written):
    """The fields in the order of the table, then others; nothing that a terminal would obey."""
    assert f"2026-01-31T12:00:00.000Z  {written}" == line(
        Heard("e-1", kind, {"at": "2026-01-31T12:00:00.000Z", **data})
    )
