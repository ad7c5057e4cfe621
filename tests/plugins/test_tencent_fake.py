"""The fake of Tencent Cloud's text moderation, looked at with the official SDK as it is, and over the bare wire."""

import asyncio
import base64
import hashlib
import io
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
import tomllib
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tencentcloud.common.common_client import CommonClient
from tencentcloud.common.credential import Credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.common.sign import Sign
from tencentcloud.tms.v20201229 import models
from tencentcloud.tms.v20201229.tms_client import TmsClient

from relay.assembly import registries
from relay.options import Context, build
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake, Settings, Word
from relay_plugins.tencent.fake.__main__ import parser, settings
from relay_plugins.tencent.fake.ask import check_head
from relay_plugins.tencent.fake.counts import Counts
from relay_plugins.tencent.fake.mood import Mood
from relay_plugins.tencent.fake.refusal import Refusal
from relay_plugins.tencent.fake.signature import Account, Signed, verify

# The SDK's own, from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:datetime.datetime.utcfromtimestamp\(\) is deprecated:DeprecationWarning:tencentcloud"
)

ACCOUNT = Account(SECRET_ID, SECRET_KEY)


def sdk(
    fake: Fake,
    *,
    secret_id: str = SECRET_ID,
    secret_key: str = SECRET_KEY,
    token: str | None = None,
    client: type[TmsClient] = TmsClient,
    **profile: Any,
) -> TmsClient:
    http = HttpProfile(protocol="http", endpoint=f"{fake.host}:{fake.port}", keepAlive=True)
    options = ClientProfile(httpProfile=http)
    for name, value in profile.items():
        setattr(options, name, value)
    return client(Credential(secret_id, secret_key, token), "ap-guangzhou", options)


async def called(client: TmsClient, text: str = "你好", **fields: Any) -> models.TextModerationResponse:
    """One call of the SDK, in a thread as it blocks."""
    request = models.TextModerationRequest()
    request.Content = base64.b64encode(text.encode()).decode()
    for name, value in fields.items():
        setattr(request, name, value)
    return await in_thread(client, client.TextModeration, request)


async def in_thread(client: CommonClient | TmsClient, method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await asyncio.to_thread(method, *arguments)
    except TencentCloudSDKException as error:
        traceback.clear_frames(error.__traceback__)  # one of which holds the socket
        raise
    finally:
        client.request.conn._session.close()


async def refused(call: Awaitable[object]) -> str:
    """The error code that the SDK raises, after a look at the rest of the error."""
    with pytest.raises(TencentCloudSDKException) as caught:
        await call
    assert caught.value.message
    if not caught.value.code.startswith(("Client", "Server")):
        assert uuid.UUID(caught.value.requestId)
    return str(caught.value.code)


# The official SDK


async def test_accepted(tms: Fake) -> None:
    """The SDK's call is answered, and its identifiers come back."""
    answer = await called(sdk(tms), DataId="a-1_@#", SessionId="s", BizType="strict_1")
    assert ("Pass", "Normal", 0) == (answer.Suggestion, answer.Label, answer.Score)
    assert ("a-1_@#", "s", "strict_1") == (answer.DataId, answer.SessionId, answer.BizType)
    assert uuid.UUID(answer.RequestId)
    assert {"Pass"} == {detail.Suggestion for detail in answer.DetailResults}
    assert (1, 1, 2) == (tms.counts.calls, tms.counts.answered, tms.counts.characters)
    assert ["你好"] == [ask.text for ask in tms.counts.kept]


async def test_every_field_is_there(tms: Fake) -> None:
    """An answer has exactly the fields of the SDK's models, at every level."""
    tms.change(words=[Word("坏", "Abuse")], risky_users=["u"])
    asked = {"Content": base64.b64encode("坏".encode()).decode(), "User": {"UserId": "u"}}
    async with aiohttp.ClientSession() as session:
        body = json.dumps(asked).encode()
        async with session.post(tms.endpoint, data=body, headers=signed_headers(tms, body)) as response:
            assert "application/json" == response.headers["Content-Type"]
            answer = (await response.json())["Response"]
    [detail] = [entry for entry in answer["DetailResults"] if entry["Label"] == "Abuse"]
    [hit], [snippet] = detail["HitInfos"], detail["HitSnippetInfos"]
    shapes = [
        (models.TextModerationResponse(), answer),
        (models.DetailResults(), detail),
        (models.HitInfo(), hit),
        (models.Positions(), hit["Positions"][0]),
        (models.HitSnippetInfo(), snippet),
        (models.HitPosition(), snippet["Positions"][0]),
        (models.RiskDetails(), answer["RiskDetails"][0]),
    ]
    for model, shown in shapes:
        assert {name.removeprefix("_") for name in vars(model)} == set(shown), type(model)


async def test_the_sdk_with_everything(tms: Fake) -> None:
    """User and device go through; a token, an unsigned payload and other signed content types are as the service has them."""
    user, device = models.User(), models.Device()
    user.UserId, user.AccountType, device.IP = "u", 7, "192.0.2.1"
    assert (await called(sdk(tms, unsignedPayload=True), User=user, Device=device, Type="TEXT")).Suggestion == "Pass"
    [ask] = tms.counts.kept
    assert ("u", "192.0.2.1", "TEXT") == (ask.user_id, ask.ip, ask.type)
    async with Fake(token="temporary") as fake:
        assert (await called(sdk(fake, token="temporary"))).Suggestion == "Pass"
        assert "AuthFailure.TokenFailure" == await refused(called(sdk(fake)))
        assert "AuthFailure.TokenFailure" == await refused(called(sdk(fake, token="stale")))
    assert "AuthFailure.TokenFailure" == await refused(called(sdk(tms, token="needless")))


async def test_a_wrong_key(tms: Fake) -> None:
    """A wrong key is a wrong signature."""
    assert "AuthFailure.SignatureFailure" == await refused(called(sdk(tms, secret_key="another")))


async def test_a_wrong_id(tms: Fake) -> None:
    """An id that nobody has is not found."""
    assert "AuthFailure.SecretIdNotFound" == await refused(called(sdk(tms, secret_id="AKIDother")))
    assert {"AuthFailure.SecretIdNotFound": 1} == dict(tms.counts.refused)


@pytest.mark.parametrize("ahead_s", [310, -310])
async def test_an_old_timestamp(tms: Fake, ahead_s: float) -> None:
    """A clock that is five minutes off is told so, with the service's time, and its answer is dated."""
    tms.change(clock_ahead_s=ahead_s)
    client = sdk(tms)
    with pytest.raises(TencentCloudSDKException, match="server time") as caught:
        await called(client)
    assert "AuthFailure.SignatureExpire" == caught.value.code
    told = int(re.findall(r"server time (\d+)", caught.value.message)[0])
    assert abs(told - ahead_s - time.time()) < 60
    tms.change(clock_ahead_s=ahead_s / 2)
    assert "Pass" == (await called(sdk(tms))).Suggestion


async def test_a_wrong_service(tms: Fake) -> None:
    """A key of another service opens nothing."""

    class Other(TmsClient):
        _service = "cvm"

    assert "AuthFailure.InvalidAuthorization" == await refused(called(sdk(tms, client=Other)))


async def test_another_version_and_action(tms: Fake) -> None:
    """Another version and other actions are named as wrong."""

    class Old(TmsClient):
        _apiVersion = "2020-07-13"

    assert "NoSuchVersion" == await refused(called(sdk(tms, client=Old)))
    for action, code in (("DescribeInstances", "InvalidAction"), ("CreateFinancialLLMTask", "UnsupportedOperation")):
        client = sdk(tms)
        with pytest.raises(TencentCloudSDKException) as caught:
            await in_thread(client, client.call, action, {})
        assert code == caught.value.code
    common = CommonClient("tms", "2020-12-29", Credential(SECRET_ID, SECRET_KEY), "", sdk(tms).profile)
    with pytest.raises(TencentCloudSDKException) as caught:
        await in_thread(common, common.call, "TextModeration", {"Content": "YQ=="})
    assert "MissingParameter" == caught.value.code


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"Content": "no base64!"}, "InvalidParameterValue.ErrTextContentType"),
        ({"Content": base64.b64encode("é".encode("latin-1")).decode()}, "InvalidParameterValue.ErrTextContentType"),
        ({"Content": ""}, "InvalidParameterValue.InvalidContent"),
        ({"Content": None}, "MissingParameter"),
        ({"Content": 3}, "InvalidParameter"),
        ({"Content": base64.b64encode(b"x" * 10_001).decode()}, "InvalidParameterValue.ErrTextContentLen"),
        ({"DataId": "a" * 65}, "InvalidParameterValue"),
        ({"DataId": "a b"}, "InvalidParameterValue"),
        ({"DataId": "a\n"}, "InvalidParameterValue"),
        ({"Type": "IMAGE"}, "InvalidParameterValue.ErrType"),
        ({"SourceLanguage": "de"}, "InvalidParameterValue"),
        ({"BizType": "no-dash"}, "InvalidParameterValue.InvalidBizType"),
    ],
)
async def test_refused_parameters(tms: Fake, fields: Mapping[str, Any], code: str) -> None:
    """What the service does not take, it refuses by its own codes."""
    assert code == await refused(called(sdk(tms), **fields))
    assert 0 == tms.counts.answered


async def test_refused_structures(tms: Fake) -> None:
    """The types of nested parameters count too."""
    user, device = models.User(), models.Device()
    user.AccountType, device.IP = "7", "::1"
    assert "InvalidParameter" == await refused(called(sdk(tms), User=user))
    assert "InvalidParameter.ParameterError" == await refused(called(sdk(tms), Device=device))
    user.AccountType, user.Nope = None, None
    assert "UnknownParameter" == await refused(
        called(sdk(tms), User=type("U", (models.User,), {"__init__": unknown})())
    )


def unknown(self: Any) -> None:
    self._Shoe_size = 43


async def test_ten_thousand_characters(tms: Fake) -> None:
    """The limit counts characters, whatever they weigh."""
    assert "Pass" == (await called(sdk(tms), "😀" * 10_000)).Suggestion
    assert "InvalidParameterValue.ErrTextContentLen" == await refused(called(sdk(tms), "😀" * 10_001))
    tms.change(max_chars=3)
    assert "InvalidParameterValue.ErrTextContentLen" == await refused(called(sdk(tms), "😀" * 4))


async def test_null_is_left_out(tms: Fake) -> None:
    """Parameters that are null count as not there."""
    body = json.dumps({"Content": "aGk=", "User": None, "Type": None, "BizTag": None}).encode()
    assert "Pass" == await posted(tms, signed_headers(tms, body), body)


async def test_biz_types(tms: Fake) -> None:
    """An account's policies may be told."""
    tms.change(biz_types=["strict"])
    assert "strict" == (await called(sdk(tms), BizType="strict")).BizType
    assert "TencentCloudDefault" == (await called(sdk(tms))).BizType
    assert "InvalidParameterValue.InvalidBizType" == await refused(called(sdk(tms), BizType="lax"))


async def test_too_many_calls(tms: Fake) -> None:
    """Calls beyond the account's rate are refused, each kind by its own."""
    tms.change(calls_per_second=1, aigc_calls_per_second=0)
    answers = await asyncio.gather(*(called(sdk(tms)) for _ in range(6)), return_exceptions=True)
    codes = [answer.code for answer in answers if isinstance(answer, TencentCloudSDKException)]
    assert {"RequestLimitExceeded"} == set(codes)
    assert len(codes) == tms.counts.refused["RequestLimitExceeded"] >= 1
    assert 6 == sum(tms.counts.by_second.values())
    for _ in range(3):
        assert "Pass" == (await called(sdk(tms), Type="TEXT_AIGC")).Suggestion


# Verdicts

WORDS = [
    Word("枪", "Polity", "Review", 60),
    Word("坏蛋", "Abuse", "Block", 99, "Insult"),
    Word("笨", "Abuse", "Review", 70),
    Word("😀😀", "Ad", "Block", 90),
    Word("秘密", "Custom", "Pass", 10),
]


async def test_verdicts(tms: Fake) -> None:
    """One entry a label; the top level shows the most important label, not the strictest suggestion."""
    tms.change(words=WORDS)
    text = "😀笨坏蛋,枪,坏蛋😀😀😀😀秘密"
    answer = await called(sdk(tms), text)
    assert ("Review", "Polity", 60, ["枪"]) == (answer.Suggestion, answer.Label, answer.Score, answer.Keywords)
    found = [detail for detail in answer.DetailResults if detail.Score]
    assert [("Polity", "Review"), ("Abuse", "Block"), ("Ad", "Block"), ("Custom", "Pass")] == [
        (detail.Label, detail.Suggestion) for detail in found
    ]
    assert ["坏蛋", "笨"] == found[1].Keywords
    assert (99, "Insult") == (found[1].Score, found[1].SubLabel)
    for detail in found:
        spans = [(hit.Keyword, place.Start, place.End) for hit in detail.HitInfos for place in hit.Positions]
        snippets = [(hit.Snippet, place.Start, place.End) for hit in detail.HitSnippetInfos for place in hit.Positions]
        assert spans == snippets
        for word, start, end in spans:
            assert word == text[start:end]
    assert {"Terror", "Porn", "Illegal", "Teenager", "Value"} == {
        detail.Label for detail in answer.DetailResults if detail not in found
    }


async def test_another_priority(tms: Fake) -> None:
    """What comes first is a setting."""
    tms.change(words=WORDS, priority=["Abuse"])
    answer = await called(sdk(tms), "枪坏蛋")
    assert ["Abuse", "Polity"] == [detail.Label for detail in answer.DetailResults]
    assert "Abuse" == answer.Label


@pytest.mark.parametrize(
    ("told", "keywords", "places", "snippets"),
    [("all", 1, 1, 1), ("snippets", 1, 0, 1), ("keywords", 1, 0, 0), ("none", 0, 0, 0)],
)
async def test_what_is_told_of_places(tms: Fake, told: str, keywords: int, places: int, snippets: int) -> None:
    """A model's verdict is a score without a keyword; a list's may come without places."""
    tms.change(words=WORDS, positions=told, details="hits")
    [detail] = (await called(sdk(tms), "笨")).DetailResults
    assert (70, keywords) == (detail.Score, len(detail.Keywords))
    assert (places, snippets) == (len(detail.HitInfos), len(detail.HitSnippetInfos or ()))


async def test_wrong_places_and_no_details(tms: Fake) -> None:
    """Places may be wrong, and DetailResults null."""
    tms.change(words=WORDS, position_shift=2, details="hits")
    answer = await called(sdk(tms), "笨")
    [place] = answer.DetailResults[0].HitInfos[0].Positions
    assert (2, 3) == (place.Start, place.End)
    assert (await called(sdk(tms), "good")).DetailResults is None


async def test_risks(tms: Fake) -> None:
    """Users and addresses that are known as bad come with the verdict."""
    tms.change(risky_users=["u"], risky_ips=["192.0.2.1"])
    user, device = models.User(), models.Device()
    user.UserId, device.IP = "u", "192.0.2.1"
    risks = (await called(sdk(tms), User=user, Device=device)).RiskDetails
    assert [("RiskAccount", 2), ("RiskIP", 2)] == [(risk.Label, risk.Level) for risk in risks]
    assert (await called(sdk(tms))).RiskDetails is None


# Over the bare wire


def signed_headers(
    fake: Fake, body: bytes, *, path: str = "/", query: str = "", signed: str = "content-type;host", **more: str
) -> dict[str, str]:
    """Headers with a good signature, by the SDK's own function."""
    headers = {
        "Content-Type": "application/json",
        "Host": f"{fake.host}:{fake.port}",
        "X-TC-Action": "TextModeration",
        "X-TC-Version": "2020-12-29",
        "X-TC-Region": "ap-guangzhou",
        "X-TC-Timestamp": str(int(time.time())),
        **more,
    }
    date = time.strftime("%Y-%m-%d", time.gmtime(int(headers["X-TC-Timestamp"])))
    lower = {name.lower(): value for name, value in headers.items()}
    lines = "".join(f"{name}:{lower[name].lower()}\n" for name in signed.split(";"))
    canonical = f"POST\n{path}\n{query}\n{lines}\n{signed}\n{hashlib.sha256(body).hexdigest()}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"TC3-HMAC-SHA256\n{headers['X-TC-Timestamp']}\n{date}/tms/tc3_request\n{digest}"
    signature = Sign.sign_tc3(SECRET_KEY, date, "tms", to_sign)
    headers["Authorization"] = (
        f"TC3-HMAC-SHA256 Credential={SECRET_ID}/{date}/tms/tc3_request, SignedHeaders={signed}, Signature={signature}"
    )
    return headers


BODY = json.dumps({"Content": base64.b64encode(b"hello").decode()}).encode()


async def posted(fake: Fake, headers: Mapping[str, str], body: bytes = BODY, path: str = "/") -> str:
    """The error code of a call, or its suggestion."""
    async with aiohttp.ClientSession() as session:
        async with session.post(fake.endpoint + path, data=io.BytesIO(body), headers=headers) as response:
            assert 200 == response.status
            answer = (await response.json())["Response"]
            assert uuid.UUID(answer["RequestId"])
            return str(answer["Error"]["Code"] if "Error" in answer else answer["Suggestion"])


async def test_more_signed_headers(tms: Fake) -> None:
    """Any headers may be signed beside the two that have to be; one that was changed afterwards is found out."""
    headers = signed_headers(tms, BODY, signed="content-type;host;x-tc-action;x-tc-region")
    assert "Pass" == await posted(tms, headers)
    assert "AuthFailure.SignatureFailure" == await posted(tms, {**headers, "X-TC-Region": "ap-beijing"})
    assert "AuthFailure.InvalidAuthorization" == await posted(tms, signed_headers(tms, BODY, signed="host"))


async def test_changed_on_the_way(tms: Fake) -> None:
    """What is signed cannot be changed: body, path, query, host, type, date."""
    headers = signed_headers(tms, BODY)
    assert "Pass" == await posted(tms, headers)
    wrong = "AuthFailure.SignatureFailure"
    assert wrong == await posted(tms, headers, BODY + b" ")
    assert wrong == await posted(tms, headers, path="/other")
    assert wrong == await posted(tms, headers, path="/?a=b")
    assert wrong == await posted(tms, {**headers, "Host": "example.com"})
    assert wrong == await posted(tms, {**headers, "Content-Type": "application/json; charset=utf-8"})
    assert wrong == await posted(tms, {**headers, "X-TC-Timestamp": str(int(headers["X-TC-Timestamp"]) - 1)})
    today = time.strftime("%Y-%m-%d", time.gmtime(int(headers["X-TC-Timestamp"])))
    assert wrong == await posted(
        tms, {**headers, "Authorization": headers["Authorization"].replace(today, "1999-01-01")}
    )
    assert "Pass" == await posted(tms, signed_headers(tms, BODY, path="/deep", query="a=b"), path="/deep?a=b")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Authorization": ""}, "MissingParameter"),
        ({"Authorization": "Bearer x"}, "AuthFailure.InvalidAuthorization"),
        ({"X-TC-Timestamp": ""}, "MissingParameter"),
        ({"X-TC-Timestamp": "soon"}, "InvalidParameter"),
        ({"X-TC-Timestamp": "1" * 13}, "InvalidParameter"),
        ({"X-TC-Timestamp": "1"}, "AuthFailure.SignatureExpire"),
        ({"X-TC-Action": ""}, "MissingParameter"),
        ({"X-TC-Version": ""}, "MissingParameter"),
        ({"X-TC-Region": ""}, "MissingParameter"),
        ({"X-TC-Region": "the moon"}, "UnsupportedRegion"),
    ],
)
async def test_refused_headers(tms: Fake, change: Mapping[str, str], code: str) -> None:
    """What is missing or cannot be is named."""
    assert code == await posted(tms, {**signed_headers(tms, BODY), **change})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"Content": "YQ==", "Colour": 1}', b"x" * 2**20])
async def test_refused_bodies(tms: Fake, body: bytes) -> None:
    """What is no call is refused, at any size."""
    assert (await posted(tms, signed_headers(tms, body), body)).endswith("Parameter")


async def test_sizes(tms: Fake) -> None:
    """10 MB is the most that is read."""
    body = b" " * (10 * 2**20 + 1)
    assert "RequestSizeLimitExceeded" == await posted(tms, signed_headers(tms, body), body)


def test_other_methods_and_types() -> None:
    """Calls are JSON by POST; the fake says so to others."""
    headers = {"X-TC-Action": "TextModeration", "X-TC-Version": "2020-12-29", "X-TC-Region": "ap-guangzhou"}
    with pytest.raises(Refusal, match="UnsupportedProtocol"):
        check_head("GET", headers)
    with pytest.raises(Refusal, match="InvalidParameter: The Content-Type"):
        check_head("POST", {**headers, "Content-Type": "application/x-www-form-urlencoded"})


def test_counts_are_bounded() -> None:
    """An hour of seconds is kept."""
    counts = Counts(0)
    for second in range(4000):
        assert 1 == counts.in_second(second + 0.5, "TEXT")
    assert 2 == counts.in_second(3999.9, "TEXT")
    assert 1 == counts.in_second(3999.9, "TEXT_AIGC")
    assert (3600, 3) == (len(counts.by_second), counts.shown()["most_in_a_second"])


@given(st.binary(max_size=64), st.integers(0, 63), st.sampled_from("0123456789abcdef"))
def test_signatures_cannot_be_bent(body: bytes, place: int, digit: str) -> None:
    """A signature with another digit is another signature."""

    class Here:
        host, port = "localhost", 80

    headers = signed_headers(Here(), body)  # type: ignore[arg-type]
    now = int(headers["X-TC-Timestamp"])
    verify(Signed("POST", "/", "", aiohttp.typedefs.CIMultiDict(headers), body), ACCOUNT, now)
    head, _, signature = headers["Authorization"].rpartition("=")
    bent = signature[:place] + digit + signature[place + 1 :]
    if bent != signature:
        headers["Authorization"] = f"{head}={bent}"
        with pytest.raises(Refusal, match="SignatureFailure"):
            verify(Signed("POST", "/", "", aiohttp.typedefs.CIMultiDict(headers), body), ACCOUNT, now)


# Bad days


async def test_failures_in_a_row(tms: Fake) -> None:
    """How the next calls go can be said beforehand."""
    kinds = [
        "InternalError.ErrTextTimeOut",
        "http_503",
        "reset",
        "garbage",
        "empty",
        "UnauthorizedOperation.Unauthorized",
    ]
    tms.upcoming.extend([*kinds, ""])
    assert "InternalError.ErrTextTimeOut" == await refused(called(sdk(tms)))
    assert "ServerNetworkError" == await refused(called(sdk(tms)))
    assert "ClientNetworkError" == await refused(called(sdk(tms)))
    with pytest.raises(TencentCloudSDKException):
        await called(sdk(tms))
    assert (await called(sdk(tms))).Suggestion is None
    assert "UnauthorizedOperation.Unauthorized" == await refused(called(sdk(tms)))
    assert "Pass" == (await called(sdk(tms))).Suggestion
    assert dict.fromkeys(kinds, 1) == dict(tms.counts.refused)


async def test_black_hole(tms: Fake) -> None:
    """A call into the hole is never answered; when the hole is gone, the next ones are."""
    tms.change(outage="black_hole")
    async with aiohttp.ClientSession() as session:
        call = asyncio.create_task(session.post(tms.endpoint, data=BODY, headers=signed_headers(tms, BODY)))
        while not tms.counts.calls:
            await asyncio.sleep(0.001)
        done, _ = await asyncio.wait([call], timeout=0.05)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    tms.change(outage="none")
    assert "Pass" == await posted(tms, signed_headers(tms, BODY))


async def test_closing_a_black_hole() -> None:
    """The fake can be closed with calls in the hole."""
    async with Fake(outage="black_hole") as fake, aiohttp.ClientSession() as session:
        call = asyncio.create_task(session.post(fake.endpoint, data=BODY, headers=signed_headers(fake, BODY)))
        while not fake.counts.calls:
            await asyncio.sleep(0.001)
        await fake.__aexit__(None, None, None)
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_refusing_and_slow(tms: Fake) -> None:
    """Connections may be reset, and answers slow."""
    tms.change(outage="refuse")
    with pytest.raises(aiohttp.ClientError):
        await posted(tms, signed_headers(tms, BODY))
    tms.change(outage="slow", slow_ms=30)
    begun = time.monotonic()
    assert "Pass" == await posted(tms, signed_headers(tms, BODY))
    assert time.monotonic() - begun >= 0.03


def test_times() -> None:
    """The times have the median and the 99th percentile that were asked for, and are the same every time."""
    asked = Settings(p50_ms=60, p99_ms=400)
    drawn = [Mood(7).latency_s(asked) for _ in range(2)]
    assert drawn[0] == drawn[1]
    mood = Mood(1)
    times = sorted(mood.latency_s(asked) for _ in range(20_000))
    assert math.isclose(0.060, statistics.median(times), rel_tol=0.05)
    assert math.isclose(0.400, times[int(len(times) * 0.99)], rel_tol=0.1)
    assert 0 == Mood(1).latency_s(Settings())
    assert math.isclose(0.060, Mood(1).latency_s(Settings(p50_ms=60)), rel_tol=1e-9)


def test_shares() -> None:
    """Failures come in the share and by the weights that were asked for."""
    asked = Settings(error_share=0.1, errors={"reset": 3, "http_500": 1, "garbage": 0})
    mood = Mood(3)
    drawn = [mood.failure(asked) for _ in range(20_000)]
    failed = [kind for kind in drawn if kind]
    assert math.isclose(0.1, len(failed) / len(drawn), rel_tol=0.1)
    assert {"reset", "http_500"} == set(failed)
    assert math.isclose(3, failed.count("reset") / failed.count("http_500"), rel_tol=0.15)
    assert [""] * 9 == [Mood(3).failure(Settings(error_share=1, errors={})) for _ in range(9)]


# Switches


async def test_the_control_page(tms: Fake) -> None:
    """Every setting can be changed from another process, and what was counted is shown."""
    async with aiohttp.ClientSession() as session:

        async def control(**changes: object) -> dict[str, Any]:
            async with session.post(tms.endpoint + "/control", json=changes) as response:
                shown = dict(await response.json())
                assert (response.status == 400) is ("error" in shown)
                return shown

        shown = await control(words=[{"word": "bad", "label": "Porn"}], upcoming=["http_500"], p50_ms=0.5, keep_calls=3)
        assert [{"word": "bad", "label": "Porn", "suggestion": "Block", "score": 100, "sub_label": ""}] == (
            shown["settings"]["words"]
        )
        assert 0.5 == tms.settings.p50_ms
        async with session.post(tms.endpoint, data=BODY, headers=signed_headers(tms, BODY)) as response:
            assert 500 == response.status
        assert "Pass" == await posted(tms, signed_headers(tms, BODY))
        async with session.get(tms.endpoint + "/control") as response:
            shown = await response.json()
        assert (2, 1, 5, {"http_500": 1}) == tuple(
            shown[name] for name in ("calls", "answered", "characters", "refused")
        )
        assert ["hello", "hello"] == shown["texts"]
        assert 2 == sum(calls for _, calls in shown["by_second"]) >= shown["most_in_a_second"] >= 1
        assert "Object contains unknown field `nope`" in (await control(nope=1))["error"]
        assert "outage" in (await control(outage="flood"))["error"]
        assert 0 == (await control(reset=True))["calls"]
        async with session.post(tms.endpoint + "/control", data=b"[]") as response:
            assert 400 == response.status


async def test_attributes() -> None:
    """Settings are attributes; a wrong one together with a good one changes nothing."""
    with pytest.raises(msgspec.ValidationError, match="error_share"):
        Fake(error_share=2)
    fake = Fake(seed=1)
    with pytest.raises(msgspec.ValidationError):
        fake.change(p50_ms=1, outage="flood")
    assert 0 == fake.settings.p50_ms
    fake.change(seed=2, keep_calls=2)
    assert 2 == fake.counts.kept.maxlen
    assert SECRET_KEY not in repr(fake.account)


def test_options(tmp_path: Any) -> None:
    """Each setting is an option of the command."""
    (tmp_path / "words.txt").write_text("# bad ones\n坏蛋:Abuse:Review:70:Insult\n\n枪\n", encoding="utf-8")
    given = [
        *("--word", "bad:Porn", "--word-file", str(tmp_path / "words.txt"), "--p50-ms", "60", "--outage", "slow"),
        *("--errors", '{"reset": 1}', "--priority", '["Ad"]'),
    ]
    fake = Fake(**settings(parser().parse_args(given)))
    assert [Word("bad", "Porn"), Word("坏蛋", "Abuse", "Review", 70, "Insult"), Word("枪")] == fake.settings.words
    assert (60, "slow", {"reset": 1}, ["Ad"]) == (
        fake.settings.p50_ms,
        fake.settings.outage,
        fake.settings.errors,
        fake.settings.priority,
    )
    for field in msgspec.structs.fields(Settings):
        assert field.name == "words" or f"--{field.name.replace('_', '-')}" in parser().format_help()


def run(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "relay_plugins.tencent.fake", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command() -> None:
    """It says where it is and what to put into relay.toml, and goes when it is told to."""
    with run("--port", "0", "--word", "bad") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(10)
    assert re.search(r"http://127\.0\.0\.1:[1-9]\d+$", lines[0].strip())
    [entry] = tomllib.loads(lines[4])["moderators"]
    registered = registries().moderators.find(entry.pop("use"))
    made = build(registered, entry, "moderators[0]", context=Context(folder=Path(), environ={}))
    assert lines[0].split()[-1] == made.endpoint  # type: ignore[attr-defined]


def test_a_wrong_command() -> None:
    """A wrong option is one sentence."""
    with run("--error-share", "2") as process:
        _, said = process.communicate(timeout=10)
    assert 2 == process.returncode
    assert "Expected `float` <= 1.0 - at `$.error_share`" in said
