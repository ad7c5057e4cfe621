"""Every kind of event, by what causes it in a relay that serves, as an operator hears it; and what no event may hold."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress

import aiohttp
import pytest
from aiohttp_sse_client.client import EventSource

from relay import consultant
from relay.events import KINDS
from relay.moderator import RateLimited, Unauthorized
from relay.pure import health, pace
from relay.store import pulse
from relay.testing import Close, Gate, Head, Script, Send, frames, refused, streamed, whole

from .conftest import AUTH, FORBIDDEN, KEY, MODEL, PATIENCE_S, PROMPT, UPSTREAM_KEY, Wire, moderation

pytestmark = pytest.mark.parametrize("reader", ["push"], indirect=True)

TOKEN = "admin-canary-5e0f7c21"
SECRET_TEXT = "canary-reply"
HELLO = frames.stream([SECRET_TEXT, " and more of it"])
BAD = frames.stream([SECRET_TEXT + ". ", FORBIDDEN[0], " and more of it"])
MEMBERS = {"request_id", "outcome", "code", "status", "caller", "model", "upstream"}
BOTH = [{"priority": 0}, {"priority": 1}]
CANARIES = (KEY, UPSTREAM_KEY, PROMPT, SECRET_TEXT, TOKEN, FORBIDDEN[0], "canary-header", "canary-cookie")


class Ear:
    """Listens at a relay as a client of its own, and looks at all that it hears."""

    def __init__(self, source):
        self._source = source
        self.heard = []

    async def next(self, kind):
        """The fields of the next event of a kind."""
        async with asyncio.timeout(PATIENCE_S):
            async for event in self._source:
                fields = json.loads(event.data)
                self.heard.append((event.type, fields))
                assert set(fields) <= {"at", "worker", *KINDS[event.type].fields}
                assert [] == [canary for canary in CANARIES if canary in event.data]
                if event.type == kind:
                    return {name: value for name, value in fields.items() if name != "at"}
        raise AssertionError("the stream has ended")


@pytest.fixture
async def listening(serve, monkeypatch):
    """`rig, ear = await listening(script, …)`: a relay, and an ear at it."""
    monkeypatch.setenv("RELAY_ADMIN_TOKEN", TOKEN)
    ears = []

    async def start(*scripts, **options):
        rig = await serve(*scripts, **options)
        rig.loudest = "error"
        client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        source = EventSource(
            f"http://127.0.0.1:{rig.relay.admin_port}/admin/events?last=100",
            session=client,
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        await source.connect()
        ears.append((client, source))
        return rig, Ear(source)

    yield start
    for client, source in ears:
        await source.close()
        await client.close()


async def test_start(listening):
    """The first thing of all."""
    _, ear = await listening(streamed(HELLO))
    assert {"workers": 1, "pid": os.getpid()} == await ear.next("start")


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_who_leaves_is_gone(listening, how):
    """In the middle of what is said; nobody complains, and there is room for another one."""
    rig, ear = await listening(streamed(HELLO))
    for _ in range(20):  # more than may listen at a time
        wire = Wire(*await asyncio.open_connection("127.0.0.1", rig.relay.admin_port))
        wire.send(f"GET /admin/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert 200 == (await wire.head())[0]
        async with rig.session.get(rig.url + "/nowhere"):
            pass
        wire.leave(how)
        assert 404 == (await ear.next("refusal"))["status"]
        if how == "half":
            await wire.rest()
        await wire.close()


class TestCut:
    async def test_by_moderation(self, listening):
        """Who has found what; never the text."""
        rig, ear = await listening(streamed(BAD))
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        cut = await ear.next("cut")
        assert reply.headers["x-request-id"] == cut.pop("request_id")
        assert cut == {
            "outcome": "filtered",
            "status": 200,
            "caller": "tester",
            "model": MODEL,
            "upstream": "u0",
            "moderator": "lexicon",
            "label": cut["label"],
        }

    async def test_by_moderation_with_an_error(self, listening):
        """Also where the client gets no reply for it."""
        rig, ear = await listening(
            lambda request: whole(frames.body(FORBIDDEN[0])), chain=[AUTH, moderation(on_violation="error")]
        )
        reply = await rig.ask(stream=False)
        cut = await ear.next("cut")
        assert (reply.status, reply.error["code"], "filtered", "lexicon") == tuple(
            cut[name] for name in ("status", "code", "outcome", "moderator")
        )

    async def test_by_the_end_of_the_quota(self, listening, tmp_path):
        rig, ear = await listening(
            streamed(HELLO),
            chain=[AUTH, {"use": "quota", "grant": len(PROMPT) + 5, "instalment": 1}],
            store=f"embedded:{tmp_path}/data",
        )
        await rig.ask()
        cut = await ear.next("cut")
        assert ("exhausted", "tester", None) == (cut["outcome"], cut["caller"], cut.get("moderator"))

    async def test_by_an_upstream_that_breaks_off(self, listening):
        rig, ear = await listening(Script(Head(), Send(HELLO[0]), Close()), chain=[])
        await rig.ask()
        cut = await ear.next("cut")
        assert ("upstream_error", "upstream_incomplete", 200) == (cut["outcome"], cut["code"], cut["status"])

    async def test_by_a_drain(self, listening):
        rig, ear = await listening(Script(Head(), Send(HELLO[0]), Gate(asyncio.Event())), chain=[])
        asking = asyncio.create_task(rig.ask())
        await rig.until(lambda: rig.replies and rig.replies[0].writer is not None and rig.replies[0].writer.first_at)
        await rig.app.drain(0)
        await asking
        cut = await ear.next("cut")
        assert ("drained", "draining") == (cut["outcome"], cut["code"])

    async def test_not_by_its_client(self, listening):
        """Who leaves has not been cut; the next event is another one's."""
        rig, ear = await listening(Script(Head(), Send(HELLO[0]), Gate(asyncio.Event())), chain=[])
        async with rig.post() as response:
            await response.content.readany()
        await rig.ended()
        async with rig.session.get(rig.url + "/nowhere"):
            pass
        assert 404 == (await ear.next("refusal"))["status"]
        assert ["start", "refusal"] == [kind for kind, _ in ear.heard]


class TestRefusal:
    async def test_of_a_key(self, listening):
        """What is not known stands in no event."""
        rig, ear = await listening(streamed(HELLO))
        headers = {"Authorization": f"Bearer {KEY}x", "Cookie": "a=canary-cookie", "X-A": "canary-header"}
        reply = await rig.ask(headers=headers)
        assert {
            "request_id": reply.headers["x-request-id"],
            "operation": "chat",
            "outcome": "refused",
            "code": "invalid_api_key",
            "status": 401,
        } == await ear.next("refusal")

    async def test_of_a_prompt(self, listening):
        """By whom; never the prompt."""
        rig, ear = await listening(streamed(HELLO))
        await rig.ask(messages=[{"role": "user", "content": f"{PROMPT} {FORBIDDEN[0]}"}])
        refusal = await ear.next("refusal")
        assert ("content_filter", "lexicon", "tester") == tuple(refusal[n] for n in ("code", "moderator", "caller"))

    async def test_of_a_hostile_model(self, listening):
        """Cut to what a name may be, and one field of one line, whatever stands in it."""
        rig, ear = await listening(refused(400))
        await rig.ask(model="m" * 100_000)
        assert "m" * 64 == (await ear.next("refusal"))["model"]
        for model in ("a\nevent: cut\ndata: {}\n\n", "\x1b[2J\x00", "é" * 64, "\u2028"):
            await rig.ask(model=model)
            assert model == (await ear.next("refusal"))["model"]

    async def test_of_an_upstream(self, listening):
        rig, ear = await listening(refused(503))
        await rig.ask()
        refusal = await ear.next("refusal")
        assert ("upstream_error", "u0") == (refusal["outcome"], refusal.get("upstream", "u0"))
        assert 500 <= refusal["status"]

    async def test_of_what_is_no_request(self, listening):
        """Answered below the handler."""
        rig, ear = await listening(streamed(HELLO))
        wire = await rig.dial()
        wire.send(b"NONSENSE canary-prompt\r\n\r\n")
        assert 400 == (await wire.reply()).status
        refusal = await ear.next("refusal")
        assert ("other", "bad_request", 400) == (refusal["operation"], refusal["code"], refusal["status"])

    async def test_of_every_kind_of_error(self, listening):
        """None tells what it should not: every member of the body, each way to fail."""
        rig, ear = await listening(streamed(HELLO), upstreams=[{"models": [MODEL]}])
        odd = [
            {"temperature": PROMPT},
            {"messages": PROMPT},
            {"messages": [{"role": PROMPT, "content": [{"type": PROMPT}]}]},
            {"stop": {PROMPT: PROMPT}},
            {"n": PROMPT},
            {"model": ""},
        ]
        statuses = [(await rig.ask(**fields)).status for fields in odd]
        statuses.append((await rig.ask(headers={"Content-Encoding": "canary-header"})).status)
        for method, path in (("POST", f"/{PROMPT}"), ("POST", f"/v1/{KEY}"), ("GET", "/v1/chat/completions")):
            async with rig.session.request(method, rig.url + path, data=PROMPT.encode()) as response:
                statuses.append(response.status)
        refusals = sorted(status for status in statuses if status != 200)
        assert len(refusals) > 5
        told = [await ear.next("refusal") for _ in refusals]
        assert refusals == sorted(refusal["status"] for refusal in told)
        assert set().union(*told) <= {*MEMBERS, "operation"}


class Moody:
    """A script that changes while it serves."""

    def __init__(self, script):
        self.script = script

    def __call__(self, request):
        return self.script


async def test_ejection_and_return(listening, monkeypatch):
    monkeypatch.setattr(health, "BASE_EJECTION_S", 0.0)
    moody = Moody(refused(503))
    rig, ear = await listening(moody, streamed(HELLO), upstreams=BOTH)
    for _ in range(health.CONSECUTIVE_FAILURES):
        await rig.ask()
    assert {"upstream": "u0", "reason": "heads"} == await ear.next("ejection")
    moody.script = streamed(HELLO)
    await rig.ask()
    assert {"upstream": "u0"} == await ear.next("return")


@pytest.fixture
def moods():
    """`moods(mood)` sets what the moderator of `moderated` does; it is well before and afterwards."""

    def set_mood(mood):
        sys.modules["fakes"].Moods.mood = mood

    yield set_mood
    set_mood(None)


def moderated(**options):
    """A chain with a moderator that has moods."""
    return [AUTH, {"use": "moderation", "moderators": [{"use": "fakes:Moods", **options}], "cache_s": 0}]


async def test_breaker(listening, moods):
    """Open when the moderator fails, tried after a while, closed by an answer."""
    rig, ear = await listening(streamed(HELLO), chain=moderated())
    moods(Unauthorized)
    await rig.ask()
    assert {"moderator": "moods", "before": "closed", "now": "open"} == await ear.next("breaker")
    moods(None)
    async with asyncio.timeout(PATIENCE_S):
        while (await rig.ask()).status != 200:
            await asyncio.sleep(0.05)
    assert {"moderator": "moods", "before": "open", "now": "probing"} == await ear.next("breaker")
    assert {"moderator": "moods", "before": "probing", "now": "closed"} == await ear.next("breaker")


async def test_throttle(listening, moods, monkeypatch):
    """Less often when it has said that there were too many, as often as before after a while."""
    monkeypatch.setattr(pace, "RECOVERY_S", 0.01)
    monkeypatch.setattr(consultant, "MAX_REFUSALS", 1)
    rig, ear = await listening(streamed(HELLO), chain=moderated(calls_per_second=1000))
    moods(RateLimited)
    await rig.ask()
    fell = await ear.next("throttle")
    assert ("moods", 1000) == (fell["moderator"], fell["ceiling"])
    assert pytest.approx(0.7 * fell["before"], abs=0.01) == fell["now"]
    moods(None)
    async with asyncio.timeout(PATIENCE_S):
        while not any(kind == "throttle" and fields["now"] == fell["before"] for kind, fields in ear.heard):
            await rig.ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await ear.next("throttle")
    assert fell["before"] == ear.heard[-1][1]["now"]


async def test_store(listening, tmp_path, monkeypatch):
    """Away when it stands still, back when it goes on, started again when it has died."""
    monkeypatch.setattr(pulse, "QUIET_S", 0.1)
    _rig, ear = await listening(streamed(HELLO), chain=[AUTH], store=f"embedded:{tmp_path}/data", timeout_ms=50)
    server = json.loads((tmp_path / "data/store/server.json").read_bytes())["server"]
    os.kill(server, signal.SIGSTOP)
    try:
        away = await ear.next("store")
    finally:
        os.kill(server, signal.SIGCONT)
    assert "away" == away["state"]
    assert away["reason"] in ("away", "slow", "breaker")
    back = await ear.next("store")
    assert ("back", True) == (back["state"], back["away_s"] > 0)
    os.kill(server, signal.SIGKILL)
    while (again := await ear.next("store"))["state"] != "restarted":
        pass
    assert {"state": "restarted"} == again
