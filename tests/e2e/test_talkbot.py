"""The first API on a real relay with the profile `talkbot`: what its page prints, request by request, reply by reply.

What stands here as printed is copied from the page, entities decoded. Where the page is kept, line ends and indents have
become single spaces (of its request: runs of no-break spaces, which JSON does not take for white space); the blank lines
between frames are put back.
"""

import json
import tomllib

import pytest

from relay.starter import starter
from relay.testing import streamed, whole

# "请求示例"
REQUEST = (
    '{ "model":"gpt-3.5-turbo-1106", "stream": true, "user":"d7e68cb9-f494-4d78-89ce-735eeab4b107", "messages":[ '
    '{ "role":"user", "content":"你是谁" }, '
    '{ "role":"assistant", "content":"我是一个AI语言模型,由OpenAI开发。" }, '
    '{ "role":"user", "content":"1+1=?" } ] }'
).encode()
UNSTREAMED = REQUEST.replace(b' "stream": true,', b"")

# "非流式正确返回示例"
BODY = (
    '{ "id":"chatcmpl-7MCqEj6w5C4fUuLcTrsDH2e6ExYkv", "object":"chat.completion", "created":1685526934, '
    '"model":"gpt-3.5-turbo-1106", "usage":{ "prompt_tokens":41, "completion_tokens":6, "total_tokens":47 }, '
    '"choices":[ { "message":{ "role":"assistant", "content":"1+1=2。" }, "finish_reason":"stop", "index":0 } ], '
    '"system_fingerprint": "fp_eeff13170a" }'
).encode()

# "流式正确返回示例": the frames, which differ in their deltas.
FRAMES = [
    (
        'data: {"id":"chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT","object":"chat.completion.chunk","created":1685526975,'
        '"model":"gpt-3.5-turbo-1106","system_fingerprint":"fp_eeff13170a",'
        f'"choices":[{{"delta":{delta},"index":0,"finish_reason":{finish}}}]}}\n\n'
    ).encode()
    for delta, finish in [
        ('{"role":"assistant"}', "null"),
        *((f'{{"content":"{said}"}}', "null") for said in "1+1=2。"),
        ("{}", '"stop"'),
    ]
] + [b"data: [DONE]\n\n"]

# "异常返回示例", without the one about the balance (余额不足), which is not built yet.
NO_KEY = """{ "error": { "message": "You didn't provide an API key. You need to provide your API key in an Authorization \
header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're \
accessing the API from your browser and are prompted for a username and password. You can obtain an API key from \
https://vip.gptchatclub.com/api.", "type": "talk_api_error", "param": null, "code": "invalid_api_key" } }"""
WRONG_KEY = """{ "error": { "message": "Incorrect API key provided: sk-1afsp*****************************************k5R2. \
You can find your API key at https://vip.gptchatclub.com/api.", "type": "invalid_request_error", "param": null, \
"code": "invalid_api_key" } }"""
WRONG_MODEL = """{ "error": { "message": "Unsupported model.", "type": "talk_api_error", "param": null, \
"code": "invalid_model" } }"""
NO_MESSAGES = """{ "error": { "message": "Unsupported messages.", "type": "talk_api_error", "param": null, \
"code": "invalid_messages" } }"""
INTERNAL = """{ "error": { "message": "Internal server error.", "type": "talk_api_error", "param": null, \
"code": "internal_error" } }"""

# "模型类型", without the remarks in parentheses.
MODELS = (
    "gpt-3.5-turbo、gpt-3.5-turbo-0301、gpt-3.5-turbo-0613、gpt-3.5-turbo-16k、gpt-3.5-turbo-16k-0613、gpt-3.5-turbo-1106、"
    "gpt-3.5-turbo-0125、gpt-4、gpt-4-0613、gpt-4-1106-preview、gpt-4-turbo-preview、gpt-4-0125-preview、"
    "gpt-4-turbo-2024-04-09"
).split("、")

# What the page says of parameters that are not sent; where it says 0 or nothing, nothing is sent on.
DEFAULTS = {"temperature": 0.2, "max_tokens": 2048, "top_p": 1.0, "n": 1}


@pytest.fixture
async def relay(serve, open_chain, tmp_path):
    """`rig, ask = await relay(script, *more)`: the profile's chain and models, with the rig's key, and more plugins."""
    [auth] = open_chain
    profile = tomllib.loads(starter("talkbot"))
    [upstream] = profile["upstreams"]

    async def start(script, *more):
        chain = [{**table, "keys": auth["keys"]} if table["use"] == "auth" else table for table in profile["plugins"]]
        store = f"{profile['store']['url']}{tmp_path}"
        rig = await serve(script, chain=[*chain, *more], upstream={"models": upstream["models"]}, store=store)

        async def ask(data, **headers):
            async with rig.session.post(rig.chat_url, data=data, headers=headers) as response:
                return response.status, response.headers, await response.read()

        return rig, ask

    return start


def asked(request):
    """What the upstream was asked, but for the usage that the relay may want to know."""
    return {name: value for name, value in request.json.items() if name != "stream_options"}


async def test_a_streamed_reply(relay):
    """The request gives the frames byte for byte, `system_fingerprint` and all, and nothing more."""
    rig, ask = await relay(streamed(FRAMES))
    status, headers, data = await ask(REQUEST)
    assert (200, "text/event-stream; charset=utf-8") == (status, headers["Content-Type"])
    assert b"".join(FRAMES) == data
    assert {**json.loads(REQUEST), **DEFAULTS} == asked(rig.upstream.requests[0])


async def test_a_reply_at_once(relay):
    """Without `stream` it is the body, byte for byte."""
    rig, ask = await relay(whole(BODY))
    status, headers, data = await ask(UNSTREAMED)
    assert (200, "application/json") == (status, headers["Content-Type"].partition(";")[0])
    assert BODY == data
    assert {**json.loads(UNSTREAMED), **DEFAULTS} == asked(rig.upstream.requests[0])


@pytest.mark.parametrize("model", MODELS)
async def test_each_model(relay, model):
    """Each of the thirteen is asked for under its own name."""
    rig, ask = await relay(whole(BODY))
    status, _, _ = await ask(UNSTREAMED.replace(b"gpt-3.5-turbo-1106", model.encode()))
    assert (200, model) == (status, rig.upstream.requests[0].json["model"])


async def test_the_models(relay):
    """They are listed, for those who have a key."""
    rig, _ = await relay(whole(BODY))
    async with rig.session.get(rig.url + "/v1/models") as response:
        assert MODELS == [model["id"] for model in (await response.json())["data"]]
    async with rig.session.get(rig.url + "/v1/models", headers={"Authorization": ""}) as response:
        assert (401, json.loads(NO_KEY)) == (response.status, await response.json())
    assert 13 == len(MODELS)


@pytest.mark.parametrize(
    ("data", "headers", "status", "body"),
    [
        pytest.param(REQUEST, {"Authorization": ""}, 401, NO_KEY, id="no key"),
        pytest.param(REQUEST, {"Authorization": f"Bearer sk-1afsp{'x' * 39}k5R2"}, 401, WRONG_KEY, id="a wrong key"),
        pytest.param(REQUEST.replace(b"1106", b"1107"), {}, 404, WRONG_MODEL, id="a wrong model"),
        pytest.param(b'{"messages":[{}]}', {}, 404, WRONG_MODEL, id="no model"),
        pytest.param(b'{"model":"gpt-4"}', {}, 400, NO_MESSAGES, id="no messages"),
        pytest.param(b'{"model":"gpt-4","messages":null}', {}, 400, NO_MESSAGES, id="null for messages"),
        pytest.param(b'{"model":"gpt-4","messages":[]}', {}, 400, NO_MESSAGES, id="empty messages"),
    ],
)
async def test_an_error(relay, data, headers, status, body):
    """Word for word, fields in the page's order, and no upstream is asked."""
    rig, ask = await relay(whole(BODY))
    got, _, answer = await ask(data, **headers)
    assert status == got
    assert json.dumps(json.loads(body)) == json.dumps(json.loads(answer))
    assert 0 == rig.upstream.received


@pytest.mark.parametrize("data", [REQUEST, UNSTREAMED], ids=["streamed", "at once"])
async def test_an_internal_error(relay, data):
    """Word for word, when something of the relay's own breaks."""
    rig, ask = await relay(whole(BODY), {"use": "failing:Refusing"})
    rig.loudest = "error"
    status, _, answer = await ask(data)
    assert 500 == status
    assert json.dumps(json.loads(INTERNAL)) == json.dumps(json.loads(answer))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", "字" * 65),
        ("stream", "true"),
        ("max_tokens", 4097),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
    ],
)
async def test_what_the_page_does_not_allow(relay, name, value):
    """It is refused with the name of the parameter, and no upstream is asked."""
    rig, ask = await relay(whole(BODY))
    status, _, answer = await ask(json.dumps({**json.loads(UNSTREAMED), name: value}))
    assert (400, name) == (status, json.loads(answer)["error"]["param"])
    assert 0 == rig.upstream.received


async def test_an_array_for_logit_bias(relay):
    """The page calls it an array, empty by default. OpenAI's servers want an object, so an empty one is not sent on."""
    rig, ask = await relay(whole(BODY))
    status, _, answer = await ask(json.dumps({**json.loads(UNSTREAMED), "logit_bias": []}))
    assert (200, BODY) == (status, answer)
    assert "logit_bias" not in rig.upstream.requests[0].json


async def test_its_words_are_moderated(relay):
    """What the profile forbids is refused in a request."""
    rig, ask = await relay(whole(BODY))
    status, _, answer = await ask(UNSTREAMED.replace("你是谁".encode(), "换成您自己的词".encode()))
    assert (400, "content_filter") == (status, json.loads(answer)["error"]["code"])
    assert 0 == rig.upstream.received
