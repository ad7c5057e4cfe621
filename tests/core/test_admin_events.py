"""`GET /admin/events` over a real socket: who is let in, what is asked for, how it goes on and how it ends."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientTimeout, web
from aiohttp.test_utils import RawTestServer, TestClient

from relay import admin_events
from relay.admin import Admin, Readiness
from relay.events import KEPT, KINDS, MAX_LISTENERS, Events
from relay.listener import ResponseListener
from relay.secret import Secret
from relay.testing.reply import Lent

TOKEN = "t0ken"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
PATH = "/admin/events"
PATIENCE_S = 10.0


@pytest.fixture
def events():
    return Events()


@pytest.fixture
async def client(events):
    admin = Admin(Lent().metrics, lambda: Readiness(True), Secret(TOKEN), events=events)
    client = TestClient(RawTestServer(admin.handle), timeout=ClientTimeout(PATIENCE_S))
    await client.start_server()
    yield client
    await client.close()


class Stream:
    """What a listener reads."""

    def __init__(self, response):
        self.response = response
        self.comments = []
        self.last = ""

    async def next(self):
        """(kind, data) of the next event; None at the end."""
        while block := await self._block():
            fields = [line.partition(": ")[::2] for line in block if line[0] != ":"]
            self.comments += [line for line in block if line[0] == ":"]
            said = dict(fields)
            assert len(said) == len(fields)
            self.last = said["id"]
            if "event" in said:
                data = json.loads(said["data"])
                del data["at"]
                return said["event"], data
        return None

    async def _block(self):
        block = []
        async with asyncio.timeout(PATIENCE_S):
            while line := (await self.response.content.readline()).decode():
                if line == "\n":
                    return block
                block.append(line.removesuffix("\n"))
        assert [] == block
        return block


@pytest.fixture
def listen(client):
    """`async with listen(query, last=…) as stream`; it has begun when the block does."""

    @asynccontextmanager
    async def open_(query="", last=None, **headers):
        headers |= AUTH
        if last is not None:
            headers["last-event-id"] = last
        async with client.get(PATH + query, headers=headers) as response:
            assert (200, "text/event-stream") == (response.status, response.content_type)
            assert "no-store" == response.headers["Cache-Control"]
            yield Stream(response)

    return open_


async def refused(client, path=PATH, headers=AUTH, method="GET"):
    async with client.request(method, path, headers=headers) as response:
        return response.status, (await response.json())["error"] if method != "HEAD" else None


class TestAsking:
    async def test_a_token_is_needed(self, client):
        """As for everything under /admin/."""
        assert 401 == (await refused(client, headers={}))[0]
        assert 401 == (await refused(client, headers={"Authorization": "Bearer other"}))[0]

    async def test_it_only_reads(self, client):
        """HEAD gives the head."""
        assert 405 == (await refused(client, method="POST"))[0]
        async with client.head(PATH, headers=AUTH) as response:
            assert (200, "text/event-stream", b"") == (response.status, response.content_type, await response.read())

    @pytest.mark.parametrize(
        ("query", "code", "said"),
        [
            ("?kind=cuts", "invalid_kind", "'cuts'"),
            ("?kind=", "invalid_kind", "''"),
            ("?kind=cut,,refusal", "invalid_kind", "''"),
            ("?last=-1", "invalid_last", str(KEPT)),
            ("?last=many", "invalid_last", str(KEPT)),
            ("?modle=x", "invalid_query", "did you mean 'model'?"),
            ("?model=a&model=b", "invalid_query", "Give model once"),
        ],
    )
    async def test_what_is_wrong_is_said(self, client, query, code, said):
        """400; of kinds with those that there are."""
        status, error = await refused(client, PATH + query)
        assert (400, code) == (status, error["code"])
        assert said in error["message"]
        if code == "invalid_kind":
            assert all(kind in error["message"] for kind in KINDS)

    async def test_one_too_many(self, client, events):
        """503 with what to do; when one of the others goes there is room."""
        responses = [await client.get(PATH, headers=AUTH) for _ in range(MAX_LISTENERS)]
        status, error = await refused(client)
        assert (503, "too_many_listeners") == (status, error["code"])
        assert str(MAX_LISTENERS) in error["message"]
        responses[0].close()
        async with asyncio.timeout(PATIENCE_S):
            while events.full:
                events.publish("start")  # whoever writes notices
                await asyncio.sleep(0.01)
        responses[0] = await client.get(PATH, headers=AUTH)
        assert 200 == responses[0].status
        for response in responses:
            response.close()


class TestListening:
    async def test_what_happens_is_told(self, listen, events):
        async with listen() as stream:
            events.publish("ejection", upstream="u0", reason="heads")
            events.publish("return", upstream="u0")
            assert ("ejection", {"upstream": "u0", "reason": "heads"}) == await stream.next()
            assert ("return", {"upstream": "u0"}) == await stream.next()

    async def test_filters(self, listen, events):
        async with listen("?kind=cut,%20refusal&model=m%201&last=5") as stream:
            events.publish("ejection", upstream="u0")
            events.publish("cut", model="m 2")
            events.publish("refusal", model="m 1")
            assert ("refusal", {"model": "m 1"}) == await stream.next()

    async def test_a_long_model_is_cut_as_in_events(self, listen, events):
        async with listen(f"?model={'m' * 100}") as stream:
            events.publish("cut", model="m" * 64)
            assert ("cut", {"model": "m" * 64}) == await stream.next()

    async def test_the_last_ones(self, listen, events):
        for number in range(5):
            events.publish("refusal", status=number)
        async with listen("?last=2") as stream:
            assert [3, 4] == [(await stream.next())[1]["status"] for _ in range(2)]
        async with listen("?last=2", last=stream.last) as stream:
            events.publish("refusal", status=5)
            assert ("refusal", {"status": 5}) == await stream.next()  # what was said last goes before it

    async def test_resuming(self, listen, events):
        """From the id that was heard last, at whatever place."""
        async with listen() as stream:
            for number in range(6):
                events.publish("refusal", status=number)
            for number in range(3):
                assert number == (await stream.next())[1]["status"]
        async with listen(last=stream.last) as stream:
            assert [3, 4, 5] == [(await stream.next())[1]["status"] for _ in range(3)]
        async with listen(last="01234567-2") as stream:
            assert ("missed", {"reason": "restarted"}) == await stream.next()
            assert 0 == (await stream.next())[1]["status"]

    async def test_a_place_before_the_first_event(self, listen, events):
        """Also one who has heard of nothing yet may come back."""
        async with listen() as stream:
            async with asyncio.timeout(PATIENCE_S):
                block = await stream._block()
        place = next(line for line in block if line.startswith("id: ")).removeprefix("id: ")
        events.publish("cut", status=1)
        async with listen(last=place) as stream:
            assert ("cut", {"status": 1}) == await stream.next()

    async def test_silence_is_broken(self, listen, events, monkeypatch):
        """By comments, which say where to go on."""
        monkeypatch.setattr(admin_events, "KEEPALIVE_S", 0.01)
        async with listen("?kind=cut") as stream:
            events.publish("refusal", status=1)
            blocks = [await stream._block() for _ in range(3)]
            assert [":"] * 3 == [block[0][0] for block in blocks]
            assert blocks[0][1] != blocks[2][1]
        async with listen("?kind=refusal", last=blocks[2][1].removeprefix("id: ")) as stream:
            events.publish("refusal", status=2)
            assert ("refusal", {"status": 2}) == await stream.next()

    async def test_a_silence_of_others_is_broken_too(self, listen, events, monkeypatch):
        """While much happens that is not wanted."""
        monkeypatch.setattr(admin_events, "KEEPALIVE_S", 0.2)
        async with listen("?model=m") as stream:
            first = await stream._block()

            async def happen():
                while True:
                    events.publish("cut", model="other")
                    await asyncio.sleep(0.001)

            happening = asyncio.create_task(happen())
            second = await stream._block()
            happening.cancel()
            assert (": listening", True) == (second[0], first[1] != second[1])

    async def test_the_end(self, listen, events):
        """What was said last is heard, then the stream ends in good order."""
        async with listen() as stream, listen("?kind=cut") as other:
            events.publish("drain", grace_s=1.0)
            events.close()
            assert ("drain", {"grace_s": 1.0}) == await stream.next()
            assert await stream.next() is None
            assert await other.next() is None


class Slow:
    """A client that has asked and does not read."""

    def __init__(self, port):
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.setblocking(False)
        self._port = port

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._sock, ("127.0.0.1", self._port))
        head = f"GET {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        await loop.sock_sendall(self._sock, head.encode())
        return self

    async def __aexit__(self, *exc):
        self._sock.close()

    async def read(self, until):
        """All up to and with `until`."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            while until not in data:
                part = await asyncio.get_running_loop().sock_recv(self._sock, 2**16)
                assert part, data[-300:]
                data += part
        return data


class TestSlowReaders:
    async def test_one_that_reads_on(self, client, events):
        """Has lost the oldest and is told how many; nobody has waited for it."""
        async with Slow(client.server.port) as slow:
            await slow.read(b"listening")
            published = 0
            async with asyncio.timeout(PATIENCE_S):
                while True:  # until what the kernel takes is full, and then more than is kept
                    for _ in range(2 * KEPT):
                        published += 1
                        events.publish("refusal", code="x" * 400, status=published)
                    await asyncio.sleep(0.06)
                    [listener] = events._listeners
                    if events._recent.last - listener._number > 2 * KEPT:
                        break
            events.publish("drain")
            data = await slow.read(b"event: drain")
        lines = [line for line in data.split(b"\n") if line.startswith(b"data: ") and line.endswith(b"}")]
        told = [json.loads(line.removeprefix(b"data: ")) for line in lines]
        missed = sum(each["count"] for each in told if each.get("reason") == "late")
        statuses = [each["status"] for each in told if "status" in each]
        assert sorted(set(statuses)) == statuses
        assert published == missed + len(statuses)
        assert missed > 0

    async def test_one_that_never_does(self, client, events, monkeypatch):
        """Is taken for gone; its place is free."""
        monkeypatch.setattr(admin_events, "STALL_S", 0.05)
        async with Slow(client.server.port) as slow, asyncio.timeout(PATIENCE_S):
            await slow.read(b"listening")
            while events._listeners:
                for _ in range(KEPT):
                    events.publish("refusal", code="x" * 400)
                await asyncio.sleep(0.01)

    async def test_it_does_not_hold_up_the_end(self, events):
        """A listener is closed although one of its clients takes nothing."""
        admin = Admin(Lent().metrics, lambda: Readiness(True), Secret(TOKEN), events=events)
        runner = web.ServerRunner(ResponseListener(admin.handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        async with Slow(port) as slow:
            await slow.read(b"listening")
            for _ in range(20):
                for _ in range(KEPT):
                    events.publish("refusal", code="x" * 400)
                await asyncio.sleep(0.06)
            events.close()
            async with asyncio.timeout(PATIENCE_S):
                await runner.cleanup()


async def test_nothing_is_left_of_one_who_goes(client, events):
    """However it goes, in the middle of what is said."""
    for _ in range(20):
        events.publish("cut", code="x" * 100)
        response = await client.get(PATH + "?last=5", headers=AUTH)
        response.close()
    async with asyncio.timeout(PATIENCE_S):
        while events._listeners:
            events.publish("cut")
            await asyncio.sleep(0.01)
