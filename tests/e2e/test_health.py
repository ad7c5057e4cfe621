"""What the relay learns from the requests that an upstream gets: whom to ask first, and whom to pass over."""

import asyncio
import sys

import pytest

from relay.pure import health, retry
from relay.pure.health import CONSECUTIVE_FAILURES as FAILURES
from relay.testing import Close, Hang, Head, Pause, Script, Send, frames, refused, streamed

DATA = frames.stream(["Hel", "lo"])
ANSWER = streamed(DATA)
BOTH = [{"priority": 0}, {"priority": 1}]
BROKEN = Script(Head(), Send(DATA[0]), Close())


class Moody:
    """A script that changes while it serves."""

    def __init__(self, script):
        self.script = script

    def __call__(self, request):
        return self.script


def asked(rig):
    return [upstream.received for upstream in rig.upstreams]


class TestEjection:
    async def test_one_that_fails_is_passed_over(self, serve):
        """After five failures in a row nobody waits for it any more, and the log and the metrics say so."""
        rig = await serve(refused(503), ANSWER, upstreams=BOTH)
        rig.loudest = "warning"
        for _ in range(FAILURES + 3):
            assert 200 == (await rig.ask()).status
        assert [FAILURES, FAILURES + 3] == asked(rig)
        (line,) = [line for line in rig.log if line["event"] == "upstream ejected"]
        assert ("u0", "heads") == (line["upstream"], line["reason"])
        metrics = await rig.metrics()
        assert 1 == metrics['relay_upstream_ejected{upstream="u0"}']
        assert 1 == metrics['relay_upstream_ejections_total{reason="heads",upstream="u0"}']
        assert FAILURES == metrics['relay_upstream_retries_total{outcome="retried",upstream="u0"}']

    @pytest.mark.parametrize(
        ("back", "status"),
        [(ANSWER, 200), (refused(400), 400)],
        ids=["with an answer", "with a refusal of the request"],
    )
    async def test_it_comes_back(self, serve, monkeypatch, back, status):
        """When its time is over one request tries it, and if that is answered the others follow."""
        monkeypatch.setattr(health, "BASE_EJECTION_S", 0.0)
        moody = Moody(refused(500))
        rig = await serve(moody, ANSWER, upstreams=BOTH, upstream={"retry_on": ["500"]})
        rig.loudest = "warning"
        for _ in range(FAILURES):
            assert 200 == (await rig.ask()).status
        assert 1 == (await rig.metrics())['relay_upstream_ejected{upstream="u0"}']
        moody.script = back
        assert status == (await rig.ask()).status
        moody.script = ANSWER
        for _ in range(3):
            assert 200 == (await rig.ask()).status
        assert [FAILURES + 4, FAILURES] == asked(rig)
        assert ["upstream ejected", "upstream is back"] == [
            line["event"] for line in rig.log if line["event"].startswith("upstream ")
        ]
        assert 'relay_upstream_ejected{upstream="u0"}' not in await rig.metrics()

    async def test_one_that_breaks_off(self, serve):
        """Heads that come do not hide replies that break off."""
        rig = await serve(BROKEN, ANSWER, upstreams=BOTH)
        rig.loudest = "warning"
        ends = [(await rig.ask()).data.endswith(b"".join(DATA)[-100:]) for _ in range(FAILURES + 2)]
        assert [False] * FAILURES + [True] * 2 == ends

    async def test_one_that_is_slow(self, serve, monkeypatch):
        """One that takes several times as long as the other, again and again, is passed over."""
        monkeypatch.setattr(health, "SLOW_S", 0.01)
        monkeypatch.setattr(health, "SLOW_FACTOR", 2.0)
        rig = await serve(Script(Pause(0.03), *ANSWER.steps), ANSWER)
        rig.loudest = "warning"
        for _ in range(200):
            await rig.ask()
            if any(line["event"] == "upstream ejected" for line in rig.log):
                break
        (line,) = [line for line in rig.log if line["event"] == "upstream ejected"]
        assert ("u0", "slow") == (line["upstream"], line["reason"])

    async def test_the_only_one_is_asked_all_the_same(self, serve):
        """Whom else? And as soon as it can serve, it serves. That it cannot is told once."""
        moody = Moody(refused(500))
        rig = await serve(moody)
        rig.loudest = "warning"
        for _ in range(FAILURES + 2):
            assert 502 == (await rig.ask()).status
        moody.script = ANSWER
        assert 1 == (await rig.metrics())['relay_upstream_ejections_total{reason="heads",upstream="u0"}']
        assert 200 == (await rig.ask()).status
        assert FAILURES + 3 == rig.upstream.received

    @pytest.mark.parametrize("script", [refused(400), refused(404), refused(429)], ids=["400", "404", "429"])
    async def test_what_is_the_clients_or_a_limit_ejects_nobody(self, serve, script):
        rig = await serve(script)
        for _ in range(2 * FAILURES):
            assert 400 <= (await rig.ask()).status < 500


class TestBudget:
    async def test_retries_stay_a_share(self, serve, monkeypatch):
        """When everything fails, the second upstream does not get everything twice over."""
        monkeypatch.setattr(retry, "MIN_RETRIES_PER_S", 0.0)
        monkeypatch.setattr(retry, "INITIAL_TOKENS", 0.0)
        monkeypatch.setattr(health, "CONSECUTIVE_FAILURES", 10**6)
        rig = await serve(refused(503), refused(503), upstreams=BOTH)
        for _ in range(50):
            assert 502 == (await rig.ask()).status
        assert [50, 10] == asked(rig)
        metrics = await rig.metrics()
        assert 40 == metrics['relay_upstream_retries_total{outcome="over_budget",upstream="u0"}']


class TestOnceOnly:
    """What may have been acted upon is not asked again, by nobody."""

    async def test_a_used_connection_that_dies_late(self, serve, monkeypatch):
        """It is no stale one: the upstream has had the request for a while."""
        monkeypatch.setattr("relay.connections.STALE_S", 0.0)
        rig = await serve([ANSWER, Script(Close()), ANSWER])
        assert 200 == (await rig.ask()).status
        reply = await rig.ask()
        assert (502, "false") == (reply.status, reply.headers["x-should-retry"])
        assert 2 == rig.upstream.received

    async def test_many_used_connections_that_die(self, serve):
        """One is replaced by a fresh one, and then it is the upstream's failure."""
        moody = Moody(Script(Pause(0.05), *ANSWER.steps))
        rig = await serve(moody)
        await asyncio.gather(*(rig.ask() for _ in range(8)))
        moody.script = Script(Close())
        reply = await rig.ask()
        assert (502, "false") == (reply.status, reply.headers["x-should-retry"])
        assert 10 == rig.upstream.received

    @pytest.mark.parametrize("last", [refused(503), refused(429)], ids=["503", "429"])
    async def test_the_first_may_have_acted(self, serve, last):
        """What the last one says is what the client is told, but not that it may ask again."""
        rig = await serve(refused(500), last, upstreams=BOTH, upstream={"retry_on": ["500", "503"]})
        assert "false" == (await rig.ask()).headers["x-should-retry"]

    async def test_drained(self, serve):
        """So is a request that an upstream has when the relay stops."""
        rig = await serve(Script(Hang()))
        asking = asyncio.create_task(rig.ask())
        await rig.upstream.request()
        await rig.app.drain(0)
        reply = await asking
        assert (503, "draining", "false") == (reply.status, reply.error["code"], reply.headers["x-should-retry"])


class TestWhoMayRetry:
    """`x-should-retry: false` stands where the upstream may have acted, and nowhere else."""

    @pytest.mark.parametrize(
        ("script", "told"),
        [(refused(500), "false"), (refused(503), None), (refused(429), None), (Script(Close()), "false")],
        ids=["500", "503", "429", "closed"],
    )
    async def test_answered(self, serve, script, told):
        rig = await serve(script)
        assert told == (await rig.ask()).headers.get("x-should-retry")

    async def test_nobody_there(self, serve):
        rig = await serve("http://127.0.0.1:1/v1")
        reply = await rig.ask()
        assert (502, None) == (reply.status, reply.headers.get("x-should-retry"))


class TestUsage:
    """What a meter asks of the upstream and the client does not see."""

    @pytest.mark.parametrize("wanted", [False, True])
    async def test_it_is_asked_for(self, serve, open_chain, wanted):
        """The meter sees it; the client only if it asked itself."""
        usage = frames.usage()
        script = streamed([*DATA[:-1], usage, DATA[-1]])
        rig = await serve(script, chain=[*open_chain, {"use": "fakes:Meter"}])
        fields = {"stream_options": {"include_usage": True}} if wanted else {}
        reply = await rig.ask(**fields)
        assert reply.data == b"".join([*DATA[:-1], *([usage] if wanted else []), DATA[-1]])
        assert 41 == sys.modules["fakes"].Meter.seen.pop()["prompt_tokens"]
        assert [] == sys.modules["fakes"].Meter.seen
        assert rig.upstream.requests[0].json["stream_options"] == {"include_usage": True}

    async def test_an_upstream_that_is_not_to_be_asked(self, serve, open_chain):
        rig = await serve(ANSWER, chain=[*open_chain, {"use": "fakes:Meter"}], upstream={"usage": "off"})
        assert (await rig.ask()).data == b"".join(DATA)
        assert "stream_options" not in rig.upstream.requests[0].json

    async def test_an_upstream_that_refuses_it(self, serve, open_chain):
        """It is asked again without, and never with it again; a client that asks for it is told what it says."""
        no = refused(422, frames.error_body("Unknown field: stream_options", code="unknown"))
        rig = await serve([no, ANSWER, ANSWER, no], chain=[*open_chain, {"use": "fakes:Meter"}])
        rig.loudest = "warning"
        assert [b"".join(DATA)] * 2 == [(await rig.ask()).data for _ in range(2)]
        assert 422 == (await rig.ask(stream_options={"include_usage": True})).status
        assert [True, False, False, True] == ["stream_options" in request.json for request in rig.upstream.requests]

    async def test_usage_beside_text_stays(self, serve, open_chain):
        """A frame that says something to a client goes to it as it came."""
        said = frames.data(
            b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","usage":{"prompt_tokens":1},'
            b'"choices":[{"index":0,"delta":{"content":"!"},"finish_reason":null}]}'
        )
        null = frames.data(
            b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","usage":null,"choices":[]}'
        )
        rig = await serve(streamed([DATA[0], said, null, *DATA[1:]]), chain=[*open_chain, {"use": "fakes:Meter"}])
        assert (await rig.ask()).data == b"".join([DATA[0], said, null, *DATA[1:]])
        assert [{"prompt_tokens": 1}] == [sys.modules["fakes"].Meter.seen.pop()]
