"""The second API on a real relay: what its page prints, request by request and reply by reply."""

import json
import tomllib

import pytest

from relay.starter import starter
from relay.testing import answers, frames, streamed, whole
from relay_plugins.bingcheng import Bingcheng

PATH = "/api/v2.Gptliu/search"

# As printed on the page, where a comment after `true` says that streaming may be left out.
REQUEST = '{ "messages" : [{"role":"user","content":"你是谁?"}], "model": "gpt-3.5-turbo", "stream":true }'.encode()
UNSTREAMED = '{ "messages" : [{"role":"user","content":"你是谁?"}], "model": "gpt-3.5-turbo" }'.encode()
ASKED = [{"role": "user", "content": "你是谁?"}]

# "响应内容(非流式请求时的响应内容)", as printed.
BODY = (
    '{ "id": "chatcmpl-77dQj73rIl0GJyTpAH4QlcSnhOFKp", "object": "chat.completion", "created": 1682054221, '
    '"model": "gpt-3.5-turbo-0301", "usage": { "prompt_tokens": 13, "completion_tokens": 30, "total_tokens": 43 }, '
    '"choices": [ { "message": { "role": "assistant", "content": '
    '"我是一个人工智能语言模型,可以根据用户提供的输入进行回答和交流。" }, "finish_reason": "stop", "index": 0 } ] }'
).encode()

# "响应内容(流式请求时的响应内容)": the frames as printed, each with its blank line. They differ in their deltas.
SAID = "我 是 一个 AI 语 言 模 型 , 专 门 用 来 回 答 问题 和 提 供 帮 助 的 。".split()
FRAMES = [
    (
        'data: {"id":"chatcmpl-783jPdq1a1ZG6KQc9pq98FDRSqNmp","object":"chat.completion.chunk","created":1682155323,'
        f'"model":"gpt-3.5-turbo-0301","choices":[{{"delta":{delta},"index":0,"finish_reason":{finish}}}]}}\n\n'
    ).encode()
    for delta, finish in [
        ('{"role":"assistant"}', "null"),
        *((f'{{"content":"{said}"}}', "null") for said in SAID),
        ("{}", '"stop"'),
    ]
] + [b"data: [DONE]\n\n"]

# What a string stands for that carries a history: the page's example, and what its script makes of a question alone.
HISTORIES = {
    " Q:你好! A:你好,有什么可以帮助你的。 Q:今天天气怎么样?": [
        {"role": "user", "content": "你好!"},
        {"role": "assistant", "content": "你好,有什么可以帮助你的。"},
        {"role": "user", "content": "今天天气怎么样?"},
    ],
    "Q: 你是谁?A: ": ASKED,
}


@pytest.fixture
async def relay(serve, guarded):
    """`rig, ask = await relay(script)`; `ask(body, **headers)` gives status, headers and body of the answer."""

    async def start(script, **options):
        auth, moderation = guarded()
        rig = await serve(script, chain=[auth, {"use": "bingcheng", **options}, moderation])

        async def ask(body, **headers):
            data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
            async with rig.session.post(rig.url + PATH, data=data, headers=headers) as response:
                return response.status, response.headers, await response.read()

        return rig, ask

    return start


async def sent(rig, number=1):
    """What the upstream was asked."""
    request = await rig.upstream.request(number)
    assert "/v1/chat/completions" == request.path
    return request.json


async def test_a_streamed_reply(relay):
    """The request as printed gives the frames as printed, byte for byte."""
    rig, ask = await relay(streamed(FRAMES))
    status, headers, data = await ask(REQUEST)
    assert (200, "text/event-stream; charset=utf-8") == (status, headers["Content-Type"])
    assert b"".join(FRAMES) == data
    asked = await sent(rig)
    assert (ASKED, "gpt-3.5-turbo", True) == (asked["messages"], asked["model"], asked["stream"])


async def test_a_reply_at_once(relay):
    """Without the line `"stream":true` it is the body as printed, byte for byte."""
    rig, ask = await relay(whole(BODY))
    status, headers, data = await ask(UNSTREAMED)
    assert (200, "application/json") == (status, headers["Content-Type"].partition(";")[0])
    assert BODY == data
    assert {"messages": ASKED, "model": "gpt-3.5-turbo"} == await sent(rig)


@pytest.mark.parametrize("name", ["keyword", "Q"])
@pytest.mark.parametrize(("history", "messages"), HISTORIES.items(), ids=["prose", "script"])
async def test_a_history(relay, name, history, messages):
    """The upstream is asked for a chat completion of the turns; the client gets the page's replies."""
    rig, ask = await relay(lambda request: streamed(FRAMES) if request.streams else whole(BODY))
    assert BODY == (await ask({name: history}))[2]
    assert {"messages": messages, "model": "gpt-3.5-turbo"} == await sent(rig)
    assert b"".join(FRAMES) == (await ask({name: history, "stream": True}))[2]
    asked = await sent(rig, 2)
    assert (messages, True) == (asked["messages"], asked["stream"])
    assert name not in asked


async def test_the_default_model(relay):
    """It stands for a model that is not named."""
    rig, ask = await relay(whole(BODY), default_model="glm-4")
    assert BODY == (await ask({"keyword": "你是谁?"}))[2]
    assert {"messages": ASKED, "model": "glm-4"} == await sent(rig)
    assert ["glm-4"] == [line["model"] for line in await rig.ended()]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {"keyword": " Q:你好! A:你好。 Q:敏感词是什么?"},
        {"keyword": " Q:你好! A:敏\u200b感词。 Q:是吗?"},
        {"Q": "敏感词"},
        {"keyword": "你好", "other": "敏感词"},
        {"messages": [{"role": "user", "content": "敏感词"}], "keyword": "你好"},
    ],
)
async def test_a_forbidden_question(relay, fields, stream):
    """It is refused wherever it stands, and no upstream is asked."""
    rig, ask = await relay(whole(BODY))
    status, _, data = await ask({**fields, "stream": stream})
    assert (400, "content_filter") == (status, json.loads(data)["error"]["code"])
    assert 0 == rig.upstream.received


@pytest.mark.parametrize("stream", [True, False])
async def test_a_forbidden_answer(relay, stream):
    """Not one character of the phrase leaves."""
    _, ask = await relay(answers(["你好", "敏", "感词", "再见"]))
    status, _, data = await ask({"keyword": "你好", "stream": stream})
    assert 200 == status
    assert "你好" in data.decode()
    assert b'"content_filter"' in data
    assert [] == [char for char in "敏感词再见" if char in data.decode()]


@pytest.mark.parametrize(
    "headers", [{"Authorization": ""}, {"Authorization": "Bearer sk-wrong"}], ids=["none", "wrong"]
)
@pytest.mark.parametrize("body", [b"{", b'{"keyword":5}', REQUEST], ids=["no JSON", "no string", "a good one"])
async def test_without_a_key_nothing_is_read(relay, monkeypatch, headers, body):
    """The answer is 401, whatever the body holds."""
    read = []
    monkeypatch.setattr(Bingcheng, "translate", lambda plugin, path, body: read.append(body) or body)
    rig, ask = await relay(whole(BODY))
    status, _, data = await ask(body, **headers)
    assert (401, "invalid_api_key") == (status, json.loads(data)["error"]["code"])
    assert [] == read
    assert 0 == rig.upstream.received


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        pytest.param({}, "invalid_messages", "Unsupported messages.", id="nothing"),
        pytest.param({"model": "gpt-3.5-turbo"}, "invalid_messages", "Unsupported messages.", id="a model"),
        pytest.param({"messages": None}, "invalid_messages", "Unsupported messages.", id="null"),
        pytest.param({"keyword": "Q: A: "}, "invalid_messages", "Unsupported messages.", id="a history of nothing"),
        pytest.param({"keyword": 5}, "invalid_keyword", "`keyword` has to be a string", id="a number"),
        pytest.param({"Q": ["Q:a"]}, "invalid_keyword", "`Q` has to be a string", id="a list"),
        pytest.param({"keyword": "a", "stream": "yes"}, "invalid_stream", "`stream` has to be true", id="stream"),
        pytest.param({"keyword": " Q:a" * 20_000}, "keyword_too_long", "leave out the oldest turns", id="turns"),
        pytest.param(b'{"Q":"a","Q":"b"}', "repeated_key", "send each key once", id="a key twice"),
        pytest.param(b"Q:a", "invalid_json", "not valid JSON", id="no JSON"),
        pytest.param(REQUEST[:-2] + b" //\xe9 }", "invalid_json", "not valid JSON", id="a comment"),
    ],
)
async def test_what_is_refused(relay, body, code, message):
    """With a body in the first API's shape, and no upstream is asked."""
    rig, ask = await relay(whole(BODY))
    status, headers, data = await ask(body)
    error = json.loads(data)["error"]
    assert (400, code) == (status, error["code"])
    assert message in error["message"]
    assert {"message", "type", "param", "code"} == set(error)
    assert headers["x-request-id"]
    assert 0 == rig.upstream.received


async def test_a_model_that_nobody_serves(serve, guarded):
    """It is the first API's error, for one that is named and for the default one."""
    auth, moderation = guarded()
    rig = await serve(
        whole(BODY),
        chain=[auth, {"use": "bingcheng", "default_model": "x"}, moderation],
        upstream={"models": ["gpt-4"]},
    )
    for body in ({"keyword": "a"}, {"messages": ASKED, "model": "y"}):
        async with rig.session.post(rig.url + PATH, json=body) as response:
            assert (404, "invalid_model") == (response.status, (await response.json())["error"]["code"])
    assert 0 == rig.upstream.received


async def test_the_path_is_for_post(relay):
    """Others are told so; the first API is served beside it."""
    rig, _ = await relay(streamed(frames.stream(["Hi"])))
    async with rig.session.get(rig.url + PATH) as response:
        assert (405, "POST, OPTIONS") == (response.status, response.headers["Allow"])
    async with rig.session.options(rig.url + PATH) as response:
        assert (204, "POST, OPTIONS") == (response.status, response.headers["Allow"])
    assert {0: "Hi"} == (await rig.ask()).texts()


async def test_without_the_plugin_there_is_no_such_path(serve):
    """It belongs to the chain."""
    rig = await serve(whole(BODY))
    async with rig.session.post(rig.url + PATH, data=REQUEST) as response:
        assert (404, "not_found") == (response.status, (await response.json())["error"]["code"])


async def test_the_profile(serve, open_chain, tmp_path):
    """What `relay init --profile bingcheng` writes serves the page's requests with the page's replies."""
    [auth] = open_chain
    profile = tomllib.loads(starter("bingcheng"))
    [upstream] = profile["upstreams"]
    rig = await serve(
        lambda request: streamed(FRAMES) if request.streams else whole(BODY),
        chain=[{**table, "keys": auth["keys"]} if table["use"] == "auth" else table for table in profile["plugins"]],
        upstream={"models": upstream["models"]},
        store=f"{profile['store']['url']}{tmp_path}",
    )
    for number, (data, reply) in enumerate(((REQUEST, b"".join(FRAMES)), (UNSTREAMED, BODY)), 1):
        async with rig.session.post(rig.url + PATH, data=data) as response:
            assert (200, reply) == (response.status, await response.read())
        assert (ASKED, "gpt-3.5-turbo") == tuple(map((await sent(rig, number)).get, ("messages", "model")))
    for number, (history, messages) in enumerate(HISTORIES.items(), 3):
        async with rig.session.post(rig.url + PATH, json={"keyword": history}) as response:
            assert (200, BODY) == (response.status, await response.read())
        assert {"messages": messages, "model": "gpt-3.5-turbo"} == await sent(rig, number)
