"""The official openai-node, unmodified, through the relay."""

import json

import pytest

from relay.testing import Close, Hang, Head, Script, Send, answers, frames, refused, streamed, whole

pytestmark = pytest.mark.system

HELLO = frames.stream(["Hel", "lo ", "世界"], tokens=(41, 6))
ASKED = {"model": "gpt-3.5-turbo-1106", "messages": [{"role": "user", "content": "canary-prompt"}]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = ['{"city":', '"東', '京"}']
CITY = {
    "type": "json_schema",
    "json_schema": {
        "name": "place",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def calls(*, streams=True):
    """An answer that calls `weather`, in pieces or whole."""
    if streams:
        pieces = [frames.tool(name="weather"), *map(frames.tool, CALL)]
        return streamed([frames.role(), *pieces, frames.finish("tool_calls"), frames.done()])
    answer = json.loads(frames.body(None, finish_reason="tool_calls"))
    function = {"name": "weather", "arguments": "".join(CALL)}
    answer["choices"][0]["message"]["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    return whole(json.dumps(answer, ensure_ascii=False).encode())


@pytest.fixture
def ask(openai_node, printed):
    """`await ask(rig, way, …)`: what one process of openai-node came to; the keywords go into the body."""

    async def ask(rig, way, *, options=None, **fields):
        key = rig.session.headers["Authorization"].removeprefix("Bearer ")
        options = {"baseURL": rig.url + "/v1", "apiKey": key, "maxRetries": 2, **(options or {})}
        return await printed(openai_node, {"way": way, "options": options, "body": {**ASKED, **fields}})

    return ask


class TestAnswers:
    async def test_whole(self, serve, ask):
        """Texts, finish_reasons and usage are the upstream's; the request id is the log's."""
        rig = await serve(whole(frames.body("Hello", "again")))
        answer = await ask(rig, "whole", n=2)
        assert (["Hello", "again"], ["stop", "stop"], 47) == (answer["texts"], answer["finishes"], answer["usage"])
        assert answer["id"] == rig.requests[0]["request_id"]
        assert 2 == rig.upstream.requests[0].json["n"]

    async def test_streamed(self, serve, ask):
        """Chunk by chunk."""
        rig = await serve(streamed(HELLO))
        assert [[0, "Hel"], [0, "lo "], [0, "世界"]] == (await ask(rig, "pieces"))["pieces"]

    async def test_two_choices(self, serve, ask):
        """They come in the order in which the upstream says them, and each is put together by itself."""
        said = [frames.role(), frames.role(index=1), frames.text("a"), frames.text("甲", index=1), frames.text("b")]
        rig = await serve(streamed([*said, frames.finish(), frames.finish("length", index=1), frames.done()]))
        assert [[0, "a"], [1, "甲"], [0, "b"]] == (await ask(rig, "pieces", n=2))["pieces"]

    async def test_its_own_accumulator(self, serve, ask):
        """`chat.completions.stream` builds whole answers out of our chunks: text, usage, and calls."""
        rig = await serve([streamed(HELLO), calls()])
        answer = await ask(rig, "gathered", stream_options={"include_usage": True})
        assert (["Hello 世界"], ["stop"], 47) == (answer["texts"], answer["finishes"], answer["usage"])
        answer = await ask(rig, "gathered", tools=[WEATHER])
        assert [[{"name": "weather", "arguments": "".join(CALL)}]] == answer["calls"]
        assert ["tool_calls"] == answer["finishes"]
        assert [WEATHER] == rig.upstream.requests[1].json["tools"]

    async def test_tools(self, serve, ask):
        """A call comes whole, is carried out by the SDK, and its result goes to the upstream."""
        rig = await serve([calls(streams=False), whole(frames.body("It rains."))])
        assert {"text": "It rains.", "given": [{"city": "東京"}]} == await ask(rig, "run", tools=[WEATHER])
        said = rig.upstream.requests[1].json["messages"]
        assert [("user", "canary-prompt"), ("assistant", None), ("tool", "rain")] == [
            (message["role"], message.get("content")) for message in said
        ]
        assert ("call_1", "call_1") == (said[1]["tool_calls"][0]["id"], said[2]["tool_call_id"])

    async def test_structured_output(self, serve, ask):
        """The schema goes to the upstream as it is, and what it says is parsed."""
        rig = await serve(whole(frames.body('{"city":"東京"}')))
        assert [{"city": "東京"}] == (await ask(rig, "parsed", response_format=CITY))["parsed"]
        assert CITY == rig.upstream.requests[0].json["response_format"]

    async def test_the_models(self, serve, ask):
        """`models.list` names what may be asked for."""
        rig = await serve(streamed(HELLO), upstream={"models": ["a", "b"]})
        assert {"models": ["a", "b"]} == await ask(rig, "models")

    async def test_a_forbidden_phrase(self, serve, ask):
        """An answer that is cut is a proper answer to the SDK, and its parser says what has happened."""
        rig = await serve(answers(["It is a ", "forb", "idden", " fruit", "!"]))
        for way in ("whole", "gathered"):
            answer = await ask(rig, way)
            assert (["It is a "], ["content_filter"]) == (answer["texts"], answer["finishes"])
        error = (await ask(rig, "parsed", response_format=CITY))["error"]
        assert "ContentFilterFinishReasonError" == error["kind"]


# How a request fails: what the relay is made of, what is asked → the class, the status and the code that a user sees,
# and how often the upstream has been asked. The client would retry twice.
OK = streamed(HELLO)
PONDER = {"use": "moderation", "moderators": [{"use": "failing:Broken"}]}
FAILURES = {
    "no messages": (OK, {}, {"messages": []}, "BadRequestError", 400, "invalid_messages", 0),
    "upstream: bad request": (refused(400, frames.error_body("No.", code="bad_tool")), {}, {}, "BadRequestError", 400, "bad_tool", 1),
    "a wrong key": (OK, {}, {"options": {"apiKey": "sk-wrong"}}, "AuthenticationError", 401, "invalid_api_key", 0),
    "no quota": (OK, {"chain": [{"use": "failing:Refusing", "status": 403, "code": "insufficient_quota"}]}, {}, "PermissionDeniedError", 403, "insufficient_quota", 0),
    "no such model": (OK, {}, {"model": "nobody's"}, "NotFoundError", 404, "invalid_model", 0),
    "upstream: no such model": (refused(404, frames.error_body("No.", code="model_not_found")), {}, {}, "NotFoundError", 404, "model_not_found", 1),
    "too large": (OK, {"server": {"max_body_bytes": 100}}, {"user": "x" * 100}, "APIError", 413, "request_too_large", 0),
    "upstream: unprocessable": (refused(422), {}, {}, "UnprocessableEntityError", 422, "internal_error", 1),
    "upstream: busy": (refused(429), {}, {}, "RateLimitError", 429, "rate_limit_exceeded", 3),
    "our own fault": (OK, {"chain": [{"use": "failing:Refusing"}]}, {}, "InternalServerError", 500, "internal_error", 0),
    "upstream: its fault": (refused(500), {}, {}, "InternalServerError", 502, "upstream_error", 1),
    "upstream: our key": (refused(401), {}, {}, "InternalServerError", 502, "upstream_auth", 1),
    "upstream: bad gateway": (refused(502), {}, {}, "InternalServerError", 502, "upstream_error", 1),
    "upstream: overloaded": (refused(503), {}, {}, "InternalServerError", 502, "upstream_error", 3),
    "upstream: time-out": (refused(504), {}, {}, "InternalServerError", 502, "upstream_error", 1),
    "upstream: gone": (Script(Close()), {}, {}, "InternalServerError", 502, "upstream_unavailable", 1),
    "no verdict": (answers(["I ponder."]), {"chain": [PONDER]}, {}, "InternalServerError", 503, "moderation_unavailable", 1),
    "no answer in time": (Script(Hang()), {"upstream": {"first_byte_timeout_s": 0.1}}, {}, "InternalServerError", 504, "upstream_timeout", 1),
}  # fmt: skip
LOUD = {"our own fault": "error", "no verdict": "error"}
# Of a stream the role has been sent when the first text gets no verdict.
BEFORE = [(way, name) for way in ("whole", "pieces") for name in FAILURES if (way, name) != ("pieces", "no verdict")]


class TestErrors:
    @pytest.mark.parametrize(("way", "name"), BEFORE)
    async def test_before_the_answer(self, serve, ask, way, name):
        """The SDK throws its own class with our code and id, and never asks again what may have been answered."""
        script, made, asked, kind, status, code, count = FAILURES[name]
        upstream = {"models": [ASKED["model"]], **made.get("upstream", {})}
        rig = await serve(script, **{**made, "upstream": upstream})
        rig.loudest = LOUD.get(name, "info")
        error = (await ask(rig, way, **asked))["error"]
        assert (kind, status, code) == (error["kind"], error["status"], error["code"])
        assert error["id"] == (await rig.ended())[-1]["request_id"]
        assert count == rig.upstream.received

    @pytest.mark.parametrize(
        ("script", "made", "code"),
        [
            (Script(Head(), Send(b"".join(HELLO[:3])), Close()), {}, "upstream_incomplete"),
            (streamed([*HELLO[:3], frames.error()]), {}, "upstream_error"),
            (streamed([*HELLO[:3], frames.data("[DONE]x")]), {}, "upstream_malformed"),
            (streamed([*HELLO[:3], frames.text("I ponder.")]), {"chain": [PONDER]}, "moderation_unavailable"),
        ],
    )
    async def test_in_the_answer(self, serve, ask, script, made, code):
        """APIError with our code after what came, and the answer is not bought again."""
        rig = await serve(script, **made)
        rig.loudest = "error" if made else "info"
        told = await ask(rig, "pieces")
        # A moderator that is asked is shown a window of the text; nothing of it leaves before its verdict.
        assert ([] if made else [[0, "Hel"], [0, "lo "]]) == told["seen"]
        assert ("APIError", code) == (told["error"]["kind"], told["error"]["code"])
        assert 1 == rig.upstream.received

    async def test_a_busy_upstream_is_asked_again(self, serve, ask):
        """What we say may be retried is, until it is answered."""
        rig = await serve([refused(429), whole(frames.body("Hello"))])
        assert ["Hello"] == (await ask(rig, "whole"))["texts"]
        assert 2 == rig.upstream.received

    async def test_a_relay_that_stops_is_asked_again(self, serve, ask):
        """Another one may stand behind the same address; nothing has been bought."""
        rig = await serve(OK)
        await rig.app.drain(0)
        error = (await ask(rig, "whole"))["error"]
        assert ("InternalServerError", 503, "draining") == (error["kind"], error["status"], error["code"])
        assert (3, 0) == (len(await rig.ended(3)), rig.upstream.received)


class TestLeaving:
    async def test_in_the_middle(self, serve, ask):
        """An aborted stream closes the upstream's connection."""
        rig = await serve(Script(Head(), Send(b"".join(HELLO[:3])), Hang()))
        assert {"aborted": True} == await ask(rig, "abort")
        await rig.upstream.closed(rig.upstream.requests[0])
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]

    async def test_before_the_answer(self, serve, ask):
        """So does a client that has waited enough."""
        rig = await serve(Script(Hang()))
        error = (await ask(rig, "impatient", options={"maxRetries": 0}))["error"]
        assert "APIConnectionTimeoutError" == error["kind"]
        await rig.upstream.closed(rig.upstream.requests[0])
        assert ["client_gone"] == [line["outcome"] for line in await rig.ended()]
