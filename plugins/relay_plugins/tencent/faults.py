"""The service's errors by name, and what each means to the relay. Pure.

Messages hold the code and the RequestId, which is what a support case needs, and advice of ours; never the service's own
words, which may quote what they were sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from relay.moderator import NoVerdict, RateLimited, Unauthorized, Unavailable

T = TypeVar("T")

MAX_SKEW_S: Final = 300  # what the service allows


class TooLong(NoVerdict):
    """The service takes no text of this length; halves may pass."""


# By the longest name that the code is, or begins with before a dot.
_MEANINGS: Final[Mapping[str, type[NoVerdict]]] = {
    "RequestLimitExceeded": RateLimited,
    "LimitExceeded": RateLimited,
    "InternalError.QueryReqLimited": RateLimited,
    "InternalError": Unavailable,
    "ServiceUnavailable": Unavailable,
    "AuthFailure": Unauthorized,
    "UnauthorizedOperation": Unauthorized,
    "ResourceUnavailable": Unauthorized,
    "ResourceInsufficient": Unauthorized,
    "IpInBlacklist": Unauthorized,
    "IpNotInWhitelist": Unauthorized,
    "UnsupportedRegion": Unauthorized,
    "NoSuchVersion": Unauthorized,
    "NoSuchProduct": Unauthorized,
    "InvalidAction": Unauthorized,
    "ActionOffline": Unauthorized,
    "InvalidParameterValue.InvalidBizType": Unauthorized,
    "InvalidParameterValue.ErrType": Unauthorized,
    "InvalidParameter.ErrTextContentLen": TooLong,
    "InvalidParameterValue.ErrTextContentLen": TooLong,
    "RequestSizeLimitExceeded": TooLong,
}
_REMEDIES: Final[Mapping[str, str]] = {
    "AuthFailure.SecretIdNotFound": "there is no such secret_id; it was deleted, disabled or misspelt",
    "AuthFailure.SignatureFailure": "secret_key does not belong to secret_id",
    "AuthFailure.TokenFailure": "the token of the temporary credentials is wrong or has expired",
    "AuthFailure.InvalidAuthorization": "the endpoint is not that of text moderation, or something on the way changes headers",
    "AuthFailure": "the credentials are not accepted",
    "UnauthorizedOperation": "text moderation is not enabled for this account, its package is used up, or a bill is open",
    "ResourceUnavailable": "the account cannot be charged; look at its bills",
    "UnsupportedRegion": "the endpoint does not serve this region; set `region`",
    "InvalidParameterValue.InvalidBizType": "there is no policy of this name; set `biz_type` as in the console",
    "InvalidParameterValue.ErrType": "the endpoint does not take this `type`",
    "RequestLimitExceeded": "the account's rate is reached; lower `calls_per_second`",
}
_SERVER_TIME: Final = re.compile(r"server time (\d{9,11})")


def fault(error: TencentCloudSDKException, date: str, now: float) -> NoVerdict:
    """What an error means. `date`: the answer's Date header, "" without one; `now`: this machine's Unix time."""
    code, reference = str(error.code)[:100], str(error.requestId or "")[:100]
    if code == "AuthFailure.SignatureExpire":
        remedy = clock(date, str(error.message), now)
    else:
        remedy = _closest(_REMEDIES, code) or ""
    words = f"{code} (RequestId {reference or 'unknown'})"
    kind = _closest(_MEANINGS, code) or NoVerdict
    return kind(f"{words}: {remedy}" if remedy else words, reference=reference)


def refused_by_status(status: int) -> NoVerdict:
    """What an HTTP status other than 200 means; the service itself always answers with 200."""
    if status >= 500 or status == 408:
        return Unavailable(f"HTTP {status} from something in front of the service")
    if status == 413:
        return TooLong("HTTP 413 from something in front of the service")
    if status == 429:
        return RateLimited("HTTP 429 from something in front of the service")
    return Unauthorized(f"HTTP {status}, which the service never says; check `endpoint` and what is in front of it")


def clock(date: str, message: str, now: float) -> str:
    """How far this machine's clock is off, in words."""
    theirs = _time(date, message)
    if theirs is None:
        return "this machine's clock is more than five minutes off; set it by NTP"
    ahead_s = round(now - theirs)
    if abs(ahead_s) < MAX_SKEW_S // 2:
        return "the clocks agree, so the call was minutes on its way; look at what is in front of the service"
    return (
        f"this machine's clock is {abs(ahead_s)} s {'ahead of' if ahead_s > 0 else 'behind'} Tencent's; set it by NTP"
    )


def _time(date: str, message: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        told = _SERVER_TIME.search(message)
        return float(told[1]) if told else None


def _closest(table: Mapping[str, T], code: str) -> T | None:
    while code:
        if code in table:
            return table[code]
        code = code.rpartition(".")[0]
    return None
