"""The official openai-python, unmodified, through the relay."""

import asyncio

import openai
import pytest
from pydantic import BaseModel

from relay.testing import Close, Gate, Hang, Head, Script, Send, answers, frames, refused, streamed, whole

HELLO = frames.stream(["Hel", "lo ", "世界"], tokens=(41, 6))
ASKED = {"model": "gpt-3.5-turbo-1106", "messages": [{"role": "user", "content": "canary-prompt"}]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class Place(BaseModel):
    """What a structured output is to say."""

    city: str


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

    async def test_its_own_accumulator_of_calls(self, serve):
        """It also puts calls together, and tells of each piece and of the end of each."""
        pieces = ['{"city":', '"東', '京"}']
        said = [frames.role(), frames.tool(name="weather"), *map(frames.tool, pieces), frames.finish("tool_calls")]
        rig = await serve(streamed([*said, frames.done()]))
        client = await rig.sdk()
        async with client.chat.completions.stream(**ASKED, tools=[WEATHER]) as stream:
            told = [
                (event.type.rpartition(".")[2], event.arguments)
                async for event in stream
                if event.type.startswith("tool_calls.function.arguments")
            ]
            final = await stream.get_final_completion()
        assert ("delta", "".join(pieces)) == told[-2]
        assert ("done", "".join(pieces)) == told[-1]
        [call] = final.choices[0].message.tool_calls
        assert ("weather", "".join(pieces)) == (call.function.name, call.function.arguments)

    async def test_structured_output(self, serve):
        """`parse` sends the schema of a class and gives back one of it, streamed or not."""
        said = '{"city":"東京"}'
        rig = await serve(answers([said[:9], said[9:]]))
        client = await rig.sdk()
        answer = await client.chat.completions.parse(**ASKED, response_format=Place)
        assert Place(city="東京") == answer.choices[0].message.parsed
        async with client.chat.completions.stream(**ASKED, response_format=Place) as stream:
            final = await stream.get_final_completion()
        assert Place(city="東京") == final.choices[0].message.parsed
        for request in rig.upstream.requests:
            asked = request.json["response_format"]
            assert ("json_schema", "Place", True) == (
                asked["type"],
                asked["json_schema"]["name"],
                asked["json_schema"]["strict"],
            )

    async def test_a_structured_output_that_is_cut(self, serve):
        """The parser never takes what is left of it for the answer: it says what has happened."""
        rig = await serve(answers(['{"city":"', "forbidden", ' fruit"}']))
        client = await rig.sdk()
        with pytest.raises(openai.ContentFilterFinishReasonError):
            await client.chat.completions.parse(**ASKED, response_format=Place)
        with pytest.raises(openai.ContentFilterFinishReasonError):
            async with client.chat.completions.stream(**ASKED, response_format=Place) as stream:
                await stream.get_final_completion()

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

    async def test_cancelled(self, serve):
        """A task that is cancelled while it waits for an answer takes the upstream's connection with it."""
        rig = await serve(Script(Hang()))
        client = await rig.sdk()
        asking = asyncio.create_task(client.chat.completions.create(**ASKED))
        request = await rig.upstream.request()
        asking.cancel()
        await asyncio.wait([asking])
        await rig.upstream.closed(request)
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]
        assert 1 == rig.upstream.received

    async def test_a_reader_that_waits(self, serve):
        """Nothing is lost for one that reads late."""
        go = asyncio.Event()
        rig = await serve(Script(Head(), Send(HELLO[0]), Gate(go), Send(b"".join(HELLO[1:]))))
        stream = await (await rig.sdk()).chat.completions.create(**ASKED, stream=True)
        await anext(stream)
        go.set()
        await rig.ended()
        assert ({0: "Hello 世界"}, {0: "stop"}) == (await collected(stream))[:2]


# How a request fails: what the relay is made of, what is asked → the class, the status and the code that a user sees,
# and how often the upstream has been asked by a client that would ask three times.
PONDER = {"use": "moderation", "moderators": [{"use": "failing:Broken"}]}
NO_QUOTA = {"use": "failing:Refusing", "status": 403, "code": "insufficient_quota"}
FORBIDDEN = [{"role": "user", "content": "forbidden fruit"}]
NO_TOOL = refused(400, frames.error_body("No.", code="bad_tool"))
NO_MODEL = refused(404, frames.error_body("No.", code="model_not_found"))
FAILURES = {
    "no messages": (None, {}, {"messages": []}, openai.BadRequestError, 400, "invalid_messages", 0),
    "no choice": (None, {}, {"n": 0}, openai.BadRequestError, 400, "invalid_n", 0),
    "forbidden": (None, {}, {"messages": FORBIDDEN}, openai.BadRequestError, 400, "content_filter", 0),
    "upstream: bad request": (NO_TOOL, {}, {}, openai.BadRequestError, 400, "bad_tool", 1),
    "no quota": (None, {"chain": [NO_QUOTA]}, {}, openai.PermissionDeniedError, 403, "insufficient_quota", 0),
    "no such model": (None, {}, {"model": "nobody's"}, openai.NotFoundError, 404, "invalid_model", 0),
    "upstream: no such model": (NO_MODEL, {}, {}, openai.NotFoundError, 404, "model_not_found", 1),
    "too large": (None, {"server": {"max_body_bytes": 9}}, {}, openai.APIStatusError, 413, "request_too_large", 0),
    "upstream: unprocessable": (refused(422), {}, {}, openai.UnprocessableEntityError, 422, "internal_error", 1),
    "our own fault": (None, {"chain": [{"use": "failing:Refusing"}]}, {}, openai.InternalServerError, 500, "internal_error", 0),
    "upstream: its fault": (refused(500), {}, {}, openai.InternalServerError, 502, "upstream_error", 1),
    "upstream: our key": (refused(401), {}, {}, openai.InternalServerError, 502, "upstream_auth", 1),
    "upstream: we may not": (refused(403), {}, {}, openai.InternalServerError, 502, "upstream_auth", 1),
    "upstream: bad gateway": (refused(502), {}, {}, openai.InternalServerError, 502, "upstream_error", 1),
    "upstream: time-out": (refused(504), {}, {}, openai.InternalServerError, 502, "upstream_error", 1),
    "upstream: gone": (Script(Close()), {}, {}, openai.InternalServerError, 502, "upstream_unavailable", 1),
    "no verdict": (answers(["I ponder."]), {"chain": [PONDER]}, {}, openai.InternalServerError, 503, "moderation_unavailable", 1),
    "no answer in time": (Script(Hang()), {"upstream": {"first_byte_timeout_s": 0.1}}, {}, openai.InternalServerError, 504, "upstream_timeout", 1),
}  # fmt: skip
# Of a stream the role has been sent when the first text gets no verdict.
BEFORE = [(stream, name) for stream in (True, False) for name in FAILURES if (stream, name) != (True, "no verdict")]


class TestErrors:
    @pytest.mark.parametrize(("stream", "name"), BEFORE)
    async def test_before_the_answer(self, serve, stream, name):
        """The SDK raises its own class with our code and id, and does not ask again what may have been answered."""
        script, made, asked, error, status, code, count = FAILURES[name]
        upstream = {"models": ["gpt-3.5-turbo-1106"], **made.get("upstream", {})}
        rig = await serve(script or streamed(HELLO), **{**made, "upstream": upstream})
        rig.loudest = {"our own fault": "error", "no verdict": "error"}.get(name, "info")
        client = await rig.sdk(max_retries=2)
        with pytest.raises(error) as raised:
            await client.chat.completions.create(**{**ASKED, **asked}, stream=stream)
        assert (status, code) == (raised.value.status_code, raised.value.code)
        [line] = await rig.ended()
        assert raised.value.request_id == line["request_id"]
        assert count == rig.upstream.received

    async def test_a_wrong_key(self, serve):
        """AuthenticationError, once."""
        rig = await serve(streamed(HELLO))
        client = (await rig.sdk(max_retries=2)).with_options(api_key="sk-wrong")
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(**ASKED)
        assert "invalid_api_key" == raised.value.code
        assert (1, 0) == (len(await rig.ended()), rig.upstream.received)

    @pytest.mark.parametrize("reader", ["push"], indirect=True)  # the SDK waits for two seconds
    async def test_what_is_asked_again(self, serve):
        """Three times, where nobody can have answered: a busy upstream, an overloaded one, one that is not there, and
        a relay that stops."""
        nobody = "http://127.0.0.1:9/v1"
        rigs = [await serve(script) for script in (refused(429), refused(503), nobody, streamed(HELLO))]
        await rigs[-1].app.drain(0)
        clients = [await rig.sdk(max_retries=2) for rig in rigs]
        errors = await asyncio.gather(
            *(client.chat.completions.create(**ASKED) for client in clients), return_exceptions=True
        )
        assert [
            (openai.RateLimitError, 429, "rate_limit_exceeded"),
            (openai.InternalServerError, 502, "upstream_error"),
            (openai.InternalServerError, 502, "upstream_unavailable"),
            (openai.InternalServerError, 503, "draining"),
        ] == [(type(error), error.status_code, error.code) for error in errors]
        assert [3, 3, 3, 3] == [len(await rig.ended(3)) for rig in rigs]
        assert [3, 3, 0] == [rig.upstream.received for rig in rigs if rig.upstream is not None]

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
        assert 1 == rig.upstream.received

    async def test_a_busy_upstream_is_asked_again(self, serve):
        """The SDK retries what we say may be retried."""
        rig = await serve([refused(429, headers=[("Retry-After", "0")]), whole(frames.body("Hello"))])
        answer = await (await rig.sdk()).chat.completions.create(**ASKED)
        assert "Hello" == answer.choices[0].message.content
