"""The modes of moderation, and what each kind of violation looks like to a client.

The moderator is Tencent's service, played by the fake that comes with the plugin.
"""

import asyncio

import openai
import pytest

from relay.testing import Close, Gate, Hang, Head, Script, Send, frames, streamed, whole
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake

BEFORE, PHRASE, AFTER = "It begins harmlessly, ", "forbidden fruit", " and there is more of it behind."
CLEAN = "A long and harmless story. " * 12
WINDOW = {"first_chars": 8, "sentence_chars": 8, "max_chars": 24, "max_wait_ms": 50}
CHARACTERS = "relay_moderation_characters_total"
NOTICE = "[removed]"
ASKED = {"model": "gpt-3.5-turbo-1106", "messages": [{"role": "user", "content": "canary-prompt"}]}
REFUSED = [{"role": "user", "content": f"Tell me of the {PHRASE}."}]


@pytest.fixture
def reader():
    """How upstream bodies are read is tested elsewhere."""
    return "push"


@pytest.fixture
async def tms():
    async with Fake(keep_calls=10_000, words=[{"word": PHRASE, "label": "Porn", "score": 97}]) as fake:
        yield fake


@pytest.fixture
def moderated(tms, open_chain):
    """A chain with the fake as its moderator; by default of replies alone."""

    def chain(**options):
        asked = {"use": "tencent", "secret_id": SECRET_ID, "secret_key": SECRET_KEY, "endpoint": tms.endpoint}
        return [
            *open_chain,
            {"use": "moderation", "moderators": [asked], "request": "off", "window": WINDOW, **options},
        ]

    return chain


def pieces(text, length=3):
    return [text[start : start + length] for start in range(0, len(text), length)]


def says(text, length=3):
    """An upstream that streams a text."""
    return streamed(frames.stream(pieces(text, length)))


BAD = says(BEFORE + PHRASE + AFTER)


def withdrawn(reply, surface="content"):
    """What a client keeps of choice 0 that takes back what it is told to."""
    text = reply.texts().get(0, "")
    for frame in reply.frames:
        for each in frame.get("relay", {}).get("withdraw", ()):
            assert frame["choices"] == []
            if (each["index"], each["surface"]) == (0, surface):
                text = text[: each["from"]]
    return text


class TestParallel:
    @pytest.fixture
    def parallel(self, moderated):
        return moderated(request="parallel", response="off")

    async def test_a_clean_prompt(self, serve, parallel):
        data = frames.stream(pieces(CLEAN))
        rig = await serve(streamed(data), chain=parallel)
        assert b"".join(data) == (await rig.ask()).data

    async def test_the_upstream_answers_first(self, serve, parallel, tms):
        """Nothing of its answer is seen before the verdict, not even the head."""
        tms.change(outage="slow", slow_ms=60_000)
        data = frames.stream(pieces(CLEAN))
        rig = await serve(streamed(data), chain=parallel)
        asking = asyncio.create_task(rig.ask())
        request = await rig.upstream.request()
        await rig.upstream.finished(request)
        await rig.until(lambda: rig.replies and rig.replies[0].writer)
        assert not asking.done()
        assert rig.replies[0].writer.chunks == 0
        tms.change(outage="none")  # for the second call
        assert b"".join(data) == (await asking).data

    async def test_a_prompt_that_the_lexicon_refuses(self, serve, moderated):
        """It costs nothing to ask the lexicon: no upstream is asked."""
        words = [{"use": "lexicon", "words": [PHRASE]}]
        rig = await serve(says(CLEAN), chain=moderated(request="parallel", response="off", moderators=words))
        reply = await rig.ask(messages=REFUSED)
        assert (400, "content_filter") == (reply.status, reply.error["code"])
        assert not rig.upstream.requests

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_prompt_is_refused_behind_an_answer(self, serve, parallel, stream):
        """The answer had begun: a clean 400 all the same, and the upstream is closed."""
        body = frames.stream(pieces(CLEAN))[:-2] if stream else [frames.body(CLEAN)[:50]]
        head = Head() if stream else Head(headers=(("Content-Type", "application/json"),))
        rig = await serve(Script(head, *map(Send, body), Hang()), chain=parallel)
        reply = await rig.ask(stream=stream, messages=REFUSED)
        assert (400, "content_filter") == (reply.status, reply.error["code"])
        for request in rig.upstream.requests:
            await rig.upstream.closed(request)
        assert ["refused"] == [line["outcome"] for line in await rig.ended()]

    async def test_a_prompt_is_refused_before_an_answer(self, serve, parallel):
        """The upstream takes its time for the head: nobody waits for it, and it is given up."""
        rig = await serve(Script(Hang()), chain=parallel)
        reply = await rig.ask(messages=REFUSED)
        assert (400, "content_filter") == (reply.status, reply.error["code"])
        for request in rig.upstream.requests:
            await rig.upstream.closed(request)
        assert ["refused"] == [line["outcome"] for line in await rig.ended()]

    async def test_a_prompt_is_refused_when_the_upstream_is_asked(self, serve, parallel, tms):
        """The same when the verdict comes in the middle of it."""
        tms.change(p50_ms=50, p99_ms=50)
        rig = await serve(Script(Hang()), chain=parallel)
        reply = await rig.ask(messages=REFUSED)
        assert (400, "content_filter") == (reply.status, reply.error["code"])
        await rig.upstream.closed(rig.upstream.requests[0])

    async def test_a_refusal_waits_for_no_verdict_on_the_reply(self, serve, moderated, tms):
        """The reply's own windows are out when the prompt is refused."""
        rig = await serve(
            Script(Head(), *map(Send, frames.stream(pieces(CLEAN))[:-2]), Hang()),
            chain=moderated(request="parallel", deadline_ms=60_000),
        )
        tms.change(p50_ms=50, p99_ms=50)
        reply = await rig.ask(messages=REFUSED)
        assert (400, "content_filter") == (reply.status, reply.error["code"])

    async def test_many(self, serve, parallel, tms):
        """Clean ones and refused ones at once, with any order of answer and verdict."""
        tms.change(p50_ms=5, p99_ms=80)
        rig = await serve(says(CLEAN, 20), chain=parallel)
        asked = [{"messages": REFUSED} if number % 3 == 0 else {"user": str(number)} for number in range(60)]
        replies = await asyncio.gather(*(rig.ask(**fields) for fields in asked))
        for fields, reply in zip(asked, replies, strict=True):
            if "messages" in fields:
                assert (400, "content_filter") == (reply.status, reply.error["code"])
            else:
                assert CLEAN == reply.texts()[0]

    async def test_the_client_leaves_while_it_waits(self, serve, parallel, tms):
        """Upstream and moderator are given up."""
        tms.change(outage="black_hole")
        rig = await serve(Script(Head(), *map(Send, frames.stream([CLEAN])[:-2]), Hang()), chain=parallel)
        wire = await rig.dial()
        wire.send(rig.request())
        request = await rig.upstream.request()
        await rig.until(lambda: rig.replies and rig.replies[0].delivery and rig.replies[0].delivery.reads)
        wire.leave("reset")
        await rig.upstream.closed(request)
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    async def test_the_client_leaves_before_the_head(self, serve, parallel, tms):
        tms.change(outage="black_hole")
        rig = await serve(Script(Hang()), chain=parallel)
        wire = await rig.dial()
        wire.send(rig.request())
        request = await rig.upstream.request()
        wire.leave("reset")
        await rig.upstream.closed(request)
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    @pytest.mark.parametrize("begun", [False, True])
    async def test_the_upstream_fails_while_the_verdict_is_out(self, serve, parallel, tms, begun):
        """Before its head that is the answer; inside its reply the verdict comes first."""
        tms.change(p50_ms=60, p99_ms=60)
        steps = [Head(), *map(Send, frames.stream(pieces(CLEAN))[:5])] if begun else []
        rig = await serve(Script(*steps, Close()), chain=parallel)
        reply = await rig.ask()
        if begun:
            assert "upstream_incomplete" == reply.broken_by
            assert CLEAN.startswith(reply.texts()[0])
        else:
            assert 502 == reply.status
        reply = await rig.ask(messages=REFUSED)
        assert reply.status == (400 if begun else 502)

    @pytest.mark.parametrize("begun", [False, True])
    async def test_without_a_verdict(self, serve, parallel, tms, begun):
        """The upstream may have been at work: a client that asked again by itself would pay twice."""
        tms.change(outage="refuse")
        script = Script(Head(), *map(Send, frames.stream([CLEAN])[:-2]), Hang()) if begun else Script(Hang())
        rig = await serve(script, chain=parallel)
        rig.loudest = "warning"
        reply = await rig.ask()
        assert (503, "moderation_unavailable") == (reply.status, reply.error["code"])
        assert "false" == reply.headers["x-should-retry"]

    async def test_what_a_client_never_saw_was_not_released(self, serve, moderated, tms):
        """Text that had passed behind a prompt that had not."""
        go = asyncio.Event()
        tms.change(outage="slow", slow_ms=300)
        rig = await serve(
            Script(Gate(go), Head(), *map(Send, frames.stream(pieces(CLEAN)))), chain=moderated(request="parallel")
        )
        asking = asyncio.create_task(rig.ask(messages=REFUSED))
        await rig.until(lambda: tms.counts.calls)
        tms.change(outage="none")
        go.set()
        await rig.upstream.finished(rig.upstream.requests[0])
        await rig.until(lambda: tms.counts.answered)
        assert 400 == (await asking).status
        await rig.ended()
        metrics = await rig.metrics()
        assert len(CLEAN) == metrics[f'{CHARACTERS}{{state="in"}}'] == metrics[f'{CHARACTERS}{{state="withheld"}}']


class TestDraining:
    @pytest.mark.parametrize("begun", [False, True])
    @pytest.mark.parametrize("request_", ["before", "parallel"])
    async def test_nobody_waits_for_a_verdict(self, serve, moderated, tms, request_, begun):
        """The relay stops while a prompt is judged, and says so."""
        tms.change(outage="black_hole")
        script = Script(Head(), *map(Send, frames.stream([CLEAN])[:-2]), Hang()) if begun else Script(Hang())
        rig = await serve(script, chain=moderated(request=request_, deadline_ms=60_000))
        asking = asyncio.create_task(rig.ask())
        await rig.until(lambda: tms.counts.calls)
        if request_ == "parallel":
            await rig.upstream.request()
            await rig.until(lambda: not begun or (rig.replies[0].delivery and rig.replies[0].delivery.reads))
        assert 1 == await rig.app.drain(0)
        reply = await asking
        assert (503, "draining") == (reply.status, reply.error["code"])
        assert ["drained"] == [line["outcome"] for line in await rig.ended()]

    @pytest.mark.parametrize("begun", [False, True])
    async def test_nor_for_one_on_a_reply(self, serve, moderated, tms, begun):
        """What is held is not sent, and the end is a clean one: an error, in the stream if that has begun."""
        tms.change(outage="black_hole")
        events = frames.stream(pieces(CLEAN))[0 if begun else 1 : -2]
        rig = await serve(Script(Head(), *map(Send, events), Hang()), chain=moderated(deadline_ms=60_000))
        asking = asyncio.create_task(rig.ask())
        await rig.until(lambda: tms.counts.calls)
        assert 1 == await rig.app.drain(0)
        reply = await asking
        assert "draining" == (reply.broken_by if begun else reply.error["code"])


class TestTrailing:
    @pytest.fixture
    def trailing(self, moderated):
        return lambda **options: moderated(response="trailing", **{"lead_chars": 60, **options})

    async def test_a_clean_reply(self, serve, trailing):
        data = frames.stream(pieces(CLEAN))
        rig = await serve(streamed(data), chain=trailing())
        assert b"".join(data) == (await rig.ask()).data

    async def test_text_leaves_before_its_verdict(self, serve, trailing, tms):
        """So much of it and no more; and the end only behind the last verdict."""
        tms.change(outage="black_hole")
        rig = await serve(says(CLEAN, 1), chain=trailing(deadline_ms=60_000))
        wire = await rig.dial()
        wire.send(rig.request())
        head = await wire.through(frames.text(CLEAN[44]))  # 60 without the 15 that are always held back
        assert b'finish_reason":"stop' not in head
        await rig.upstream.finished(rig.upstream.requests[0])
        await rig.until(lambda: tms.counts.calls)
        assert 46 == rig.replies[0].writer.chunks  # with the role
        wire.leave()

    @pytest.mark.parametrize("length", [1, 4, 20])
    async def test_a_violation_is_taken_back(self, serve, trailing, length):
        rig = await serve(says(BEFORE + PHRASE + AFTER, length), chain=trailing())
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert BEFORE.startswith(withdrawn(reply))
        if "relay" in reply.frames[-1]:
            assert [] == reply.frames[-1]["choices"]

    async def test_a_violation_that_has_left(self, serve, trailing, tms):
        """The whole text is out when the verdict comes."""
        tms.change(p50_ms=100, p99_ms=100)
        rig = await serve(BAD, chain=trailing(lead_chars=500))
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert PHRASE in reply.texts()[0]
        assert BEFORE.startswith(withdrawn(reply))
        assert "relay" in reply.frames[-1]

    async def test_a_violation_in_the_last_words_of_a_reply_without_a_finish(self, serve, trailing, tms):
        """All that it said has left; its end says what became of it."""
        tms.change(p50_ms=50, p99_ms=50)
        rig = await serve(
            streamed([frames.text(BEFORE + PHRASE), frames.done()]), chain=trailing(lead_chars=500, depth=1)
        )
        reply = await rig.ask()
        assert BEFORE.startswith(withdrawn(reply))
        assert {0: "content_filter"} == reply.finishes()

    async def test_no_verdict(self, serve, trailing, tms):
        """What nobody judged is taken back, and an error ends the stream."""
        tms.change(outage="black_hole")
        rig = await serve(says(CLEAN, 1), chain=trailing(deadline_ms=150))
        rig.loudest = "warning"
        reply = await rig.ask()
        assert "moderation_unavailable" == reply.broken_by
        assert 45 == len(reply.texts()[0])
        assert "" == withdrawn(reply)

    async def test_a_call_does_not_run_ahead(self, serve, trailing, tms):
        """What was called cannot be taken back."""
        tms.change(outage="black_hole")
        data = [frames.role(), frames.tool(name="weather"), *map(frames.tool, pieces('{"city": "東京"}'))]
        rig = await serve(
            streamed([*data, frames.finish("tool_calls"), frames.done()]), chain=trailing(deadline_ms=150)
        )
        rig.loudest = "warning"
        reply = await rig.ask()
        assert b"weather" not in reply.data
        assert "moderation_unavailable" == reply.broken_by

    async def test_a_whole_reply_waits(self, serve, trailing):
        """There is nothing to run ahead of."""
        rig = await serve(whole(frames.body(BEFORE + PHRASE)), chain=trailing())
        reply = await rig.ask(stream=False)
        assert {0: "content_filter"} == reply.finishes()
        assert PHRASE not in reply.texts()[0]


class TestShadow:
    async def test_nothing_is_held_and_everything_is_measured(self, serve, moderated, tms):
        """The reply is over before the first verdict; a violation in it is told afterwards."""
        tms.change(p50_ms=50, p99_ms=50)
        data = frames.stream(pieces(BEFORE + PHRASE + AFTER))
        rig = await serve(streamed(data), chain=moderated(response="shadow"))
        assert b"".join(data) == (await rig.ask()).data
        await rig.until(lambda: any(line["event"] == "violation" for line in rig.log))
        text = BEFORE + PHRASE + AFTER
        metrics = await rig.metrics()
        assert len(text) == metrics[f'{CHARACTERS}{{state="in"}}'] == metrics[f'{CHARACTERS}{{state="released"}}']
        assert len(text) == metrics['relay_released_unverified_characters_total{reason="shadow"}']
        assert 1 <= metrics['relay_moderation_checks_total{moderator="tencent",outcome="block"}']
        assert ["completed"] == [line["outcome"] for line in await rig.ended()]

    @pytest.mark.parametrize("outage", ["black_hole", "refuse"])
    async def test_a_service_that_is_down_changes_nothing(self, serve, moderated, tms, outage):
        tms.change(outage=outage)
        data = frames.stream(pieces(CLEAN))
        rig = await serve(streamed(data), chain=moderated(response="shadow", deadline_ms=100))
        rig.loudest = "warning"
        assert [b"".join(data)] * 10 == [(await rig.ask()).data for _ in range(10)]
        await rig.until(lambda: tms.counts.calls)


class TestWaiting:
    async def test_comments_while_text_is_held(self, serve, moderated, tms):
        """The head has gone; a client that waits is told that somebody is there."""
        tms.change(outage="black_hole")
        rig = await serve(says(CLEAN), chain=moderated(deadline_ms=60_000), server={"keepalive_s": 0.2})
        wire = await rig.dial()
        wire.send(rig.request())
        first = await wire.through(b"\n: ")
        assert b'"content":"A' not in first
        wire.leave()
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    async def test_leaving_gives_up_the_calls(self, serve, moderated, tms):
        tms.change(outage="black_hole")
        rig = await serve(says(CLEAN), chain=moderated(deadline_ms=60_000))
        wire = await rig.dial()
        wire.send(rig.request())
        await rig.until(lambda: tms.counts.calls)
        wire.leave("reset")
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]
        assert 'relay_moderation_checks_waiting{moderator="tencent"}' not in await rig.metrics()


class TestClients:
    """What the official client makes of a violation."""

    async def read(self, rig, **options):
        client = await rig.sdk()
        text, finish, extras = "", None, []
        async for chunk in await client.chat.completions.create(**ASKED, stream=True, **options):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
            extras += [chunk.model_extra["relay"]] if "relay" in (chunk.model_extra or {}) else []
        return text, finish, extras

    async def test_finish(self, serve, moderated):
        """A reply like any other, that ends early."""
        rig = await serve(BAD, chain=moderated())
        text, finish, _ = await self.read(rig)
        assert BEFORE.startswith(text)
        assert "content_filter" == finish

    async def test_finish_with_usage(self, serve, moderated):
        rig = await serve(BAD, chain=moderated())
        client = await rig.sdk()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        last = [chunk async for chunk in await client.chat.completions.create(**ASKED, **options)][-1]
        assert last.usage.total_tokens > 0

    async def test_replace(self, serve, moderated):
        """Its last words are the notice."""
        rig = await serve(BAD, chain=moderated(on_violation="replace", notice=NOTICE))
        text, finish, _ = await self.read(rig)
        assert text.endswith(NOTICE)
        assert BEFORE.startswith(text.removesuffix(NOTICE))
        assert "content_filter" == finish

    async def test_error(self, serve, moderated):
        rig = await serve(BAD, chain=moderated(on_violation="error"))
        with pytest.raises(openai.APIError) as caught:
            await self.read(rig)
        assert "content_filter" == caught.value.code

    async def test_trailing(self, serve, moderated, tms):
        """It iterates to the end; what to take back stands in a field that it hands on."""
        tms.change(p50_ms=50, p99_ms=50)
        rig = await serve(BAD, chain=moderated(response="trailing", lead_chars=500))
        text, finish, [extra] = await self.read(rig)
        assert "content_filter" == finish
        [each] = extra["withdraw"]
        assert BEFORE.startswith(text[: each["from"]])
        assert (0, "content") == (each["index"], each["surface"])

    async def test_a_refused_prompt(self, serve, moderated):
        rig = await serve(BAD, chain=moderated(request="parallel"))
        client = await rig.sdk()
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=ASKED["model"], messages=REFUSED, stream=True)
        assert "content_filter" == caught.value.code

    async def test_no_verdict(self, serve, moderated, tms):
        """It does not ask again by itself."""
        tms.change(outage="refuse")
        rig = await serve(streamed(frames.stream([CLEAN])[1:]), chain=moderated())
        rig.loudest = "warning"
        with pytest.raises(openai.InternalServerError) as caught:
            await self.read(rig)
        assert (503, "moderation_unavailable") == (caught.value.status_code, caught.value.code)
        assert 1 == len(rig.upstream.requests)

    async def test_whole(self, serve, moderated):
        rig = await serve(whole(frames.body(BEFORE + PHRASE + AFTER)), chain=moderated())
        client = await rig.sdk()
        answer = await client.chat.completions.create(**ASKED)
        assert "content_filter" == answer.choices[0].finish_reason
        assert BEFORE.startswith(answer.choices[0].message.content)
        assert 47 == answer.usage.total_tokens
