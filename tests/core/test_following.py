"""Following events over everything that breaks, from a server that breaks as it is told."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from relay.commands import following
from relay.commands.following import Refused, follow

PATIENCE_S = 10.0


def event(number, kind="cut", data='{"status":1}'):
    return f"id: e-{number}\nevent: {kind}\ndata: {data}\n\n".encode()


class Server:
    """Answers each request by the next of `answers`: bytes to send and how to end then, or a status with a body."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self._server = TestServer(web.Application())
        self._server.app.router.add_get("/admin/events", self._handle)
        self._hangs = asyncio.Event()

    async def __aenter__(self):
        await self._server.start_server()
        self.url = str(self._server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *exc):
        self._hangs.set()
        await self._server.close()

    async def _handle(self, request):
        self.asked.append((request.headers.getall("Last-Event-ID", []), dict(request.query)))
        assert ["Bearer token"] == request.headers.getall("Authorization")
        answer = self.answers.pop(0) if self.answers else (b"", "hang")
        if isinstance(answer[0], int):
            status, body, kind = answer
            return web.Response(status=status, body=body, content_type=kind)
        data, end = answer
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(data)
        if end == "break":
            request.transport.close()
        elif end == "hang":
            await self._hangs.wait()
        return response


class Follower:
    """Collects so many events, and what is said of the relay."""

    def __init__(self):
        self.heard = []
        self.said = []

    async def follow(self, url, count, query=None):
        events = follow(url, "token", query or {}, on_away=self.said.append, on_back=lambda: self.said.append("back"))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while len(self.heard) < count:
                    self.heard.append(await anext(events))
        finally:
            await events.aclose()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(following, "FIRST_PAUSE_S", 0.01)


async def test_streams_that_end_in_good_order():
    """Are gone on with, by one id and no other."""
    follower = Follower()
    async with Server((event(1), ""), (event(2) + event(3), ""), (event(4), "hang")) as server:
        await follower.follow(server.url, 4, {"kind": "cut", "last": "5"})
        assert [[], ["e-1"], ["e-3"]] == [last for last, _ in server.asked]
        assert {"kind": "cut", "last": "5"} == server.asked[2][1]
    assert ["e-1", "e-2", "e-3", "e-4"] == [each.id for each in follower.heard]
    assert ["it has ended the stream", "back"] * 2 == follower.said


async def test_streams_that_break_off():
    """In the middle of an event, of which nothing is left over for the next one."""
    half = b"id: e-2\nevent: cut\ndata: {"
    follower = Follower()
    async with Server((event(1) + half, "break"), (half, "break"), (event(2), "hang")) as server:
        await follower.follow(server.url, 2)
        assert [[], ["e-1"], ["e-1"]] == [last for last, _ in server.asked]
    assert [{"status": 1}] * 2 == [each.data for each in follower.heard]
    assert ["the connection broke", "back"] * 2 == follower.said


async def test_a_place_without_an_event():
    """Is where it goes on, too."""
    follower = Follower()
    async with Server((event(1) + b": listening\nid: e-7\n\n", "break"), (event(8), "hang")) as server:
        await follower.follow(server.url, 2)
        assert ["e-7"] == server.asked[1][0]


async def test_nobody_there():
    """It waits, and says so once."""
    server = Server((event(1), "hang"))
    async with server:
        url = server.url
    follower = Follower()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await follower.follow(url, 1)
    assert 1 == len(follower.said)
    assert "refused" in follower.said[0]


async def test_a_silent_one(monkeypatch):
    """Is given up: who keeps a connection open and says nothing is none."""
    monkeypatch.setattr(following, "SILENT_S", 0.05)
    follower = Follower()
    async with Server((event(1), "hang"), (event(2), "hang")) as server:
        await follower.follow(server.url, 2)
    assert ["it is silent", "back"] == follower.said


async def test_one_that_cannot_now():
    """503 and 502 pass, as a restart does; what it says is told."""
    body = b'{"error": {"message": "16 clients listen already."}}'
    answers = [(503, body, "application/json"), (502, b"<html>", "text/html"), (event(1), "hang")]
    follower = Follower()
    async with Server(*answers) as server:
        await follower.follow(server.url, 1)
    assert ["16 clients listen already.", "back"] == follower.said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b'{"error": {"message": "needs a header"}}', "application/json"), "does not take this token"),
        ((403, b'{"error": {"message": "closed because"}}', "application/json"), "closed because"),
        ((404, b'{"error": {"message": "no such path"}}', "application/json"), "has no /admin/events (status 404)"),
        ((400, b'{"error": {"message": "Unknown kind"}}', "application/json"), "Unknown kind"),
        ((200, b"<html>", "text/html"), "has no /admin/events (status 200)"),
        ((302, b"", "text/html"), "has no /admin/events (status 302)"),
        ((204, b"", "text/event-stream"), "has no /admin/events (status 204)"),
        ((400, b'{"error": []}', "application/json"), "has no /admin/events (status 400)"),
    ],
)
async def test_one_that_never_will(answer, said, caplog):
    """Is not asked again; nothing is written but by us."""
    follower = Follower()
    async with Server(answer) as server:
        with pytest.raises(Refused) as refused:
            await follower.follow(server.url, 1)
        assert 1 == len(server.asked)
    assert said in str(refused.value)
    assert ([], []) == (follower.said, caplog.records)


@pytest.mark.parametrize(
    "odd", [b"data: {\n\n", b"data: [1]\n\n", b"data\n\n", b"\xff\xfe: x\n\n", b"data: " + b"x" * 2**17 + b"\n\n"]
)
async def test_what_is_no_event_of_ours(odd):
    """Is passed over, or gone round."""
    follower = Follower()
    async with Server((event(1) + odd + event(2), ""), (event(2), "hang")) as server:
        await follower.follow(server.url, 2)
    assert ["e-1", "e-2"] == [each.id for each in follower.heard]
