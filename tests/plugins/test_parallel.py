"""`request = "parallel"`: the upstream is asked at once, and nothing of its reply is seen before the request's verdict."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import field
from typing import Any

import pytest

from relay.delivery import StreamDelivery
from relay.errors import ModerationError, Reject, upstream_incomplete
from relay.exchange import Exchange, Outcome
from relay.moderator import PASS, Context, Moderator, Unavailable, Verdict
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, Lent, exchange
from relay_plugins.moderation import Moderation, Window

BLOCK = Verdict("block", "Illegal", 90)
HELLO = frames.stream(["Hello", " world"])


class Asked(Moderator):
    """Says of requests what the test says, when it says it; passes replies, or never answers for them."""

    answers_replies: bool = True
    verdict: asyncio.Future[Verdict] = field(init=False)

    def __post_init__(self) -> None:
        self.verdict = asyncio.get_running_loop().create_future()

    async def check(self, text: str, context: Context) -> Verdict:
        if context.direction == "request":
            return await asyncio.shield(self.verdict)
        if not self.answers_replies:
            await asyncio.get_running_loop().create_future()
        return PASS


class Talk:
    """One request whose verdict is still out, and its reply."""

    def __init__(self, moderator: Asked, ex: Exchange, body: HandBody, kept: Kept) -> None:
        self.moderator = moderator
        self.ex = ex
        self.body = body
        self.kept = kept

    async def says(self, verdict: Verdict | Exception) -> None:
        if isinstance(verdict, Exception):
            self.moderator.verdict.set_exception(verdict)
        else:
            self.moderator.verdict.set_result(verdict)
        await turns()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def talking(*, answers_replies: bool = True, begins: bool = True, **options: Any) -> AsyncIterator[Talk]:
    """The request has been let on; with `begins` the head of the reply has come."""
    moderator = Asked(answers_replies=answers_replies)
    plugin = Moderation(moderators=(moderator,), **{"request": "parallel", "response": "off"} | options)
    ex, body, kept = exchange(), HandBody(), Kept()
    async with plugin.lifespan(Lent().services):
        assert await plugin.on_request(ex) is None
        await turns()
        talk = Talk(moderator, ex, body, kept)
        if begins:
            StreamDelivery(ex, plugin.on_stream(ex, kept), body).start()
        yield talk
        await ex.close()
        moderator.verdict.cancel()


async def test_nothing_leaves_before_the_verdict() -> None:
    """What came is sent when the request has passed, and the rest as it comes."""
    async with talking() as talk:
        talk.body.say(*HELLO[:2])
        await turns()
        assert talk.kept.chunks == []
        await talk.says(PASS)
        assert talk.kept.raw == b"".join(HELLO[:2])
        talk.body.say(*HELLO[2:])
        assert talk.kept.raw == b"".join(HELLO[:-1])
        assert talk.kept.ends == [Outcome("completed")]


async def test_a_whole_reply_before_the_verdict() -> None:
    """Its end is held like everything else."""
    async with talking() as talk:
        talk.body.say(*HELLO)
        await turns()
        assert talk.kept.ends == []
        await talk.says(PASS)
        assert talk.kept.raw == b"".join(HELLO[:-1])
        assert talk.kept.ends == [Outcome("completed")]


async def test_a_verdict_before_the_reply() -> None:
    async with talking() as talk:
        await talk.says(PASS)
        talk.body.say(*HELLO)
        assert talk.kept.raw == b"".join(HELLO[:-1])


@pytest.mark.parametrize("said", [0, 2, len(HELLO)])
async def test_a_refusal_is_the_answer(said: int) -> None:
    """Whatever has come by then; the upstream is closed, and later text goes nowhere."""
    async with talking() as talk:
        talk.body.say(*HELLO[:said])
        await turns()
        await talk.says(BLOCK)
        assert talk.kept.chunks == []
        [outcome] = talk.kept.ends
        assert outcome.kind == "refused"
        assert isinstance(outcome.error, Reject)
        assert (outcome.error.status, outcome.error.code) == (400, "content_filter")
        assert talk.body.closed or said == len(HELLO)
        talk.body.say(*HELLO)
        assert talk.kept.chunks + talk.kept.late == []


async def test_a_refusal_before_the_reply_stops_the_asking() -> None:
    """Nobody waits for the head of a reply that is not wanted."""

    class Asking:
        outcome: Outcome | None = None

        def pause(self) -> None: ...

        def resume(self) -> None: ...

        def stop(self, outcome: Outcome) -> None:
            self.outcome = outcome

    async with talking(begins=False) as talk:
        asking = Asking()
        talk.ex.attach(asking)
        await talk.says(BLOCK)
        assert asking.outcome is not None
        assert asking.outcome.error is not None
        assert asking.outcome.error.code == "content_filter"


async def test_without_a_verdict() -> None:
    """The error says that an upstream may have been at work: a client that asked again by itself would pay twice."""
    async with talking() as talk:
        talk.body.say(*HELLO)
        await talk.says(Unavailable("gone"))
        [outcome] = talk.kept.ends
        assert isinstance(outcome.error, ModerationError)
        assert (outcome.error.status, outcome.error.code) == (503, "moderation_unavailable")
        assert outcome.error.headers["x-should-retry"] == "false"


async def test_without_a_verdict_and_open() -> None:
    async with talking(on_failure="open") as talk:
        talk.body.say(*HELLO)
        await talk.says(Unavailable("gone"))
        assert talk.kept.raw == b"".join(HELLO[:-1])


async def test_a_refusal_waits_for_no_other_verdict() -> None:
    """Those on windows of the reply are not awaited."""
    window = Window(first_chars=1, sentence_chars=1, max_chars=1)
    async with talking(answers_replies=False, response="strict", window=window) as talk:
        talk.body.say(*HELLO)
        await turns()
        await talk.says(BLOCK)
        assert [outcome.kind for outcome in talk.kept.ends] == ["refused"]
        await talk.ex.close()
        await turns()
        assert [outcome.kind for outcome in talk.kept.ends] == ["refused"]
        assert talk.kept.chunks + talk.kept.late == []


async def test_an_upstream_that_fails_meanwhile() -> None:
    """What it had said is sent with its error once the request has passed; a refusal stands in the place of both."""
    for verdict, kinds, said in ((PASS, ["upstream_error"], 2), (BLOCK, ["refused"], 0)):
        async with talking() as talk:
            talk.body.say(*HELLO[:2])
            talk.body.eof()
            await turns()
            assert talk.kept.ends == []
            await talk.says(verdict)
            assert [outcome.kind for outcome in talk.kept.ends] == kinds
            assert talk.kept.raw == b"".join(HELLO[:said])
            if verdict is PASS:
                assert talk.kept.ends[0].error is not None
                assert talk.kept.ends[0].error.code == upstream_incomplete().code


@pytest.mark.parametrize("kind", ["client_gone", "drained"])
@pytest.mark.parametrize("said", [0, 2])
async def test_an_end_that_waits_for_nothing(kind: Any, said: int) -> None:
    """A client that is gone, or a relay that stops, waits for no verdict; and one that comes late changes nothing."""
    async with talking() as talk:
        talk.body.say(*HELLO[:said])
        talk.ex.stop(Outcome(kind))
        await turns()
        assert [outcome.kind for outcome in talk.kept.ends] == [kind]
        await talk.says(BLOCK)
        assert [outcome.kind for outcome in talk.kept.ends] == [kind]
        assert talk.kept.chunks + talk.kept.late == []


async def test_an_exchange_that_ends_first() -> None:
    """The end that was held is not lost when the verdict never comes."""
    async with talking() as talk:
        talk.body.say(*HELLO)
        await turns()
        await talk.ex.close()
        await turns()
        assert [outcome.kind for outcome in talk.kept.ends] == ["client_gone"]
        assert talk.kept.chunks == []


async def test_a_fault_in_a_moderator_of_ours() -> None:
    """A bug says nothing about the text: nothing is sent, and nothing of it is told."""
    async with talking() as talk:
        talk.body.say(*HELLO)
        await talk.says(RuntimeError("secret"))
        [outcome] = talk.kept.ends
        assert outcome.error is not None
        assert "secret" not in str(outcome.error)
        assert talk.kept.chunks == []


async def test_what_is_held_is_bounded() -> None:
    """The upstream is paused, and goes on when the request has passed."""
    async with talking(held_bytes=4096) as talk:
        text = [frames.text("x" * 1000) for _ in range(8)]
        for frame in text:
            talk.body.say(frame)
        assert talk.body.paused
        await talk.says(PASS)
        assert not talk.body.paused
        assert not talk.body.reentered
        assert talk.kept.raw == b"".join(text)
