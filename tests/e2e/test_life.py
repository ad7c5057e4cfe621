"""A relay from its first request to its last: what it counts and tells, and how it stops."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from relay.testing import Gate, Hang, Head, Repeat, Script, Send, answers, frames, refused, streamed

HELLO = frames.stream(["Hel", "lo ", "世界"])
FRAME = frames.text("x" * 8192)


class TestTold:
    async def test_a_mixture(self, serve):
        """Every request is one line and one count, by how it ended; text is counted and never told."""
        rig = await serve([
            streamed(HELLO),
            streamed(HELLO),
            streamed(frames.stream(["canary-prompt", " forbidden fruit"])),
            streamed(HELLO[:-2]),
            refused(500, frames.error_body("canary-prompt sk-canary-upstream-91d4e7a03bc65f28")),
            refused(400, frames.error_body("You said canary", code="odd")),
            Script(Head(), Send(HELLO[0]), Hang()),
        ])  # fmt: skip
        for _ in range(6):
            await rig.ask()
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(HELLO[0])
        wire.leave()
        await rig.ended(7)
        await rig.ask(headers={"Authorization": "Bearer sk-nobody"})
        await rig.ask(model="")
        async with rig.session.get(rig.url + "/v1/models") as response:
            await response.read()
        lines = await rig.ended(10)
        outcomes = (
            ["completed"] * 2 + ["filtered"] + ["upstream_error"] * 2 + ["refused", "client_gone"] + ["refused"] * 2
        )
        assert [*outcomes, "completed"] == [line["outcome"] for line in lines]
        counted = await rig.metrics()
        expected = {("chat", outcome): outcomes.count(outcome) for outcome in outcomes} | {("models", "completed"): 1}
        assert expected == {
            (operation, outcome): counted.get(f'relay_requests_total{{operation="{operation}",outcome="{outcome}"}}')
            for operation, outcome in expected
        }
        refusals = {name.split('"')[1]: value for name, value in counted.items() if "relay_refusals_total" in name}
        assert (1, 1, 4) == (refusals["invalid_api_key"], refusals["invalid_model"], sum(refusals.values()))
        failures = [name for name in counted if name.startswith("relay_upstream_errors_total")]
        assert [True, True] == [any(f'"{kind}"' in name for name in failures) for kind in ("status", "incomplete")]
        assert 2 == sum(counted[name] for name in failures)
        answered = [value for name, value in counted.items() if "upstream_requests" in name and "answered" in name]
        assert [5] == answered
        characters = {name.split('"')[1]: value for name, value in counted.items() if "moderation_characters" in name}
        assert characters["in"] == characters["released"] + characters.get("withheld", 0) + characters["blocked"]
        assert len("Hello 世界") * 3 + len("canary-prompt") == characters["released"]

    async def test_a_line(self, serve):
        """It says who asked for what, who answered, and how long it took."""
        rig = await serve(streamed(HELLO))
        reply = await rig.ask()
        [line] = await rig.ended()
        said = {"operation": "chat", "outcome": "completed", "code": None, "status": 200, "caller": "tester"}
        said |= {"model": "gpt-3.5-turbo-1106", "stream": True, "upstream": "u0", "chunks": 5}
        assert said == {name: line[name] for name in said}
        assert reply.headers["x-request-id"] == line["request_id"]
        assert 0 < line["first_byte_ms"] <= line["duration_ms"]
        assert 0 < line["first_text_ms"] <= line["duration_ms"]
        parts = [line["upstream_ms"], line["moderation_ms"], line["relay_ms"]]
        assert line["first_text_ms"] == pytest.approx(sum(parts), abs=0.1)
        assert min(parts) >= 0
        assert all(took >= 0 for took in line["plugins_ms"].values())
        assert list(line["plugins_ms"]) == ["auth", "moderation"]

    async def test_the_fields_of_a_line_are_documented(self, serve):
        """Every line has all of them, also that of what was no request."""
        rig = await serve(streamed(HELLO))
        await rig.ask()
        await rig.ask(headers={"Authorization": "Bearer sk-nobody"})
        wire = await rig.dial()
        wire.send(b"GARBAGE\r\n\r\n")
        await wire.through(b"\r\n\r\n")
        page = Path(__file__).parents[2].joinpath("docs/operating.md").read_text(encoding="utf-8")
        table = page.partition("### The line of a request")[2].partition("\n## ")[0]
        documented = {
            name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
        }
        lines = await rig.ended(3)
        assert [documented | {"event"}] * 3 == [set(line) for line in lines]

    async def test_a_model_that_nobody_has_configured_is_no_label(self, serve):
        """Names from requests would make a series each."""
        rig = await serve(answers(["Hello"]))
        await rig.ask(model="canary-model")
        await rig.ended()
        assert [] == [name for name in await rig.metrics() if "canary" in name]


class TestDrain:
    async def test_readiness_turns_red_and_nobody_new_is_let_in(self, serve):
        """New requests are told to ask elsewhere; what was open goes on to its end."""
        go = asyncio.Event()
        rig = await serve(Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:]))))
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(HELLO[0])
        assert (200, []) == await rig.readiness()
        draining = asyncio.create_task(rig.app.drain(10))
        await rig.until(lambda: rig.app.draining)
        assert (503, ["draining"]) == await rig.readiness()
        reply = await rig.ask()
        assert (503, "draining", "1") == (reply.status, reply.error["code"], reply.headers["Retry-After"])
        assert "close" == reply.headers["Connection"]
        go.set()
        rest = await wire.through(b"0\r\n\r\n")
        assert all(frame in rest for frame in HELLO[1:])
        assert 0 == await draining
        assert ["unavailable", "completed"] == [line["outcome"] for line in rig.requests]

    async def test_what_does_not_end_in_time_is_ended(self, serve):
        """A stream gets an error and [DONE], a reply that is not streamed a 503; the upstreams are closed."""
        json_head = Head(framing=100, headers=(("Content-Type", "application/json"),))
        rig = await serve([Script(Head(), Send(HELLO[0]), Hang()), Script(json_head, Send(b"{"), Hang())])
        stream, whole = await rig.dial(), await rig.dial()
        stream.send(rig.request())
        await rig.upstream.request(1)
        await rig.until(lambda: rig.replies[0].delivery)
        whole.send(rig.request(stream=False))
        await rig.until(lambda: len(rig.replies) == 2 and all(reply.delivery for reply in rig.replies))
        assert 2 == await rig.app.drain(0)
        reply = await stream.reply()
        assert (200, "draining") == (reply.status, reply.broken_by)
        reply = await whole.reply()
        assert (503, "draining") == (reply.status, reply.error["code"])
        assert ["drained"] * 2 == [line["outcome"] for line in rig.requests]
        for request in rig.upstream.requests:
            await rig.upstream.closed(request)

    async def test_what_has_not_begun_is_told_so(self, serve, monkeypatch):
        """At once, also where no end could reach: an upstream that has not answered, a body that has not come."""
        monkeypatch.setattr("relay.app.END_S", 60)
        rig = await serve(Script(Hang()))
        asked, slow = await rig.dial(), await rig.dial()
        asked.send(rig.request())
        request = await rig.upstream.request()
        slow.send(rig.request()[:-5])
        await rig.until(lambda: len(rig.replies) == 2)
        assert 2 == await rig.app.drain(0)
        for wire in (asked, slow):
            reply = await wire.reply()
            assert (503, "draining") == (reply.status, reply.error["code"])
        await rig.upstream.closed(request)
        assert ["drained"] * 2 == [line["outcome"] for line in rig.requests]

    async def test_a_client_that_does_not_read_holds_nothing_up(self, serve, monkeypatch):
        """It is cut off."""
        monkeypatch.setattr("relay.app.END_S", 0.1)
        rig = await serve(Script(Head(), Repeat((Send(FRAME),))), buffer=32768)
        wire = await rig.dial(receive_buffer_bytes=4096, limit=2048)
        wire.send(rig.request())
        await rig.upstream.stalled(await rig.upstream.request())
        assert 1 == await rig.app.drain(0)
        assert [] == rig.replies

    async def test_every_end_is_told_before_the_plugins_are_closed(self, serve, open_chain):
        """Also that of a reply which is cut off because the relay stops without draining."""
        rig = await serve(
            [streamed(HELLO), Script(Head(), Send(HELLO[0]), Hang())], chain=[*open_chain, {"use": "fakes:Ledger"}]
        )
        await rig.ask()
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(HELLO[0])
        await rig.stop()
        assert ["completed", "client_gone", "closed"] == sys.modules["fakes"].Ledger.told
        assert 2 == len(rig.requests)
