"""Clients that leave: at any point, in any manner, one and a thousand of them. Nothing stays behind."""

import asyncio
import sys

import pytest

from relay.testing import Gate, Hang, Head, Pause, Repeat, Script, Send, Split, frames, streamed

HELLO = frames.stream(["Hel", "lo ", "世界"])
FRAME = frames.text("x" * 8192)
MANNERS = ["close", "reset", "half"]


@pytest.fixture
def ponder(guarded):
    """A chain whose moderator gives no verdict on what holds the word "ponder"."""
    lexicon = {"use": "lexicon", "words": ["forbidden fruit"]}
    return guarded(moderators=[lexicon, {"use": "fakes:Waiting"}], deadline_ms=60_000)


@pytest.fixture
def waiting():
    """The texts that this moderator ponders."""

    def asked():
        return sys.modules["fakes"].Waiting.asked if "fakes" in sys.modules else []

    asked().clear()
    yield asked
    asked().clear()


async def gone(rig, outcome="client_gone"):
    """Wait for the end of the one request and look at what is known of it."""
    [line] = await rig.ended()
    assert outcome == line["outcome"]
    return line


@pytest.mark.parametrize("how", MANNERS)
class TestOne:
    async def test_before_the_head_of_its_request_has_come(self, serve, how):
        """No request, no line."""
        rig = await serve(streamed(HELLO))
        wire = await rig.dial()
        wire.send(rig.request()[:40])
        wire.leave(how)
        await rig.ask()
        assert 1 == len(await rig.ended())

    async def test_in_the_middle_of_its_body(self, serve, how):
        """The upstream is not asked."""
        rig = await serve(streamed(HELLO))
        wire = await rig.dial()
        wire.send(rig.request()[:-5])
        await rig.until(lambda: rig.replies)
        wire.leave(how)
        await gone(rig)
        assert 0 == rig.upstream.received

    async def test_while_its_prompt_is_moderated(self, serve, ponder, waiting, how):
        """The upstream is not asked."""
        rig = await serve(streamed(HELLO), chain=ponder)
        wire = await rig.dial()
        wire.send(rig.request(messages=[{"role": "user", "content": "ponder canary-prompt"}]))
        await rig.until(waiting)
        wire.leave(how)
        await gone(rig)
        assert 0 == rig.upstream.received

    @pytest.mark.parametrize("stream", [True, False])
    async def test_before_the_upstream_answers(self, serve, how, stream):
        """The upstream's connection is closed."""
        rig = await serve(Script(Hang()))
        wire = await rig.dial()
        wire.send(rig.request(stream=stream))
        request = await rig.upstream.request()
        wire.leave(how)
        await rig.upstream.closed(request)
        await gone(rig)

    async def test_before_the_first_frame(self, serve, how):
        """The head of the upstream has come, ours has not left."""
        rig = await serve(Script(Head(), Hang()))
        wire = await rig.dial()
        wire.send(rig.request())
        request = await rig.upstream.request()
        await rig.until(lambda: rig.replies[0].delivery)
        wire.leave(how)
        await rig.upstream.closed(request)
        await gone(rig)

    async def test_in_the_middle_of_a_whole_reply(self, serve, how):
        """Half a body has come."""
        rig = await serve(
            Script(Head(framing=1000, headers=(("Content-Type", "application/json"),)), Send(b"{"), Hang())
        )
        wire = await rig.dial()
        wire.send(rig.request(stream=False))
        request = await rig.upstream.request()
        await rig.until(lambda: rig.replies[0].delivery)
        wire.leave(how)
        await rig.upstream.closed(request)
        await gone(rig)

    async def test_between_two_frames(self, serve, how):
        """The upstream is silent at the moment."""
        rig = await serve(Script(Head(), Send(HELLO[0]), Hang()))
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(HELLO[0])
        wire.leave(how)
        await rig.upstream.closed(rig.upstream.requests[0])
        assert 1 == (await gone(rig))["chunks"]

    async def test_while_frames_come(self, serve, how):
        """The upstream never stops."""
        rig = await serve(Script(Head(), Repeat((Send(FRAME),))))
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(FRAME)
        wire.leave(how)
        await rig.upstream.closed(rig.upstream.requests[0])
        await gone(rig)

    async def test_while_its_upstream_is_held_up_for_it(self, serve, how):
        """It had not read for long."""
        rig = await serve(Script(Head(), Repeat((Send(FRAME),))), buffer=32768)
        wire = await rig.dial(receive_buffer_bytes=4096, limit=2048)
        wire.send(rig.request())
        request = await rig.upstream.request()
        await rig.until(lambda: rig.replies and rig.replies[0].ex.paused)
        wire.leave("reset" if how == "half" else how)  # who ends its own side only may still mean to read
        await rig.upstream.closed(request)
        await gone(rig)

    async def test_while_its_answer_is_moderated(self, serve, ponder, waiting, how):
        """The verdict is not waited for."""
        said = frames.stream(["Let me ponder. " * 10])
        rig = await serve(Script(Head(), Send(b"".join(said[:-1])), Hang()), chain=ponder)
        wire = await rig.dial()
        wire.send(rig.request())
        await rig.until(waiting)
        wire.leave(how)
        await rig.upstream.closed(rig.upstream.requests[0])
        await gone(rig)

    async def test_after_the_end(self, serve, how):
        """It has all that it asked for: no fault of anybody's."""
        rig = await serve(Script(Head(), Send(b"".join(HELLO)), Hang()))
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(b"[DONE]\n\n")
        wire.leave(how)
        await gone(rig, "completed")


class TestHeld:
    async def test_an_answer_whose_upstream_has_ended_is_not_completed_by_leaving(self, serve, ponder, waiting):
        """All had come, the verdict had not: what the client has not seen was not delivered."""
        rig = await serve(streamed(frames.stream(["Let me ponder. " * 10])), chain=ponder)
        wire = await rig.dial()
        wire.send(rig.request())
        await rig.until(waiting)
        await rig.upstream.finished(rig.upstream.requests[0])
        wire.leave("reset")
        await gone(rig)


class TestMany:
    SCRIPTS = (
        Script(Hang()),
        Script(Head(), Hang()),
        Script(Head(), Send(b"".join(HELLO[:2])), Hang()),
        Script(Head(), Repeat((Send(HELLO[1]), Pause(0.001)))),
        Script(Head(), Repeat((Send(FRAME),))),
        Script(Head(), Split(b"".join(HELLO))),
        Script(Head(), Send(b"".join(HELLO)), Hang()),
    )

    async def test_a_thousand(self, serve):
        """Each at a moment of its own: tasks, sockets, replies and connections come back to nothing."""
        count, at_once = 1000, 50
        rig = await serve(lambda request: self.SCRIPTS[request.connection % len(self.SCRIPTS)])
        before = len(asyncio.all_tasks())

        async def leave(number):
            wire = await rig.dial()
            wire.send(rig.request())
            await rig.upstream.until(lambda: rig.upstream.received > number // 2)
            for _ in range(number % 23):
                await asyncio.sleep(0)
            wire.leave(("close", "reset")[number % 2])

        for start in range(0, count, at_once):
            await asyncio.gather(*(leave(number) for number in range(start, start + at_once)))
        await rig.until(lambda: not rig.replies and not rig.app._tasks)
        await rig.upstream.until(lambda: rig.upstream.open_connections <= 1, timeout_s=10)
        await rig.until(lambda: len(asyncio.all_tasks()) <= before + rig.upstream.open_connections)
        outcomes = [line["outcome"] for line in rig.requests]
        assert {"client_gone", "completed"} >= set(outcomes)
        assert count / 2 < len(outcomes) <= count  # who left before its request was read has no line

    async def test_a_thousand_streams_at_once(self, serve):
        """They are open at the same time, each gets its own, and then all is as before."""
        count, go = 1000, asyncio.Event()
        rig = await serve(Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:]))))
        wires = []
        for _ in range(count):
            wire = await rig.dial()
            wire.send(rig.request(headers=("Connection: close",)))
            wires.append(wire)
        await rig.until(lambda: len(rig.replies) == count and all(reply.writer for reply in rig.replies))
        assert count == (await rig.metrics())["relay_open_streams"]
        go.set()
        for wire in wires:
            assert b"".join(HELLO) == (await wire.reply()).data
        assert count == len(await rig.ended(count))
