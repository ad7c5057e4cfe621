"""The test kit of plugin authors: one request through one plugin."""

import pytest
from subjects import Answers, EndsLater, Holds, RaisesInFeed, RaisesInRequest, Rejects, Spawns, StopsTwice

from relay import CALLER, Chunk, Exchange, Plugin, Reject, Sink
from relay.errors import Unavailable
from relay.exchange import Outcome
from relay.options import ConfigError
from relay.testing import frames
from relay.testing.reply import Lent
from relay.testing.run import UPSTREAM, run
from relay.testing.witness import CALLED


class Notes(Plugin):
    """Writes down what it meets."""

    needs = (CALLER,)

    async def on_request(self, ex):
        ex.reply_headers["x-caller"] = ex[CALLER]


async def test_a_stream():
    """The client gets the bytes of the upstream, however they were cut; the headers are those that plugins set."""
    events = b"".join(frames.stream(["Hel", "lo"]))
    for cuts in ((), None, range(0, 1000, 7)):
        reply, told, ex, sent, raised = await run(Notes(), answer=["Hel", "lo"], cuts=cuts)
        assert (200, "Hello") == (reply.status, reply.text)
        assert events.removesuffix(frames.done()) == reply.data
        assert CALLED == reply.headers["x-caller"]
        assert ([], [], "completed") == (told, raised, ex.outcome.kind)
        assert "Hi" == sent["messages"][0]["content"]
        assert "stop" == reply.events[-1]["choices"][0]["finish_reason"]


async def test_a_whole_reply():
    ran = await run(Holds(), stream=False, answer=["Hel", "lo"])
    assert "Hello" == ran.reply.text == ran.reply.json["choices"][0]["message"]["content"]


async def test_a_refusal():
    """Is the answer, as a client would have it; nobody was asked."""
    ran = await run(Rejects())
    assert (400, "no", None) == (ran.reply.status, ran.reply.json["error"]["code"], ran.sent)
    assert "refused" == ran.exchange.outcome.kind


async def test_an_early_answer():
    for stream in (True, False):
        ran = await run(Answers(), stream=stream)
        assert (200, "cached", None) == (ran.reply.status, ran.reply.text, ran.sent)


async def test_what_is_raised_is_named():
    ran = await run(RaisesInRequest())
    assert [("RaisesInRequest", "on_request")] == [(error.plugin, error.hook) for error in ran.raised]
    assert (500, "internal_error") == (ran.reply.status, ran.exchange.outcome.kind)
    ran = await run(RaisesInFeed())
    assert [("RaisesInFeed", "feed")] == [(error.plugin, error.hook) for error in ran.raised]
    assert 500 == ran.reply.status


class EndsInTheMidst(Plugin):
    """Lets one chunk pass, and ends the reply by an error."""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        class Ending:
            def feed(self, chunk: Chunk) -> None:
                sink.feed(chunk)
                ex.stop(Outcome("unavailable", Unavailable("Enough.", code="enough")))

            def end(self, outcome: Outcome) -> None:
                sink.end(outcome)

        return Ending()


async def test_an_error_in_the_midst():
    """Stands in the stream: the head has left."""
    ran = await run(EndsInTheMidst())
    assert 200 == ran.reply.status
    assert "enough" == ran.reply.events[-1]["error"]["code"]


@pytest.mark.parametrize("plugin", [EndsLater, Spawns, StopsTwice], ids=lambda plugin: plugin.__name__)
async def test_it_comes_to_an_end(plugin):
    """Also with plugins that are slow to end, leave work behind, or have seen enough."""
    assert 200 == (await run(plugin())).reply.status


class Marks(Plugin):
    async def on_request(self, ex):
        ex.reply_headers["x-mark"] = "seen"


class Refuses(Plugin):
    async def on_request(self, ex):
        raise Reject("No.", code="no", headers={"x-why": "because"})


async def test_others_before_it():
    ran = await run(Refuses(), before=[Marks()])
    assert {"x-mark": "seen", "x-why": "because"}.items() <= ran.reply.headers.items()


class NeedsMore(Plugin):
    async def on_reqest(self, ex):
        """A hook, misspelt."""


async def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match="did you mean 'on_request'"):
        await run(NeedsMore())


async def test_what_is_published():
    class Tells(Plugin):
        async def on_request(self, ex):
            lent.services.events.publish("cut", request_id=ex.id)

    lent = Lent()
    ran = await run(Tells(), lent=lent)
    assert [("cut", {"request_id": "request-1"})] == list(ran.events)


class WritesDown(Plugin):
    """Keeps what it is told at the end."""

    async def on_request(self, ex):
        ex.upstream_headers["x-tenant"] = "a"

    async def on_end(self, ex):
        self.told = ex.told


async def test_what_is_told_of_a_call():
    """The same as in a relay, streamed and not."""
    for stream in (True, False):
        plugin = WritesDown()
        ran = await run(plugin, answer=["Hel", "lo"], stream=stream)
        told = plugin.told
        assert ("POST", 200) == (told.method, told.status)
        assert (UPSTREAM, True, {0: "stop"}) == (told.call.server, told.call.answered, told.call.finish_reasons)
        assert ran.exchange.started <= told.call.asked_at <= told.call.first_at <= told.call.ended_at <= told.ended_at
        assert {"x-tenant": "a"} == dict(ran.exchange.upstream_headers)


async def test_what_is_told_of_a_refusal():
    plugin = WritesDown()
    await run(Refuses(), before=[plugin])
    assert (400, None) == (plugin.told.status, plugin.told.call)


class Signs(Plugin):
    """Sets a header that no head can hold."""

    async def on_request(self, ex):
        ex.reply_headers["x-a"] = "one\ntwo"


async def test_a_header_that_cannot_be_sent():
    """It is told here, where a relay would answer 500."""
    with pytest.raises(ValueError, match="the reply header 'x-a' cannot be sent"):
        await run(Signs())
