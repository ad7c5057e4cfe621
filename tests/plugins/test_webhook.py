"""The moderator `webhook`, against an endpoint that says what a test has it say."""

import base64
import hashlib
import hmac
import json
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai.types as sdk
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDictProxy

from relay.labels import LabelPolicy, Thresholds
from relay.moderator import (
    PASS,
    Context,
    Finding,
    NoVerdict,
    RateLimited,
    Span,
    Unauthorized,
    Unavailable,
    Verdict,
)
from relay.options import ConfigError, build
from relay.options import Context as OptionContext
from relay.testing.reply import Lent
from relay_plugins.webhook import Webhook, openai, plain, signature
from relay_plugins.webhook.endpoint import MAX_ANSWER_BYTES

WHERE = Context("req-1", "response", "content", 0, caller="shop", user="ann")
CANARY, TOKEN = "Schlafittchen", "tok-4b1e9f"
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Endpoint:
    """A server that gives one answer to everyone, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = {"action": "pass"}
        self.status = 200
        self.headers: dict[str, str] = {}
        self.breaks = False
        self.bodies: list[bytes] = []
        self.asked: list[CIMultiDictProxy[str]] = []
        self.connections: set[Any] = set()
        self.url = ""

    async def say(self, request: web.BaseRequest) -> web.Response:
        self.bodies.append(await request.read())
        self.asked.append(request.headers)
        self.connections.add(request.transport)
        if self.breaks and request.transport is not None:
            request.transport.abort()
        body = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return web.Response(status=self.status, body=body, headers=self.headers)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    fake = Endpoint()
    runner = web.ServerRunner(web.Server(fake.say, access_log=None), handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/check?v=1"
    yield fake
    await runner.cleanup()


def built(folder: Path = Path(), **options: object) -> Webhook:
    """As from relay.toml."""
    return build(Webhook, options, "moderators[0]", context=OptionContext(folder=folder, environ={}))


@asynccontextmanager
async def opened(endpoint: Endpoint, **options: object) -> AsyncIterator[Webhook]:
    moderator = built(**{"url": endpoint.url, **options})  # type: ignore[arg-type]
    async with moderator.lifespan(Lent().services):
        yield moderator


def moderation(flagged: bool = True, **scores: float) -> dict[str, Any]:
    """An answer of OpenAI's API, as its SDK knows it; the categories with a score of one half or more are true."""
    names = {field.alias or name: name for name, field in sdk.moderation.Categories.model_fields.items()}
    said = {alias: scores.get(name, 0.0001) for alias, name in names.items()}
    result = {
        "flagged": flagged,
        "categories": {name: score >= 0.5 for name, score in said.items()},
        "category_scores": said,
        "category_applied_input_types": {name: ["text"] for name in said},
    }
    answer = {"id": "modr-1", "model": "omni-moderation-latest", "results": [result]}
    parsed = sdk.ModerationCreateResponse.model_validate(answer)
    dumped: dict[str, Any] = parsed.model_dump(mode="json", by_alias=True)
    assert answer == dumped
    return dumped


# OpenAI's shape


async def test_what_openai_is_sent(endpoint: Endpoint) -> None:
    """The SDK's own parameters: the model and the text, with the token."""
    endpoint.answer = moderation(flagged=False)
    async with opened(endpoint, api="openai", token=TOKEN) as moderator:
        await moderator.check("你好", WHERE)
    assert [{"model": "omni-moderation-latest", "input": "你好"}] == [json.loads(body) for body in endpoint.bodies]
    [headers] = endpoint.asked
    assert (f"Bearer {TOKEN}", "application/json") == (headers["Authorization"], headers["Content-Type"])


async def test_what_openai_flags(endpoint: Endpoint) -> None:
    """It blocks, under the category with the highest score; all categories are told with theirs."""
    endpoint.answer = moderation(violence=0.874, hate=0.5, sexual=0.2)
    async with opened(endpoint, api="openai") as moderator:
        said = await moderator.check(CANARY, WHERE)
    assert ("block", "violence", 87, "modr-1") == (said.action, said.label, said.score, said.reference)
    assert openai.CATEGORIES == {found.label for found in said.findings}
    found = {each.label: (each.action, each.score) for each in said.findings}
    assert (("block", 87), ("block", 50), ("pass", 20)) == (found["violence"], found["hate"], found["sexual"])


@pytest.mark.parametrize(
    ("scores", "flagged", "action", "label"),
    [
        pytest.param({"violence": 0.6}, True, "pass", "", id="flagged, and not enough for the operator"),
        pytest.param({"violence": 0.9}, True, "block", "violence", id="flagged, and enough"),
        pytest.param({"self_harm": 0.4}, False, "block", "self-harm", id="not flagged, and too much for the operator"),
        pytest.param({"violence": 0.6, "hate": 0.55}, True, "block", "hate", id="another one counts all the same"),
        pytest.param({}, True, "block", "", id="flagged without a category"),
        pytest.param({"hate": 0.6}, False, "block", "hate", id="a category without the flag"),
        pytest.param({"hate": 0.4}, False, "pass", "", id="nothing"),
    ],
)
def test_the_operators_thresholds(scores: dict[str, float], flagged: bool, action: str, label: str) -> None:
    """They are compared with the scores of all categories, flagged or not."""
    policy = LabelPolicy({"violence": Thresholds(block=80), "self-harm": Thresholds(block=30)})
    ruling = policy.rule(openai.verdict(orjson.dumps(moderation(flagged, **scores))), "webhook")
    assert (action, label) == (ruling.action, ruling.label if ruling.action != "pass" else "")


def test_what_other_services_leave_out() -> None:
    """A category may be null, have no score, or have one outside of the range; each of several results counts."""
    results = [
        {"flagged": False, "categories": {"a": None}, "category_scores": {"a": None, "b": 3.0, "c": -1}},
        {"flagged": True, "categories": {"x" * 99: True}, "category_scores": {}},
    ]
    said = openai.verdict(json.dumps({"results": results}).encode())
    assert ("block", "x" * 64, None, "") == (said.action, said.label, said.score, said.reference)
    assert (
        Finding("pass", "a"),
        Finding("block", "x" * 64),
        Finding("pass", "b", 100),
        Finding("pass", "c", 0),
    ) == said.findings


# The plain shape


async def test_what_is_sent(endpoint: Endpoint) -> None:
    """The text and where it stands; who asks only if that is wished, and then no verdict is kept for others."""
    async with opened(endpoint) as moderator:
        assert moderator.cacheable
        assert "pass" == (await moderator.check("hi\ud800", WHERE)).action
    async with opened(endpoint, who=True, headers={"X-Api-Key": "k 1"}) as moderator:
        assert not moderator.cacheable
        await moderator.check("hi", WHERE)
    bare = {"text": "hi?", "direction": "response", "surface": "content", "request_id": "req-1"}
    asked = [json.loads(body) for body in endpoint.bodies]
    assert [bare, {**bare, "text": "hi", "caller": "shop", "user": "ann"}] == asked
    assert "Authorization" not in endpoint.asked[0]
    assert "k 1" == endpoint.asked[1]["X-Api-Key"]


async def test_the_documented_answer(endpoint: Endpoint) -> None:
    """The example of docs/moderation.md is understood."""
    page = (Path(__file__).parents[2] / "docs" / "moderation.md").read_text(encoding="utf-8")
    asked, endpoint.answer = (json.loads(block.partition("```")[0]) for block in page.split("```json\n")[1:3])
    async with opened(endpoint) as moderator:
        said = await moderator.check("x" * 50, WHERE)
    assert set(asked) == set(json.loads(endpoint.bodies[0]))
    findings = (
        Finding("mask", "phone", 90, (Span(12, 23),)),
        Finding("review", "advertising", 55, (Span(30, 41),)),
    )
    assert Verdict("mask", "phone", 90, findings, "case-4711") == said
    assert (Span(12, 23),) == LabelPolicy().rule(said, "webhook").masks


@pytest.mark.parametrize("spans", [[[0, 1], [1, 3]], [[-1, 1]], [[1, 1]], [[2, 1]], [[0, 2**70]], []])
def test_places_outside(spans: list[list[int]]) -> None:
    """One that the text does not have makes all doubtful: a mask blocks then."""
    try:
        said = plain.verdict(json.dumps({"action": "mask", "label": "x", "spans": spans}).encode(), "😀坏")
    except NoVerdict:
        assert [[0, 2**70]] == spans
        return
    assert "block" == LabelPolicy().rule(said, "webhook").action


def test_names_are_bounded() -> None:
    """What an endpoint calls a thing stands in the log on one line, and is short."""
    said = plain.verdict(
        json.dumps({"action": "block", "label": "a\nb" + "c" * 99, "reference": "\x1b[0m"}).encode(), ""
    )
    assert ("a_b" + "c" * 61, "_[0m") == (said.label, said.reference)


FIELDS = ["action", "label", "spans", "findings", "results", "flagged", "categories", "category_scores", CANARY]
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["pass", "block", CANARY]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=6,
)


@given(st.binary(max_size=40) | ANSWERS.map(lambda value: json.dumps(value).encode()))
def test_any_answer(data: bytes) -> None:
    """Whatever is answered, it is a verdict or none, and what is said of that names nothing of it."""
    for read in (openai.verdict, lambda data: plain.verdict(data, "ab")):
        assert CANARY not in shown(read, data)


def shown(read: Callable[[bytes], Verdict], data: bytes) -> str:
    """What an operator would see of a reading that failed."""
    try:
        read(data)
    except NoVerdict as problem:
        return "".join(traceback.format_exception(problem))
    return ""


async def test_nothing(endpoint: Endpoint) -> None:
    """Nothing is no reason to ask."""
    async with opened(endpoint) as moderator:
        assert PASS is await moderator.check("", WHERE)
    assert [] == endpoint.bodies


async def test_connections_are_kept(endpoint: Endpoint) -> None:
    async with opened(endpoint) as moderator:
        for _ in range(3):
            await moderator.check("hi", WHERE)
    assert (3, 1) == (len(endpoint.bodies), len(endpoint.connections))


# Signatures


def test_a_signature_as_the_libraries_make_it() -> None:
    """The example that the libraries of Standard Webhooks are tested with."""
    body = b'{"test": 2432232314}'
    made = signature.headers(signature.key(KEY), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330.9, body)
    assert {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    } == made


async def test_every_call_is_signed(endpoint: Endpoint) -> None:
    """Each under an id of its own, over the bytes that were sent."""
    async with opened(endpoint, signing_key=KEY) as moderator:
        for _ in range(2):
            await moderator.check("hi", WHERE)
    for headers, body in zip(endpoint.asked, endpoint.bodies, strict=True):
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(base64.b64decode(KEY.removeprefix("whsec_")), signed, hashlib.sha256).digest()
        assert f"v1,{base64.b64encode(digest).decode()}" == headers["webhook-signature"]
    assert 2 == len({headers["webhook-id"] for headers in endpoint.asked})


# No verdict


def without_secrets(error: BaseException) -> None:
    """Neither the text nor a secret is anywhere in what a traceback shows."""
    shown = "".join(traceback.format_exception(error))
    for word in (CANARY, TOKEN, KEY):
        assert word not in shown


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, Unauthorized, "check `token`"),
        (403, Unauthorized, "check `token`"),
        (429, RateLimited, "lower `calls_per_second`"),
        (408, Unavailable, "HTTP 408"),
        (500, Unavailable, "HTTP 500"),
        (503, Unavailable, "HTTP 503"),
        (400, NoVerdict, "check `url`, `api` and `model`"),
        (404, NoVerdict, "check `url`"),
        (202, NoVerdict, "where 200 and a verdict are expected"),
    ],
)
async def test_statuses(endpoint: Endpoint, status: int, error: type[NoVerdict], message: str) -> None:
    """Each says what to look at; the next call is answered."""
    endpoint.status, endpoint.answer = status, {"error": CANARY}
    async with opened(endpoint, token=TOKEN, signing_key=KEY) as moderator:
        with pytest.raises(NoVerdict, match=message) as caught:
            await moderator.check(CANARY, WHERE)
        assert error is type(caught.value)
        without_secrets(caught.value)
        endpoint.status, endpoint.answer = 200, {"action": "pass"}
        assert "pass" == (await moderator.check("hi", WHERE)).action


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(endpoint: Endpoint, status: int) -> None:
    """Neither the text nor the credentials go where nobody has said that they may."""
    endpoint.status, endpoint.headers = status, {"Location": endpoint.url}
    async with opened(endpoint, token=TOKEN) as moderator:
        with pytest.raises(NoVerdict, match="redirects are not followed; set `url`"):
            await moderator.check(CANARY, WHERE)
    assert 1 == len(endpoint.bodies)


@pytest.mark.parametrize(
    ("answer", "api", "message"),
    [
        (b"", "plain", "no JSON"),
        (b'{"action": "pass"', "plain", "no JSON"),
        (b'{"action": "\xff"}', "plain", "no JSON"),
        (b"<html>", "openai", "no JSON"),
        ([], "plain", "Expected `object`, got `array`"),
        ({}, "plain", "missing required field `action`"),
        ({"action": CANARY}, "plain", r"none of those that there are, at `\$.action`"),
        ({"action": "pass", CANARY: 1}, "plain", "a field that there is not"),
        ({"action": "pass", "findings": [{"action": "mask", CANARY: 1}]}, "plain", r"is not, at `\$.findings\[0\]`"),
        ({"action": "pass", "score": 101}, "plain", r"Expected `int` <= 100, at `\$.score`"),
        ({"action": "pass", "score": 0.5}, "plain", r"Expected `int.*`, got `float`, at `\$.score`"),
        ({"action": "pass", "spans": [[1]]}, "plain", r"Expected `array` of length 2, at `\$.spans\[0\]`"),
        ({"results": []}, "openai", r"Expected `array` of length >= 1, at `\$.results`"),
        ({"results": [{"flagged": 1}]}, "openai", r"Expected `bool`, got `int`, at `\$.results\[0\].flagged`"),
        (
            {"results": [{"flagged": True, "categories": {CANARY: 1}, "category_scores": {}}]},
            "openai",
            r"at `\$.results\[0\].categories\[...\]`",
        ),
        (b'{"action": "block", "action": "pass"}', "plain", "a key stands twice"),
        (b'{"action":"mask","findings":[{"action":"block","\\u0061ction":"pass"}]}', "plain", "a key stands twice"),
        (
            b'{"results": [{"flagged": true, "flagged": false, "categories": {}, "category_scores": {}}]}',
            "openai",
            "a key stands twice",
        ),
        (
            b'{"results": [{"flagged": false, "categories": {"hate": true, "hate": false}, "category_scores": {}}]}',
            "openai",
            "a key stands twice",
        ),
        (
            b'{"results": [{"flagged": false, "categories": {}, "category_scores": {}}], "x": '
            + b"[" * 300
            + b"]" * 300
            + b"}",
            "openai",
            "nests deeply",
        ),
        (b'{"action": "pass", "label": "' + b"x" * MAX_ANSWER_BYTES + b'"}', "plain", "longer than 65536 bytes"),
    ],
)
async def test_what_is_no_answer(endpoint: Endpoint, answer: Any, api: str, message: str) -> None:
    """What is wrong is said, and where, in no words of the answer's."""
    endpoint.answer = answer
    async with opened(endpoint, api=api) as moderator:
        with pytest.raises(NoVerdict, match=message) as caught:
            await moderator.check(CANARY, WHERE)
    assert NoVerdict is type(caught.value)
    without_secrets(caught.value)


async def test_a_packed_answer_is_not_unpacked(endpoint: Endpoint) -> None:
    """It was asked for as it is, and may be anything when it is unpacked."""
    endpoint.headers = {"Content-Encoding": "gzip"}
    endpoint.answer = base64.b64decode("H4sIAAAAAAAAA6tWSkwuyczPU7JSKkgsLlaqBQAwZu3FEQAAAA==")
    async with opened(endpoint) as moderator:
        with pytest.raises(NoVerdict, match="no JSON"):
            await moderator.check("hi", WHERE)


async def test_a_broken_connection(endpoint: Endpoint) -> None:
    endpoint.breaks = True
    async with opened(endpoint, token=TOKEN) as moderator:
        with pytest.raises(Unavailable, match="the connection failed") as caught:
            await moderator.check(CANARY, WHERE)
    without_secrets(caught.value)


async def test_no_tls(endpoint: Endpoint) -> None:
    """A server that speaks none is not shown the text without it."""
    async with opened(endpoint, url=endpoint.url.replace("http:", "https:")) as moderator:
        with pytest.raises(Unavailable, match="SSL"):
            await moderator.check(CANARY, WHERE)
    assert [] == endpoint.bodies


async def test_credentials_that_became_useless(endpoint: Endpoint, tmp_path: Path, monkeypatch: Any) -> None:
    """A file that holds no token any more is said to, and nothing of it is sent."""
    monkeypatch.setattr("relay.secret._LOOK_EVERY_S", 0)
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with opened(endpoint, token={"file": str(file)}) as moderator:
        file.write_text(TOKEN + "\r\nX-More: 1")
        with pytest.raises(Unauthorized, match="token holds a space"):
            await moderator.check("hi", WHERE)
    assert [] == endpoint.bodies


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "option 'url' is missing"),
        ({"url": "moderator.example"}, "url is no address; write it as in"),
        ({"url": "ftp://moderator.example/"}, "url is no address"),
        ({"url": "http://:80/"}, "url is no address"),
        ({"url": f"https://me:{TOKEN}@moderator.example/"}, "url names a user or a password; give it as `token`"),
        ({"url": "https://moderator.example/#a"}, "behind #"),
        ({"url": "https://a.example/", "token": f"{TOKEN} "}, "token holds a space"),
        ({"url": "https://a.example/", "headers": {"X Y": "1"}}, "headers holds a name that is none"),
        ({"url": "https://a.example/", "headers": {"X-Y": f"{TOKEN}\n"}}, "headers.X-Y holds a character"),
        ({"url": "https://a.example/", "headers": {"HOST": "1"}}, "headers.HOST is set by the relay"),
        ({"url": "https://a.example/", "headers": {"Authorization": "1"}, "token": TOKEN}, "is set by the relay"),
        ({"url": "https://a.example/", "signing_key": TOKEN}, "whsec_ and 24 to 64 bytes in base64; make one by"),
        ({"url": "https://a.example/", "signing_key": "whsec_" + "QUJD" * 3}, "24 to 64 bytes"),
        ({"url": "https://a.example/", "api": "openai", "who": True}, "leave `who` out"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    """What is wrong is said with the remedy, and never with what may be secret."""
    with pytest.raises(ConfigError) as caught:
        built(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    without_secrets(caught.value)


def test_nothing_secret_is_shown() -> None:
    """Nor in what an operator may print."""
    moderator = built(url="https://a.example/", token=TOKEN, headers={"X-Key": CANARY}, signing_key=KEY)
    for word in (TOKEN, CANARY, KEY):
        assert word not in repr(moderator)
    assert "webhook https://a.example/ tok-4b1e9f" == moderator.account  # which is hashed before it goes anywhere


@pytest.mark.parametrize(("url", "warned"), [("http://a.example/", 1), ("http://[::1]/", 0), ("https://a.example", 0)])
async def test_unencrypted(url: str, warned: int) -> None:
    """Texts that would go through a network unencrypted are worth a warning."""
    lent = Lent()
    async with built(url=url).lifespan(lent.services):
        assert warned == len(lent.lines)
