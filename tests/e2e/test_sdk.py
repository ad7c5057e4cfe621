"""The official openai-python, unmodified, through the relay."""

import asyncio

import openai
import pytest

from relay.testing import Close, Gate, Hang, Head, Script, Send, answers, frames, refused, streamed, whole

HELLO = frames.stream(["Hel", "lo ", "世界"], tokens=(41, 6))
ASKED = {"model": "gpt-3.5-turbo-1106", "messages": [{"role": "user", "content": "canary-prompt"}]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


async def collected(stream):
    """The texts and the finish_reasons by choice, and the usage."""
    texts, finishes, usage = {}, {}, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    return texts, finishes, usage


class TestAnswers:
    async def test_whole(self, serve):
        """Texts, finish_reason, usage and fingerprint are the upstream's."""
        rig = await serve(whole(frames.body("Hello", "again")))
        client = await rig.sdk()
        answer = await client.chat.completions.create(**ASKED, n=2)
        assert ["Hello", "again"] == [choice.message.content for choice in answer.choices]
        assert (47, "fp_eeff13170a") == (answer.usage.total_tokens, answer.system_fingerprint)

    async def test_streamed(self, serve):
        """The same chunk by chunk, twice over one connection."""
        rig = await serve(streamed(HELLO))
        client = await rig.sdk()
        for _ in range(2):
            texts, finishes, usage = await collected(
                await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
            )
            assert ({0: "Hello 世界"}, {0: "stop"}, 47) == (texts, finishes, usage.total_tokens)
        assert [{"include_usage": True}] * 2 == [request.json["stream_options"] for request in rig.upstream.requests]

    async def test_two_choices(self, serve):
        """They come in the order in which the upstream says them."""
        said = [frames.role(), frames.role(index=1), frames.text("a"), frames.text("甲", index=1), frames.text("b")]
        rig = await serve(streamed([*said, frames.finish(), frames.finish("length", index=1), frames.done()]))
        client = await rig.sdk()
        texts, finishes, _ = await collected(await client.chat.completions.create(**ASKED, n=2, stream=True))
        assert ({0: "ab", 1: "甲"}, {0: "stop", 1: "length"}) == (texts, finishes)

    async def test_tools(self, serve):
        """Calls come whole and in pieces; what the client declares goes to the upstream as it is."""
        pieces = ['{"city":', '"東', '京"}']
        said = [frames.role(), frames.tool(name="weather"), *map(frames.tool, pieces), frames.finish("tool_calls")]
        rig = await serve(streamed([*said, frames.done()]))
        client = await rig.sdk()
        arguments, names = "", []
        async for chunk in await client.chat.completions.create(**ASKED, tools=[WEATHER], stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                names += [call.function.name] if call.function.name else []
                arguments += call.function.arguments
        assert (["weather"], "".join(pieces)) == (names, arguments)
        assert [WEATHER] == rig.upstream.requests[0].json["tools"]

    async def test_its_own_accumulator(self, serve):
        """`chat.completions.stream` builds the whole answer out of our chunks."""
        rig = await serve(streamed(HELLO))
        client = await rig.sdk()
        async with client.chat.completions.stream(**ASKED) as stream:
            final = await stream.get_final_completion()
        assert ("Hello 世界", "stop") == (final.choices[0].message.content, final.choices[0].finish_reason)

    async def test_in_a_thread(self, serve):
        """The blocking client, streamed and not."""
        rig = await serve(answers(["Hel", "lo"]))

        def ask():
            with openai.OpenAI(base_url=rig.url + "/v1", api_key=key, timeout=10) as client:
                told = client.chat.completions.create(**ASKED).choices[0].message.content
                stream = client.chat.completions.create(**ASKED, stream=True)
                return told, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        key = rig.session.headers["Authorization"].removeprefix("Bearer ")
        assert ("Hello", "Hello") == await asyncio.to_thread(ask)

    async def test_the_models(self, serve):
        """`models.list` names what may be asked for."""
        rig = await serve(streamed(HELLO), upstream={"models": ["a", "b"]})
        client = await rig.sdk()
        assert ["a", "b"] == [model.id async for model in await client.models.list()]

    async def test_a_forbidden_phrase(self, serve):
        """An answer that is cut is a proper answer to the SDK: finish_reason "content_filter", usage estimated."""
        said = frames.stream(["It is a ", "forb", "idden", " fruit", "!"])
        rig = await serve(streamed(said))
        client = await rig.sdk()
        texts, finishes, usage = await collected(
            await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
        )
        assert ({0: "It is a "}, {0: "content_filter"}) == (texts, finishes)
        assert usage.completion_tokens > 0
        rig = await serve(whole(frames.body("It is a forbidden fruit!")))
        answer = await (await rig.sdk()).chat.completions.create(**ASKED)
        assert ("It is a ", "content_filter") == (answer.choices[0].message.content, answer.choices[0].finish_reason)


class TestLeaving:
    async def test_in_the_middle(self, serve):
        """A closed stream closes the upstream's connection."""
        rig = await serve(Script(Head(), Send(b"".join(HELLO[:3])), Hang()))
        client = await rig.sdk()
        stream = await client.chat.completions.create(**ASKED, stream=True)
        assert "assistant" == (await anext(stream)).choices[0].delta.role
        assert "Hel" == (await anext(stream)).choices[0].delta.content
        await stream.close()
        await rig.upstream.closed(rig.upstream.requests[0])
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    async def test_by_its_own_deadline(self, serve):
        """A client that has waited enough is gone, and has not asked twice."""
        rig = await serve(Script(Hang()))
        client = await rig.sdk(max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**ASKED, timeout=0.1)
        await rig.upstream.closed(rig.upstream.requests[0])
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    async def test_a_reader_that_waits(self, serve):
        """Nothing is lost for one that reads late."""
        go = asyncio.Event()
        rig = await serve(Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:]))))
        stream = await (await rig.sdk()).chat.completions.create(**ASKED, stream=True)
        await anext(stream)
        go.set()
        await rig.ended()
        assert ({0: "Hello 世界"}, {0: "stop"}) == (await collected(stream))[:2]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "fields", "script", "error", "code"),
        [
            ({"api_key": "sk-wrong"}, {}, None, openai.AuthenticationError, "invalid_api_key"),
            ({}, {"model": "nobody's"}, None, openai.NotFoundError, "invalid_model"),
            ({}, {"messages": []}, None, openai.BadRequestError, "invalid_messages"),
            ({}, {"n": 0}, None, openai.BadRequestError, "invalid_n"),
            ({}, {"messages": [{"role": "user", "content": "forbidden fruit"}]}, None, openai.BadRequestError, "content_filter"),
            ({}, {}, refused(400, frames.error_body("No.", code="bad_tool")), openai.BadRequestError, "bad_tool"),
            ({}, {}, refused(500), openai.InternalServerError, "upstream_error"),
            ({}, {}, refused(401), openai.InternalServerError, "upstream_auth"),
            ({"max_retries": 0}, {}, refused(429), openai.RateLimitError, "rate_limit_exceeded"),
            ({}, {}, Script(Close()), openai.InternalServerError, "upstream_unavailable"),
        ],
        ids=lambda value: value.__name__ if isinstance(value, type) else None,
    )  # fmt: skip
    @pytest.mark.parametrize("stream", [True, False])
    async def test_before_the_answer(self, serve, options, fields, script, error, code, stream):
        """The SDK raises its own class with our code, and does not ask again what may have been answered."""
        rig = await serve(script or streamed(HELLO), upstream={"models": ["gpt-3.5-turbo-1106"]})
        client = (await rig.sdk()).with_options(**options)
        with pytest.raises(error) as raised:
            await client.chat.completions.create(**{**ASKED, **fields}, stream=stream)
        assert code == raised.value.code
        assert raised.value.request_id == rig.requests[0]["request_id"]
        assert 1 == len(await rig.ended())

    @pytest.mark.parametrize(
        ("script", "code"),
        [
            (Script(Head(), Send(b"".join(HELLO[:3])), Close()), "upstream_incomplete"),
            (streamed([*HELLO[:3], frames.error()]), "upstream_error"),
            (streamed([*HELLO[:3], frames.data("[DONE]x")]), "upstream_malformed"),
        ],
    )
    async def test_in_the_answer(self, serve, script, code):
        """APIError with our message after what came; an answer that breaks off never looks whole."""
        rig = await serve(script)
        stream = await (await rig.sdk()).chat.completions.create(**ASKED, stream=True)
        said = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
        with pytest.raises(openai.APIError) as raised:
            await anext(stream)
        assert ([None, "Hel", "lo "], code) == (said, raised.value.code)

    async def test_a_busy_upstream_is_asked_again(self, serve):
        """The SDK retries what we say may be retried."""
        rig = await serve([refused(429, headers=[("Retry-After", "0")]), whole(frames.body("Hello"))])
        answer = await (await rig.sdk()).chat.completions.create(**ASKED)
        assert "Hello" == answer.choices[0].message.content
