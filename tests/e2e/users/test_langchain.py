"""LangChain's ChatOpenAI, unmodified, through the relay."""

import json

import pytest

from relay.testing import Close, Head, Script, Send, answers, frames, refused, streamed, whole

pytestmark = pytest.mark.system

MODEL, PROMPT = "gpt-4o", "canary-prompt"
HELLO = frames.stream(["Hel", "lo ", "世界"], tokens=(41, 6))


def calls():
    """An answer that calls `weather`."""
    answer = json.loads(frames.body(None, finish_reason="tool_calls"))
    function = {"name": "weather", "arguments": '{"city":"東京"}'}
    answer["choices"][0]["message"]["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    return whole(json.dumps(answer, ensure_ascii=False).encode())


@pytest.fixture
def ask(langchain, printed):
    """`await ask(rig, way, …)`: what one process of LangChain came to; the keywords are options of ChatOpenAI."""

    async def ask(rig, way, **options):
        key = rig.session.headers["Authorization"].removeprefix("Bearer ")
        options = {"base_url": rig.url + "/v1", "api_key": key, "model": MODEL, **options}
        return await printed(langchain, {"way": way, "options": options, "prompt": PROMPT})

    return ask


class TestAnswers:
    async def test_invoke(self, serve, ask):
        """Text, finish_reason and usage are the upstream's."""
        rig = await serve(whole(frames.body("Hello")))
        assert {"text": "Hello", "calls": [], "finish": "stop", "tokens": 47} == await ask(rig, "invoke")
        assert ["system", "user"] == [message["role"] for message in rig.upstream.requests[0].json["messages"]]

    async def test_stream(self, serve, ask):
        """The same in pieces, with the usage that LangChain asks for, and asynchronously."""
        rig = await serve(streamed(HELLO))
        answer = await ask(rig, "stream", stream_usage=True)
        assert (["Hel", "lo ", "世界"], "Hello 世界") == (answer["pieces"], answer["text"])
        assert ("stop", 47) == (answer["finish"], answer["tokens"])
        assert {"pieces": ["Hel", "lo ", "世界"]} == await ask(rig, "astream")

    async def test_batch(self, serve, ask):
        """Two at once, from a pool of threads."""
        rig = await serve(answers(["Hello"]))
        assert {"texts": ["Hello", "Hello"]} == await ask(rig, "batch")

    async def test_tools(self, serve, ask):
        """A bound tool is called, and its result goes to the upstream."""
        rig = await serve([calls(), whole(frames.body("It rains."))])
        answer = await ask(rig, "tools")
        assert ([{"name": "weather", "args": {"city": "東京"}}], "It rains.") == (answer["called"], answer["text"])
        first, second = (request.json for request in rig.upstream.requests)
        assert ["weather"] == [tool["function"]["name"] for tool in first["tools"]]
        assert ("tool", "rain in 東京") == (second["messages"][-1]["role"], second["messages"][-1]["content"])

    async def test_structured_output(self, serve, ask):
        """The schema goes to the upstream, and what it says is parsed."""
        rig = await serve(whole(frames.body('{"city":"東京"}')))
        assert {"city": "東京"} == await ask(rig, "structured")
        asked = rig.upstream.requests[0].json["response_format"]
        assert ("json_schema", "Place") == (asked["type"], asked["json_schema"]["name"])

    async def test_a_forbidden_phrase(self, serve, ask):
        """An answer that is cut is a proper answer to LangChain."""
        rig = await serve(answers(["It is a ", "forb", "idden", " fruit", "!"]))
        for way in ("invoke", "stream"):
            answer = await ask(rig, way)
            assert ("It is a ", "content_filter") == (answer["text"], answer["finish"])
        assert {"error": {"kind": "ContentFilterFinishReasonError"}} == await ask(rig, "structured")


class TestErrors:
    @pytest.mark.parametrize(
        ("script", "options", "kind", "code", "count"),
        [
            (answers(["Hello"]), {"api_key": "sk-wrong"}, "AuthenticationError", "invalid_api_key", 0),
            (refused(400, frames.error_body("No.", code="bad_tool")), {}, "BadRequestError", "bad_tool", 1),
            (refused(429), {"max_retries": 1}, "RateLimitError", "rate_limit_exceeded", 2),
            (refused(500), {}, "InternalServerError", "upstream_error", 1),
            (Script(Close()), {}, "InternalServerError", "upstream_unavailable", 1),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    @pytest.mark.parametrize("way", ["invoke", "stream"])
    async def test_before_the_answer(self, serve, ask, way, script, options, kind, code, count):
        """What it raises is openai-python's, with our code and id; nothing is bought twice."""
        rig = await serve(script)
        error = (await ask(rig, way, **options))["error"]
        assert {"kind": kind, "code": code, "id": (await rig.ended())[-1]["request_id"]} == error
        assert count == rig.upstream.received

    async def test_in_the_answer(self, serve, ask):
        """An answer that breaks off never looks whole."""
        rig = await serve(Script(Head(), Send(b"".join(HELLO[:3])), Close()))
        error = (await ask(rig, "stream"))["error"]
        assert ("APIError", "upstream_incomplete") == (error["kind"], error["code"])
        assert 1 == rig.upstream.received
