"""Rates, requests in flight and parameters, through a real relay: what clients are told, and that no slot is lost."""

import asyncio
import json
from itertools import pairwise

import openai
import pytest

from relay.testing import Close, Gate, Hang, Head, Script, Send, answers, frames, refused, streamed, whole

HELLO = frames.stream(["Hel", "lo ", "世界"])
ASKED = {"model": "gpt-3.5-turbo-1106", "messages": [{"role": "user", "content": "canary-prompt"}]}
NAMES = tuple(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset"))


@pytest.fixture
def limited(open_chain):
    """The shipped chain as far as it is about limits. 600 requests may come, and none comes back while a test runs."""

    def chain(**options):
        slow = {"requests_per_minute": 1, "burst": 600}
        return [*open_chain, {"use": "parameters"}, {"use": "rate_limit", **slow, **options}]

    return chain


def limiter(rig):
    """The plugin itself."""
    [plugin] = [link.plugin for link in rig.app.generation.chain.links if link.name == "rate_limit"]
    return plugin


def slots(rig):
    """How many requests are counted as open."""
    return limiter(rig)._limiter.here.in_flight("key", "tester")


def told(headers):
    """The limit and what remains; the reset is the clock's business."""
    assert headers[NAMES[2]].endswith("s")
    return tuple(int(headers[name]) for name in NAMES[:2])


class TestTheRate:
    async def test_on_every_reply(self, serve, limited):
        """Streamed, whole, a list, a refusal by the upstream: each counts and says what is left."""
        rig = await serve([streamed(HELLO), whole(frames.body("Hi")), refused(400), refused(500)], chain=limited())
        assert (600, 599) == told((await rig.ask()).headers)
        assert (600, 598) == told((await rig.ask(stream=False)).headers)
        for status, left in ((400, 597), (502, 596)):
            reply = await rig.ask()
            assert (status, (600, left)) == (reply.status, told(reply.headers))
        async with rig.session.get(rig.url + "/v1/models") as response:
            assert (200, (600, 595)) == (response.status, told(response.headers))

    async def test_over_it(self, serve, limited):
        """429 as OpenAI says it, before the upstream hears of it; for lists too."""
        rig = await serve(answers(["Hello"]), chain=limited(burst=2))
        for left in (1, 0):
            assert (2, left) == told((await rig.ask()).headers)
        for ask in (rig.ask(), rig.ask(stream=False), self.models(rig)):
            status, headers, error = await self.refusal(ask)
            assert (429, (2, 0)) == (status, told(headers))
            assert ("rate_limit_exceeded", "requests", None) == (error["code"], error["type"], error["param"])
            assert error["message"].startswith(
                "Rate limit reached on requests per minute: limit 1, 2 at once. Try again in "
            )
            assert 0 < int(headers["Retry-After"]) <= 60
        assert 2 == rig.upstream.received
        assert 3 == (await rig.metrics())['relay_refusals_total{code="rate_limit_exceeded"}']
        await rig.ended(5)
        assert 0 == slots(rig)

    async def models(self, rig):
        async with rig.session.get(rig.url + "/v1/models") as response:
            return response.status, response.headers, (await response.json())["error"]

    async def refusal(self, asking):
        reply = await asking
        return reply if isinstance(reply, tuple) else (reply.status, reply.headers, reply.error)

    async def test_who_is_not_let_in(self, serve, limited):
        """Costs nobody anything, and is told nothing."""
        rig = await serve(answers(["Hello"]), chain=limited(burst=2))
        for _ in range(3):
            reply = await rig.ask(headers={"Authorization": "Bearer sk-wrong"})
            assert (401, []) == (reply.status, [name for name in NAMES if name in reply.headers])
        assert (2, 1) == told((await rig.ask()).headers)


class TestInFlight:
    @pytest.mark.parametrize("stream", [True, False])
    async def test_one_too_many(self, serve, limited, stream):
        """429 while the others are open, at no cost to the rate; when one has ended there is room again."""
        go = asyncio.Event()
        open_until = Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:])))
        last = streamed(HELLO) if stream else whole(frames.body("Hello"))
        rig = await serve([open_until, open_until, last], chain=limited(concurrent_streams=2))
        async with rig.post() as first, rig.post() as second:
            for _ in range(3):
                reply = await rig.ask(stream=stream)
                assert (429, "1", (600, 598)) == (reply.status, reply.headers["Retry-After"], told(reply.headers))
                assert "too_many_requests_in_flight" == reply.error["code"]
            assert 2 == slots(rig) == rig.upstream.received
            go.set()
            for open_one in (first, second):
                assert b"".join(HELLO) == await open_one.read()
        await rig.ended(5)
        assert 0 == slots(rig)
        assert (200, (600, 597)) == ((reply := await rig.ask(stream=stream)).status, told(reply.headers))
        assert 3 == (await rig.metrics())['relay_refusals_total{code="too_many_requests_in_flight"}']

    @pytest.mark.parametrize("stream", [True, False])
    async def test_one_after_the_other(self, serve, limited, stream):
        """One slot is enough for a client that asks as soon as it has its answer."""
        rig = await serve(answers(["Hel", "lo"]), chain=limited(concurrent_streams=1))
        assert [200] * 30 == [(await rig.ask(stream=stream)).status for _ in range(30)]
        wire = await rig.dial()
        wire.send(rig.request(stream=stream) * 10)  # pipelined: answered one after the other
        assert [200] * 10 == [(await wire.reply()).status for _ in range(10)]

    @pytest.mark.parametrize(
        "script",
        [
            streamed(HELLO),
            refused(400),
            refused(401),
            refused(429),
            refused(500),
            Script(Close()),
            Script(Head(), Close()),
            Script(Head(), Send(HELLO[0]), Close()),
            streamed([*HELLO[:2], frames.error()]),
            streamed([*HELLO[:2], b"garbage\n\n"]),
        ],
        ids=["good", "400", "401", "429", "500", "none", "empty", "broken off", "error", "garbage"],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_whatever_the_upstream_does(self, serve, limited, script, stream):
        """The slot is given back, every time."""
        rig = await serve(script, chain=limited(concurrent_streams=1))
        for count in range(1, 4):
            assert "x-ratelimit-limit-requests" in (await rig.ask(stream=stream)).headers
            await rig.ended(count)
            assert 0 == slots(rig)

    @pytest.mark.parametrize("how", ["close", "reset", "half"])
    @pytest.mark.parametrize(
        "script",
        [Script(Hang()), Script(Head(), Hang()), Script(Head(), Send(HELLO[0]), Hang())],
        ids=["before the answer", "before the first frame", "in the answer"],
    )
    async def test_whenever_the_client_leaves(self, serve, limited, script, how):
        """The slot is given back when all is settled."""
        rig = await serve(script, chain=limited(concurrent_streams=1))
        for count in range(1, 4):
            wire = await rig.dial()
            wire.send(rig.request())
            await rig.upstream.until(lambda count=count: rig.upstream.received == count)
            assert 1 == slots(rig)
            wire.leave(how)
            await rig.ended(count)
            assert 0 == slots(rig)

    async def test_a_request_that_never_comes_whole(self, serve, limited):
        """Whoever leaves in the middle of a body, or sends none that can be read, holds nothing."""
        rig = await serve(answers(["Hello"]), chain=limited(concurrent_streams=1))
        wire = await rig.dial()
        wire.send(rig.request()[:-5])
        await rig.until(lambda: rig.replies)
        wire.leave()
        await rig.ended()
        assert 400 == (await rig.ask(messages=[])).status
        assert 400 == (await rig.ask(temperature=3)).status
        assert 0 == slots(rig)
        assert 200 == (await rig.ask()).status

    async def test_refused_behind_it(self, serve, limited, guarded):
        """What moderation refuses has its slot back, and has been counted."""
        *_, moderation = guarded()
        rig = await serve(answers(["Hello"]), chain=[*limited(concurrent_streams=1), moderation])
        for left in (599, 598, 597):
            reply = await rig.ask(messages=[{"role": "user", "content": "forbidden fruit"}])
            assert (400, "content_filter") == (reply.status, reply.error["code"])
            assert (600, left) == told(reply.headers)
        await rig.ended(3)
        assert 0 == slots(rig)


class TestTokens:
    async def test_what_was_used(self, serve, limited):
        """The upstream's usage counts, which the client did not ask for and does not see; or what was sent, if it says none."""
        usage = frames.stream(["Hel", "lo"], tokens=(700, 50))
        rig = await serve(
            [streamed(usage), streamed(HELLO), whole(frames.body("Hi", tokens=(30, 20))), streamed(HELLO)],
            chain=limited(tokens_per_minute=10_000, characters_per_minute=20_000),
        )
        names = [f"x-ratelimit-remaining-{what}" for what in ("tokens", "characters")]
        left = []
        for count, stream in enumerate((True, True, False, True), 1):
            reply = await rig.ask(stream=stream, max_tokens=100)
            left.append([int(reply.headers[name]) for name in names])
            await rig.ended(count)
            assert not stream or b'"usage"' not in reply.data
        assert [True, True, None] == [
            (request.json.get("stream_options") or {}).get("include_usage")
            for request in list(rig.upstream.requests)[:3]
        ]
        assert 750 == left[0][0] - left[1][0]
        assert 0 < left[1][0] - left[2][0] < 50
        assert 50 == left[2][0] - left[3][0]
        prompt = 20_000 - 400 - left[0][1]
        assert [prompt + 5, prompt + 8, prompt + 2] == [before[1] - after[1] for before, after in pairwise(left)]


class TestOpenAi:
    async def test_it_raises_its_own_error(self, serve, limited):
        """RateLimitError with our code, and the headers where it looks for them."""
        rig = await serve(answers(["Hello"]), chain=limited(burst=1))
        client = await rig.sdk(max_retries=0)
        raw = await client.chat.completions.with_raw_response.create(**ASKED)
        assert ("1", "0", "1m0s") == tuple(raw.headers[name] for name in NAMES)
        for stream in (True, False):
            with pytest.raises(openai.RateLimitError) as raised:
                await client.chat.completions.create(**ASKED, stream=stream)
            assert ("rate_limit_exceeded", "requests") == (raised.value.code, raised.value.type)
            assert 0 < int(raised.value.response.headers["retry-after"]) <= 60
        assert 3 == len(await rig.ended(3))

    async def test_it_waits_as_long_as_it_is_told(self, serve, limited, monkeypatch):
        """By itself it comes back when the relay said, which is longer than it waits for others, and is served."""
        rig = await serve(answers(["Hello"]), chain=limited(burst=1))
        waits = []

        async def pass_the_time(seconds):
            waits.append(seconds)
            limiter(rig)._limiter.here._callers.clear()

        monkeypatch.setattr("anyio.sleep", pass_the_time)
        client = await rig.sdk()
        for _ in range(2):
            answer = await client.chat.completions.create(**ASKED)
            assert "Hello" == answer.choices[0].message.content
        assert [None, "rate_limit_exceeded", None] == [line["code"] for line in await rig.ended(3)]
        [wait] = waits
        assert 8 < wait <= 60

    async def test_too_many_in_flight(self, serve, limited):
        """The same class, another code."""
        rig = await serve(Script(Head(), Send(HELLO[0]), Hang()), chain=limited(concurrent_streams=1))
        client = await rig.sdk(max_retries=0)
        stream = await client.chat.completions.create(**ASKED, stream=True)
        await anext(stream)
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(**ASKED)
        assert ("too_many_requests_in_flight", "1") == (raised.value.code, raised.value.response.headers["retry-after"])
        await stream.close()
        await rig.ended(2)
        assert 0 == slots(rig)


class TestParameters:
    async def test_what_the_upstream_gets(self, serve, limited):
        """The page's defaults beside what was said, and a body that says everything as it is."""
        rig = await serve(answers(["Hello"]), chain=limited())
        await rig.ask(stream=False, temperature=None, seed=7)
        await rig.ask(stream=False, temperature=1, max_completion_tokens=5, top_p=0.5, n=2, logit_bias=[])
        first, second = (request.json for request in rig.upstream.requests)
        assert (0.2, 2048, 1.0, 1, 7) == tuple(
            first[name] for name in ("temperature", "max_tokens", "top_p", "n", "seed")
        )
        assert {"temperature": 1, "max_completion_tokens": 5, "top_p": 0.5, "n": 2} == {
            name: value for name, value in second.items() if name not in ("model", "messages", "stream")
        }

    async def test_sixty_digits(self, serve, limited):
        """They stay, in the request's bytes."""
        rig = await serve(answers(["Hello"]), chain=limited())
        digits = "1234567890" * 6
        body = json.dumps({**ASKED, "stream": False})[:-1] + f',"seed":{digits},"max_tokens":7}}'
        async with rig.session.post(rig.chat_url, data=body) as response:
            assert 200 == response.status
        assert f'"seed":{digits},"max_tokens":7,'.encode() in rig.upstream.requests[0].body

    async def test_out_of_range(self, serve, limited):
        """The SDK raises BadRequestError that names the parameter; the upstream hears nothing, the rate is not charged."""
        rig = await serve(answers(["Hello"]), chain=limited())
        client = await rig.sdk()
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(**ASKED, max_tokens=4097)
        assert ("invalid_max_tokens", "max_tokens") == (raised.value.code, raised.value.param)
        assert 0 == rig.upstream.received
        assert (600, 599) == told((await rig.ask()).headers)
        assert 1 == (await rig.metrics())['relay_refusals_total{code="invalid_max_tokens"}']
