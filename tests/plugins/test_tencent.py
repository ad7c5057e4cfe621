"""The moderator `tencent`, against the fake of the service that the official SDK has looked at (test_tencent_fake.py)."""

import asyncio
import json
import logging
import re
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.tms.v20201229 import models

from relay.assembly import registries
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
from relay.secret import Secret
from relay.testing.reply import Lent
from relay_plugins.tencent import Tencent
from relay_plugins.tencent.answer import joined, verdict
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake, Word
from relay_plugins.tencent.fake.ask import Ask
from relay_plugins.tencent.fake.settings import Settings
from relay_plugins.tencent.fake.signature import Account, Signed, verify
from relay_plugins.tencent.fake.verdict import verdict as answered
from relay_plugins.tencent.faults import TooLong, clock
from relay_plugins.tencent.service import _read
from relay_plugins.tencent.signature import headers

WHERE = Context("req-1", "response", "content", 0)
CANARY = "Schlafittchen"


def built(folder: Path = Path(), **options: object) -> Tencent:
    """As from relay.toml."""
    table = {"secret_id": SECRET_ID, "secret_key": SECRET_KEY, **options}
    return build(Tencent, table, "moderators[0]", context=OptionContext(folder=folder, environ={}))


@asynccontextmanager
async def opened(fake: Fake, lent: Lent | None = None, **options: object) -> AsyncIterator[Tencent]:
    moderator = built(**{"endpoint": fake.endpoint, **options})  # type: ignore[arg-type]
    async with moderator.lifespan((lent or Lent()).services):
        yield moderator


@pytest.fixture
async def tencent(tms: Fake) -> AsyncIterator[Tencent]:
    async with opened(tms) as moderator:
        yield moderator


# Verdicts


async def test_passed(tms: Fake, tencent: Tencent) -> None:
    """A harmless text passes, under the service's name for the call, and with an entry for every label."""
    said = await tencent.check("你好", WHERE)
    assert ("pass", "Normal", 0) == (said.action, said.label, said.score)
    assert {"pass"} == {found.action for found in said.findings}
    assert re.fullmatch(r"[0-9a-f-]{36}", said.reference)
    assert ["你好"] == [ask.text for ask in tms.counts.kept]


async def test_found(tms: Fake, tencent: Tencent) -> None:
    """Every entry counts: a detail may block what the top level would review. Places are those of the text."""
    tms.change(words=[Word("枪", "Polity", "Review", 60), Word("坏蛋", "Abuse", "Block", 99)])
    text = "😀坏蛋,枪,坏蛋"
    said = await tencent.check(text, WHERE)
    assert ("review", "Polity", 60) == (said.action, said.label, said.score)
    polity, abuse = said.findings[:2]
    assert Finding("review", "Polity", 60, (Span(4, 5, "枪"),)) == polity
    assert Finding("block", "Abuse", 99, (Span(1, 3, "坏蛋"), Span(6, 8, "坏蛋"))) == abuse
    for span in (*polity.spans, *abuse.spans):
        assert span.keyword == text[span.start : span.end]


@pytest.mark.parametrize(
    ("told", "spans"),
    [
        ("all", (Span(1, 2, "坏"),)),
        ("snippets", (Span(1, 2, "坏"),)),
        ("keywords", (Span(0, 0, "坏"),)),
        ("none", ()),
    ],
)
async def test_what_is_told_of_places(tms: Fake, tencent: Tencent, told: str, spans: tuple[Span, ...]) -> None:
    """A keyword without a place is to be looked for; a model's verdict has no place."""
    tms.change(words=[Word("坏")], positions=told, details="hits")
    assert (Finding("block", "Abuse", 100, spans),) == (await tencent.check("很坏", WHERE)).findings


async def test_places_outside(tms: Fake, tencent: Tencent) -> None:
    """Places that the text does not have are none; the keyword is looked for."""
    tms.change(words=[Word("坏")], position_shift=1, details="hits")
    assert (Span(0, 0, "坏"),) == (await tencent.check("很坏", WHERE)).findings[0].spans
    tms.change(position_shift=-1)
    assert (Span(0, 1, "坏"),) == (await tencent.check("很坏", WHERE)).findings[0].spans


async def test_risks(tms: Fake) -> None:
    """An account or an address that the service knows as malicious is worth a review."""
    tms.change(risky_users=["ann"], risky_ips=["192.0.2.1"])
    async with opened(tms, user="key", ip_header="X-Real-IP") as moderator:
        context = Context("r", "request", "messages.0", caller="ann", headers=CIMultiDict({"x-real-ip": "192.0.2.1"}))
        said = await moderator.check("hi", context)
    assert [("review", "RiskAccount"), ("review", "RiskIP")] == [
        (each.action, each.label) for each in said.findings[-2:]
    ]


def response(**fields: Any) -> models.TextModerationResponse:
    """An answer of the service."""
    made = models.TextModerationResponse()
    ask = Ask("很坏", "", "", "", "", "", "TEXT", {})
    made._deserialize({**answered(ask, Settings(words=[Word("坏")], details="hits"), "id"), **fields})
    return made


def detail(**fields: Any) -> dict[str, Any]:
    return {"Label": "Porn", "Suggestion": "Block", "Keywords": [], "Score": 9, "HitInfos": [], **fields}


def hit(keyword: str, *places: tuple[Any, Any], model: bool = False) -> dict[str, Any]:
    positions = [{"Start": start, "End": end} for start, end in places]
    return {"Type": "Model" if model else "Keyword", "Keyword": keyword, "LibName": "", "Positions": positions}


def snippet(words: str, *places: tuple[int, int]) -> dict[str, Any]:
    positions = [{"Start": start, "End": end} for start, end in places]
    return {"Snippet": words, "AtomicName": "", "AtomicId": "", "Positions": positions}


@pytest.mark.parametrize(
    ("told", "spans"),
    [
        pytest.param(detail(HitInfos=[hit("", (0, 2), model=True)]), (Span(0, 2),), id="a model's place"),
        pytest.param(detail(HitInfos=[hit("", model=True)]), (), id="a model without a place"),
        pytest.param(detail(HitInfos=[hit("", (0, 0))]), (), id="an empty place"),
        pytest.param(detail(HitInfos=[hit("很", (0, 1)), hit("")]), (), id="one of two hits has no place"),
        pytest.param(
            detail(HitInfos=[hit("很", (0, 1), (5, 6))]), (Span(0, 0, "很"),), id="one of two places is wrong"
        ),
        pytest.param(detail(HitInfos=[hit("很", ("0", 1))]), (Span(0, 0, "很"),), id="a place in letters"),
        pytest.param(detail(HitInfos=[hit("很", (True, 2))]), (Span(0, 0, "很"),), id="a place that is true"),
        pytest.param(detail(HitInfos=[hit("很")], Keywords=["很"]), (Span(0, 0, "很"),), id="a keyword, twice told"),
        pytest.param(
            detail(HitInfos=[hit("很", (0, 1))], Keywords=["很", "坏", ""]),
            (Span(0, 1, "很"), Span(0, 0, "坏")),
            id="another keyword",
        ),
        pytest.param(
            detail(HitSnippetInfos=[snippet("很坏", (0, 1), (1, 2))]),
            (Span(0, 1, "很"), Span(1, 2, "坏")),
            id="a snippet in pieces",
        ),
        pytest.param(
            detail(HitSnippetInfos=[snippet("坏很", (0, 1), (1, 2))]),
            (Span(0, 1, "坏很"), Span(1, 2, "坏很")),
            id="pieces of something else",
        ),
        pytest.param(detail(HitSnippetInfos=[snippet("")]), (), id="an empty snippet"),
        pytest.param(detail(Keywords=None, HitInfos=None), (), id="null"),
    ],
)
def test_places(told: dict[str, Any], spans: tuple[Span, ...]) -> None:
    """A finding's places are told whole or not at all."""
    said = verdict(response(DetailResults=[told], HitSnippetInfos=None), "很坏", unexpected)
    assert (Finding("block", "Porn", 9, spans),) == said.findings


def unexpected(suggestion: str) -> None:
    raise AssertionError(suggestion)


def test_places_at_the_top() -> None:
    """Snippets of the top level belong to its label, and are a finding of their own if no entry has it."""
    places = [snippet("很", (0, 1)), snippet("坏", (1, 2))]
    said = verdict(response(HitSnippetInfos=places), "很坏", unexpected)
    assert (Finding("block", "Abuse", 100, (Span(1, 2, "坏"), Span(0, 1, "很"))),) == said.findings
    for others in (None, [detail()]):
        said = verdict(response(HitSnippetInfos=places, DetailResults=others), "很坏", unexpected)
        assert Finding("block", "Abuse", 100, (Span(0, 1, "很"), Span(1, 2, "坏"))) == said.findings[-1]


def test_suggestions_and_scores() -> None:
    """What is not known blocks; a score that is missing lets nothing through."""
    heard: list[str] = []
    entries = [
        detail(Suggestion="Delete"),
        detail(Suggestion=None),
        detail(Suggestion="Block", Score=None, Label=None),
        detail(Suggestion="Pass", Score=None),
        detail(Suggestion="Review", Score=101),
    ]
    said = verdict(response(Suggestion="Hide", DetailResults=entries, HitSnippetInfos=None), "很坏", heard.append)
    assert "block" == said.action
    assert [("block", 9), ("block", 9), ("block", 100), ("pass", 0), ("review", 100)] == [
        (found.action, found.score) for found in said.findings
    ]
    assert ["Hide", "Delete", "None"] == heard


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside one."""
    yield path
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in below:
        yield from places(inner, (*path, key))


@given(st.data())
def test_any_answer(data: st.DataObject) -> None:
    """Whatever stands in an answer, there is a verdict, or it is no answer."""
    settings = Settings(words=[Word("坏"), Word("很", "Ad", "Review")], risky_users=["u"])
    answer = {"Response": answered(Ask("很坏", "", "", "", "u", "", "TEXT", {}), settings, "id")}
    *way, last = data.draw(st.sampled_from([path for path in places(answer) if path]))
    inner: Any = answer
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(JSON)
    try:
        said = verdict(_read(orjson.dumps(answer)), "很坏", lambda suggestion: None)
    except (Unavailable, TencentCloudSDKException, ValueError, TypeError, AttributeError):
        return
    for found in said.findings:
        assert found.score is None or 0 <= found.score <= 100
        assert isinstance(found.label, str)
        for span in found.spans:
            assert 0 <= span.start <= span.end <= 2
            assert span.keyword or span.start < span.end
            assert isinstance(span.keyword, str)


async def test_unknown_suggestions_are_logged_once(tms: Fake) -> None:
    """The log is told of a suggestion that is not known, once."""
    lent = Lent()
    tms.change(words=[Word("坏")])
    async with opened(tms, lent) as moderator:
        for said in ("Hide", "Hide", "Melt", *map(str, range(99))):
            moderator._wonder(said)
    assert 16 == len(lent.lines)
    assert {
        "event": "moderator suggests what is not known; it blocks",
        "moderator": "tencent",
        "said": "Hide",
    }.items() <= (lent.lines[0].items())


# What is sent


async def test_sent(tms: Fake, tencent: Tencent) -> None:
    """As little as that: the text, its number, and of what type it is."""
    for _ in range(2):
        await tencent.check("hi", Context("Anfrage/7 ä", "request", "messages.0", user="u", caller="ann"))
    first, second = (dict(ask.parameters) for ask in tms.counts.kept)
    assert {"Content", "DataId", "Type"} == set(first)
    assert ("aGk=", "TEXT") == (first["Content"], first["Type"])
    assert re.fullmatch(r"Anfrage-7---[0-9a-f]{6}-1", str(first["DataId"]))
    assert re.fullmatch(r"Anfrage-7---[0-9a-f]{6}-2", str(second["DataId"]))


async def test_sent_with_everything(tms: Fake) -> None:
    """Every field that can be configured arrives."""
    options = {
        "biz_type": "strict_1",
        "session": True,
        "user": "request",
        "ip_header": "X-Forwarded-For",
        "biz_tag": "shop",
        "source_language": "zh",
        "region": "ap-singapore",
    }
    forwarded = CIMultiDict({"x-forwarded-for": "203.0.113.9, 192.0.2.7"})
    async with opened(tms, **options) as moderator:
        await moderator.check("hi", Context("r" * 99, "response", "tool_calls.0", 1, user="\ud800u", headers=forwarded))
        await moderator.check("hi", Context("r", "response", "tool_calls.0", 1, user="u" * 129))
        await moderator.check("hi", Context("r", "response", "content", 1))
    sent, short, bare = (dict(ask.parameters) for ask in tms.counts.kept)
    assert {"UserId": "?u", "AccountType": 7} == sent["User"]
    assert {"IP": "192.0.2.7"} == sent["Device"]
    assert ("strict_1", "shop", "zh") == (sent["BizType"], sent["BizTag"], sent["SourceLanguage"])
    assert re.fullmatch(r"[0-9a-f]{64}", str(sent["SessionId"]))
    assert 64 == len(str(sent["DataId"]))
    assert "r-response-1-tool_calls-0" == short["SessionId"]
    assert re.fullmatch(r"[0-9a-f]{64}", short["User"]["UserId"])  # type: ignore[index]
    assert not {"User", "Device"} & set(bare)


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", None),
        ("192.0.2.7:80", None),
        ("192.0.2.300", None),
        ("unknown", None),
        ("192.0.2.7,", None),
        ("", None),
    ],
)
async def test_addresses(tms: Fake, header: str, sent: str | None) -> None:
    """Only what is an IPv4 address is sent on as one."""
    async with opened(tms, ip_header="X-Real-IP") as moderator:
        await moderator.check("hi", Context("r", "request", "m", headers=CIMultiDict({"X-Real-IP": header})))
    assert sent == (tms.counts.kept[0].ip or None)


async def test_a_machine_s_text(tms: Fake) -> None:
    """TEXT_AIGC is another service with another limit."""
    async with opened(tms, type="TEXT_AIGC", calls_per_second=40) as moderator:
        assert "pass" == (await moderator.check("hi", WHERE)).action
        assert 40 == moderator.calls_per_second
    assert "TEXT_AIGC" == tms.counts.kept[0].type


@pytest.mark.parametrize(
    "text",
    [
        "中文。",
        "😀👨‍👩‍👧",
        "\x00\n\t\u2028",
        "a\ud83d",
        "é" * 10_000,
        "😀" * 10_000,
        "<>&\"'\\",
        "A" * 9_999 + "\U0010ffff",
    ],
)
async def test_texts(tms: Fake, tencent: Tencent, text: str) -> None:
    """Any text arrives as it is, but for halves of a surrogate pair; no character moves."""
    await tencent.check(text, WHERE)
    [ask] = tms.counts.kept
    assert text.encode("utf-8", "replace").decode() == ask.text
    assert len(text) == len(ask.text)


async def test_nothing(tms: Fake, tencent: Tencent) -> None:
    """Nothing is no reason to ask."""
    assert PASS is await tencent.check("", WHERE)
    assert 0 == tms.counts.calls


@given(
    st.binary(max_size=50),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
    st.integers(0, 2**32),
)
def test_signature(body: bytes, key: str, now: int) -> None:
    """What one side signs, the other accepts, at any time and with any key."""
    sent = headers(body, host="localhost:8080", region="ap-x", secret_id="id", secret_key=key, token="t", now=now + 0.5)
    verify(Signed("POST", "/", "", CIMultiDict(sent), body), Account("id", key, "t"), now)


# The connection


async def test_one_connection(tms: Fake, tencent: Tencent) -> None:
    """A connection is used again."""
    for _ in range(5):
        await tencent.check("hi", WHERE)
    assert (5, 1) == (tms.counts.answered, tms.connections)


async def test_concurrent(tms: Fake, tencent: Tencent) -> None:
    """A hundred at once get each its own verdict."""
    tms.change(words=[Word("坏")], p50_ms=2, p99_ms=20)
    texts = ["坏" * (number % 2) + str(number) for number in range(100)]
    said = await asyncio.gather(*(tencent.check(text, WHERE) for text in texts))
    assert [number % 2 * "坏" for number in range(100)] == ["坏" if each.action == "block" else "" for each in said]
    assert 100 == len({each.reference for each in said}) == len({ask.data_id for ask in tms.counts.kept})
    assert tms.connections <= 100


async def test_cancelled(tms: Fake) -> None:
    """A check that is cancelled leaves nothing behind, however far it was, and the next one is answered."""
    async with opened(tms) as moderator:
        for outage in ("black_hole", "slow"):
            tms.change(outage=outage)
            for turns in range(12):
                check = asyncio.create_task(moderator.check("hi", WHERE))
                for _ in range(turns):
                    await asyncio.sleep(0)
                check.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await check
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await moderator.check("hi", WHERE)
        tms.change(outage="none")
        assert "pass" == (await moderator.check("hi", WHERE)).action


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "http://localhost:{}/", "HTTP://LOCALHOST:{}"])
async def test_endpoints(form: str) -> None:
    """The signature holds for the host as it is sent, with its port."""
    async with Fake(host="localhost") as fake:
        async with opened(fake, endpoint=form.format(fake.port)) as moderator:
            assert "pass" == (await moderator.check("hi", WHERE)).action


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://tms.tencentcloudapi.com", "tms.tencentcloudapi.com"),
        ("https://tms.tencentcloudapi.com:443/", "tms.tencentcloudapi.com"),
        ("https://tms.tencentcloudapi.com:8443", "tms.tencentcloudapi.com:8443"),
        ("http://[::1]:80", "[::1]"),
        ("http://[::1]:81", "[::1]:81"),
    ],
)
def test_hosts(endpoint: str, host: str) -> None:
    """A port stands in the Host header if it is not that of the scheme."""
    assert host == built(endpoint=endpoint)._url.host_port_subcomponent


async def test_unencrypted() -> None:
    """Texts that would go through a network unencrypted are worth a warning."""
    for endpoint, warned in (("http://tms.example", 1), ("http://127.1.2.3", 0), ("https://tms.example", 0)):
        lent = Lent()
        async with built(endpoint=endpoint).lifespan(lent.services):
            assert warned == len(lent.lines)


# No verdict


def without_secrets(error: BaseException, *further: str) -> None:
    """Neither the text nor a secret is anywhere in what a traceback shows."""
    shown = "".join(traceback.format_exception(error))
    for word in (SECRET_KEY, SECRET_ID, CANARY, *further):
        assert word not in shown


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("RequestLimitExceeded", RateLimited, "the account's rate is reached"),
        ("RequestLimitExceeded.UinLimitExceeded", RateLimited, "the account's rate is reached"),
        ("LimitExceeded", RateLimited, "^LimitExceeded \\(RequestId [0-9a-f-]{36}\\)$"),
        ("InternalError.QueryReqLimited", RateLimited, "QueryReqLimited"),
        ("InternalError", Unavailable, "InternalError"),
        ("InternalError.ErrTextTimeOut", Unavailable, "ErrTextTimeOut"),
        ("ServiceUnavailable", Unavailable, "ServiceUnavailable"),
        ("UnauthorizedOperation.Unauthorized", Unauthorized, "its package is used up, or a bill is open"),
        ("AuthFailure.UnauthorizedOperation", Unauthorized, "the credentials are not accepted"),
        ("AuthFailure.TokenFailure", Unauthorized, "has expired"),
        ("ResourceUnavailable.NotExist", Unauthorized, "look at its bills"),
        ("UnsupportedRegion", Unauthorized, "set `region`"),
        ("InvalidParameterValue.InvalidBizType", Unauthorized, "set `biz_type`"),
        ("InvalidParameterValue.ErrTextContentType", NoVerdict, "ErrTextContentType"),
        ("InvalidParameter.ParameterError", NoVerdict, "ParameterError"),
        ("InternalErrors", NoVerdict, "InternalErrors"),
        ("FailedOperation", NoVerdict, "FailedOperation"),
        ("http_500", Unavailable, "HTTP 500"),
        ("http_504", Unavailable, "HTTP 504"),
        ("http_408", Unavailable, "HTTP 408"),
        ("http_429", RateLimited, "HTTP 429"),
        ("http_403", Unauthorized, "check `endpoint`"),
        ("http_302", Unauthorized, "check `endpoint`"),
        ("reset", Unavailable, r"the connection failed \((ServerDisconnected|ClientOS|ConnectionReset)Error\)"),
        ("garbage", Unavailable, "cannot be read"),
        ("empty", Unavailable, "without a verdict .ValueError, RequestId [0-9a-f-]{36}"),
    ],
)
async def test_errors(tms: Fake, tencent: Tencent, kind: str, error: type[NoVerdict], message: str) -> None:
    """Each error says what to do about it, and names the call; the next call is answered."""
    tms.upcoming.append(kind)
    with pytest.raises(NoVerdict, match=message) as caught:
        await tencent.check(CANARY, WHERE)
    assert error is type(caught.value)
    if kind.partition(".")[0].isalpha() and kind not in ("reset", "garbage"):
        assert re.fullmatch(r"[0-9a-f-]{36}", caught.value.reference)
    without_secrets(caught.value)
    assert "pass" == (await tencent.check("hi", WHERE)).action


async def test_nobody_there() -> None:
    """A port where nobody listens is no connection."""
    async with Fake() as fake:
        pass
    async with opened(fake) as moderator:
        with pytest.raises(Unavailable, match="ClientConnectorError"):
            await moderator.check("hi", WHERE)


async def test_refusing(tms: Fake, tencent: Tencent) -> None:
    """Connections that are reset are told as such until they are not."""
    tms.change(outage="refuse")
    for _ in range(3):
        with pytest.raises(Unavailable, match="the connection failed"):
            await tencent.check("hi", WHERE)
    tms.change(outage="none")
    assert "pass" == (await tencent.check("hi", WHERE)).action


ANSWERS = [
    b"",
    b"[]",
    b"null",
    b'{"Response": null}',
    b'{"Response": []}',
    b'{"Response": {"Error": {}}}',
    b'{"Response": {"Error": "x"}}',
    b'{"Response": {"Suggestion": 1}}',
    b'{"Response": {"Suggestion": ""}}',
    b'{"Response": {"Suggestion": "Pass", "DetailResults": {"a": 1}}}',
    b'{"Response": {"Suggestion": "Pass", "DetailResults": [3]}}',
    b'{"Response": {"Suggestion": "Pass", "DetailResults": [{"Label": "x", "Suggestion": "Pass", "Keywords": [3]}]}}',
    b'{"Response": {"Suggestion": "Pass", "DetailResults": [{"Suggestion": "Pass", "Keywords": 3}]}}',
    b'{"Response": {"Suggestion": "Pass", "RiskDetails": 3}}',
    b'{"Response": {"Suggestion": "Pass", "HitSnippetInfos": [{"Snippet": 3, "Positions": []}]}}',
]


@asynccontextmanager
async def saying(answer: bytes, **headers: str) -> AsyncIterator[str]:
    """A server that says this to everyone; its address."""

    async def say(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=answer, headers=headers)

    runner = web.ServerRunner(web.Server(say, access_log=None), handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:60]))
async def test_malformed_answers(tms: Fake, answer: bytes) -> None:
    """What is no answer is no verdict."""
    async with saying(answer) as endpoint, opened(tms, endpoint=endpoint) as moderator:
        with pytest.raises(Unavailable, match="an answer"):
            await moderator.check("hi", WHERE)


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 8 * 1024 * 1024])
async def test_large_answers(tms: Fake, size: int) -> None:
    """No more than a megabyte is read."""
    async with saying(b"x" * size) as endpoint, opened(tms, endpoint=endpoint) as moderator:
        with pytest.raises(Unavailable, match="an answer of more than 1048576 bytes"):
            await moderator.check("hi", WHERE)


@pytest.mark.filterwarnings("ignore:.* fileds are useless:UserWarning:tencentcloud")
async def test_new_fields(tms: Fake) -> None:
    """Fields that a later version of the service adds change nothing."""
    answer = answered(Ask("坏", "", "", "", "", "", "TEXT", {}), Settings(words=[Word("坏")]), "id")
    answer["New"] = answer["DetailResults"][0]["New"] = answer["DetailResults"][0]["HitInfos"][0]["New"] = {"a": 1}
    async with saying(json.dumps({"Response": answer}).encode()) as endpoint:
        async with opened(tms, endpoint=endpoint) as moderator:
            assert "block" == (await moderator.check("坏", WHERE)).action


async def test_cookies(tms: Fake) -> None:
    """No cookie is sent back, as no header of an answer is."""
    answer = json.dumps({"Response": {"Suggestion": "Pass"}}).encode()
    async with saying(answer, **{"Set-Cookie": "a=b"}) as endpoint, opened(tms, endpoint=endpoint) as moderator:
        for _ in range(2):
            assert "pass" == (await moderator.check("hi", WHERE)).action
        assert b"ookie" not in moderator._service._head(b"{}", time.time())


# The clock


@pytest.mark.parametrize(("ahead_s", "words"), [(412, "412 s behind"), (-1000, "1000 s ahead of")])
async def test_clock(tms: Fake, tencent: Tencent, ahead_s: int, words: str) -> None:
    """A wrong clock is told by how much it is wrong."""
    tms.change(clock_ahead_s=ahead_s)
    with pytest.raises(Unauthorized, match=r"set it by NTP$") as caught:
        await tencent.check("hi", WHERE)
    [told] = re.findall(r"clock is (\d+) s (behind|ahead of) Tencent's", str(caught.value))
    assert words.split(" ", 2)[2] == told[1]
    assert abs(int(told[0]) - abs(ahead_s)) <= 30


def test_clock_without_a_date() -> None:
    """Without a Date header the service's own words tell the time; without these, nobody does."""
    assert "this machine's clock is 400 s ahead of Tencent's; set it by NTP" == clock(
        "", "server time 1706406788.", 1706407188
    )
    assert "five minutes off" in clock("", "expired", 1706407188)
    assert "five minutes off" in clock("yesterday", "", 0)
    assert "the clocks agree" in clock("Sun, 28 Jan 2024 01:53:08 GMT", "", 1706406788)


# Too long


async def test_too_long(tms: Fake, tencent: Tencent) -> None:
    """A text that the service finds too long is asked about in halves; places are those of the whole."""
    tms.change(max_chars=3000, words=[Word("坏蛋", "Abuse", "Review", 50), Word("枪", "Polity", "Block", 90)])
    text = "x" * 4999 + "坏蛋" + "x" * 4995 + "枪坏蛋y"
    said = await tencent.check(text, WHERE)
    assert ("block", "Polity", 90) == (said.action, said.label, said.score)
    places = {(found.action, span) for found in said.findings for span in found.spans}
    assert {
        ("review", Span(4999, 5001, "坏蛋")),
        ("review", Span(9997, 9999, "坏蛋")),
        ("block", Span(9996, 9997, "枪")),
    } == places
    assert tms.counts.calls <= 15


async def test_every_short_span_stands_whole_in_a_part(tms: Fake, tencent: Tencent) -> None:
    """Parts overlap by 1000 characters, the longest holdback."""
    tms.change(max_chars=3000)
    text = "".join(f"{number:06}" for number in range(1666))
    await tencent.check(text, WHERE)
    parts = [ask.text for ask in tms.counts.kept]
    for start in range(0, len(text) - 999, 7):
        assert any(text[start : start + 1000] in part for part in parts)


async def test_much_too_long(tms: Fake, tencent: Tencent) -> None:
    """There is an end to halving."""
    tms.change(max_chars=10)
    with pytest.raises(TooLong, match=r"InvalidParameterValue\.ErrTextContentLen \(RequestId"):
        await tencent.check("x" * 10_000, WHERE)
    assert tms.counts.calls <= 4
    tms.change(max_chars=2)
    with pytest.raises(TooLong):
        await tencent.check("xyz", WHERE)


def test_joined() -> None:
    """The stricter part gives the name; what both found counts, also where only the top level told it."""
    first = Verdict("review", "Ad", 60, (Finding("pass", "Porn", 3),), "a")
    second = Verdict("block", "Abuse", 99, (Finding("block", "Abuse", 99, (Span(1, 2, "x"), Span(0, 0, "y"))),), "b")
    said = joined(first, second, 10)
    assert ("block", "Abuse", 99, "b") == (said.action, said.label, said.score, said.reference)
    assert (
        Finding("review", "Ad", 60),
        Finding("pass", "Porn", 3),
        Finding("block", "Abuse", 99),
        Finding("block", "Abuse", 99, (Span(11, 12, "x"), Span(0, 0, "y"))),
    ) == said.findings
    assert "b" == joined(second, first, 10).reference


# Credentials


async def test_wrong_credentials(tms: Fake) -> None:
    """A wrong key, a wrong id, a wrong token: nobody asks until somebody changes it."""
    for options, message in (
        ({"secret_key": "other"}, "secret_key does not belong to secret_id"),
        ({"secret_id": "AKIDother"}, "there is no such secret_id"),
        ({"token": "needless"}, "token of the temporary credentials"),
    ):
        async with opened(tms, **options) as moderator:
            with pytest.raises(Unauthorized, match=message) as caught:
                await moderator.check("hi", WHERE)
            without_secrets(caught.value, "needless", "AKIDother")


async def test_temporary_credentials() -> None:
    """Temporary credentials come with a token."""
    async with Fake(token="temporary") as fake, opened(fake, token="temporary") as moderator:
        assert "pass" == (await moderator.check("hi", WHERE)).action


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes secrets look at their files anew."""
    now = time.monotonic()

    def pass_by() -> None:
        nonlocal now
        now += 1.5

    monkeypatch.setattr("relay.secret.monotonic", lambda: now)
    return pass_by  # type: ignore[return-value]


async def test_changed_credentials(tms: Fake, tmp_path: Path, later: Any) -> None:
    """Keys that are changed in their files are used without a restart; half a change fails until the other half comes."""
    for name, value in (("id", SECRET_ID), ("key", SECRET_KEY)):
        (tmp_path / name).write_text(value + "\n")
    moderator = built(tmp_path, endpoint=tms.endpoint, secret_id={"file": "id"}, secret_key={"file": "key"})
    async with moderator.lifespan(Lent().services):
        assert "pass" == (await moderator.check("hi", WHERE)).action
        tms.account = Account("AKIDnew", "new-key-")
        with pytest.raises(Unauthorized):
            await moderator.check("hi", WHERE)
        (tmp_path / "key").write_text("new-key-\n")
        later()
        with pytest.raises(Unauthorized, match="SecretIdNotFound"):
            await moderator.check("hi", WHERE)
        (tmp_path / "id").write_text("AKIDnew\n")
        later()
        assert "pass" == (await moderator.check("hi", WHERE)).action
        (tmp_path / "id").write_text("not an id, but a letter\n")
        later()
        with pytest.raises(Unauthorized, match="secret_id holds a space") as caught:
            await moderator.check("hi", WHERE)
        assert "letter" not in "".join(traceback.format_exception(caught.value))
        (tmp_path / "id").write_text("AKIDnew\n")
        later()
        assert "pass" == (await moderator.check("hi", WHERE)).action


async def test_secrets_are_not_shown(tms: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a repr, not in a log, whatever happens."""
    caplog.set_level(logging.DEBUG)
    lent = Lent()
    async with opened(tms, lent, token="temporary-token") as moderator:
        with pytest.raises(Unauthorized):
            await moderator.check(CANARY, WHERE)
        shown = f"{moderator!r}{moderator._service!r}{vars(moderator)!r}{caplog.text}{lent.lines}"
    for word in (SECRET_KEY, SECRET_ID, "temporary-token", CANARY):
        assert word not in shown


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"type": "TEXT_AIGC"},
            r"allows an account 50 calls a second, and calls_per_second is 800; set calls_per_second = 40",
        ),
        ({"type": "TEXT_AIGC", "calls_per_second": 51}, "50 calls a second"),
        ({"type": "TEXT_AIGC", "calls_per_second": 40, "session": True}, "session = true joins texts"),
        ({"type": "IMAGE"}, "type: unknown value 'IMAGE'"),
        ({"endpoint": "tms.tencentcloudapi.com"}, "endpoint is no address; write it as in"),
        ({"endpoint": "ftp://tms.tencentcloudapi.com"}, "is no address"),
        ({"endpoint": "https://:80"}, "is no address"),
        ({"endpoint": "https://a:99999"}, "is no address"),
        ({"endpoint": "https://a/tms"}, "goes on after the host"),
        ({"endpoint": "https://a?x=y"}, "goes on after the host"),
        ({"endpoint": "https://u:Geheimnis@a"}, "names a user or a password"),
        ({"region": "Guangzhou"}, "region"),
        ({"biz_type": "a-b"}, "biz_type"),
        ({"biz_type": "ab"}, "biz_type"),
        ({"user": "ip"}, "user"),
        ({"ip_header": "X Real IP"}, "ip_header"),
        ({"source_language": "de"}, "source_language"),
        ({"calls_per_second": 0}, "calls_per_second"),
        ({"biz_tag": "x" * 129}, "biz_tag"),
        ({"secret_id": "a b"}, "secret_id holds a space"),
        ({"secret_id": "a/b"}, "secret_id holds a slash"),
        ({"secret_key": "ключ"}, "secret_key holds a space or a character that no credential has"),
        ({"token": "a\n"}, "token holds a space"),
        ({"secret_key": {"env": "TENCENT_KEY"}}, "environment variable TENCENT_KEY is not set"),
    ],
)
def test_refused_options(options: dict[str, object], message: str) -> None:
    """What cannot work is refused before the start, in a sentence."""
    with pytest.raises(ConfigError, match=message) as caught:
        built(**options)  # type: ignore[arg-type]
    assert "Geheimnis" not in str(caught.value)


def test_what_the_relay_asks() -> None:
    """Its rate and its order are what the options say; it is known as it is registered."""
    assert (800, False) == (built().calls_per_second, built().in_order)
    assert (100, True) == (built(calls_per_second=100).calls_per_second, built(session=True).in_order)
    assert Tencent is registries().moderators.find("tencent")
    assert "tencent" == Tencent.known_as


def test_its_labels() -> None:
    """Metrics tell them apart."""
    assert {"Porn", "Ad", "Abuse"} <= Tencent.labels


def test_its_account() -> None:
    """Whoever calls with one key shares the service's limit, whatever else he has set."""
    first, same, other = (
        Tencent(secret_id=Secret(key), secret_key=Secret("k"), calls_per_second=calls)
        for key, calls in (("AKID1", 10), ("AKID1", 20), ("AKID2", 10))
    )
    assert first.account == same.account != other.account
