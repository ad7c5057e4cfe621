"""Who asks: TC3-HMAC-SHA256, checked over the request as it came. Pure: the time is an argument.

The rules are those of the service's page "Signature v3": canonical request, string to sign, a key derived for one day and
one service. Written from that page and apart from the client's signer, so that the two do not share a mistake.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from relay_plugins.tencent.fake.refusal import Refusal

ALGORITHM: Final = "TC3-HMAC-SHA256"
SERVICE: Final = "tms"
MAX_SKEW_S: Final = 300
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_AUTHORIZATION: Final = re.compile(
    rf"{ALGORITHM} Credential=(?P<id>[^/,\s]+)/(?P<date>[^/,\s]+)/(?P<service>[^/,\s]+)/tc3_request, ?"
    r"SignedHeaders=(?P<signed>[^,\s]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)
_STANDARDS: Final = "The request `Authorization` header does not conform to tencentcloud standards: "


@dataclass(frozen=True, slots=True)
class Account:
    """Whose signature is accepted. token: of temporary credentials; "" for permanent ones, which send none."""

    secret_id: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return "Account(…)"


class Signed(NamedTuple):
    """A request as it came. Headers are looked up in any case; path and query are as on the wire."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


def verify(request: Signed, account: Account, now: float) -> None:
    """Raises Refusal unless the request was signed with the account's key within five minutes of `now` (Unix time)."""
    headers = request.headers
    timestamp = _timestamp(headers)
    found = _AUTHORIZATION.fullmatch(_needed(headers, "Authorization"))
    if found is None:
        raise Refusal("AuthFailure.InvalidAuthorization", _STANDARDS + "it cannot be read.")
    if found["service"] != SERVICE:
        raise Refusal("AuthFailure.InvalidAuthorization", _STANDARDS + "`Service` in Credential not valid.")
    names = found["signed"].split(";")
    if not {"content-type", "host"} <= set(names):
        raise Refusal(
            "AuthFailure.InvalidAuthorization", _STANDARDS + "`SignedHeaders` has to name content-type and host."
        )
    if abs(now - timestamp) > MAX_SKEW_S:
        raise Refusal(
            "AuthFailure.SignatureExpire",
            "Signature expired. Please use local time and enable NTP service for time synchronization to avoid a "
            f"deviation between `Timestamp` and the server time {int(now)}.",
        )
    if found["id"] != account.secret_id:
        raise Refusal("AuthFailure.SecretIdNotFound", "The SecretId is not found, please ensure that it is correct.")
    if headers.get("X-TC-Token", "") != account.token:
        raise Refusal("AuthFailure.TokenFailure", "The `Token` is not valid.")
    date = time.strftime("%Y-%m-%d", time.gmtime(timestamp))
    content = _UNSIGNED.encode() if headers.get("X-TC-Content-SHA256") == _UNSIGNED else request.body
    canonical = "\n".join(
        (
            request.method,
            request.path,
            request.query,
            *(f"{name}:{headers.get(name, '').strip().lower()}" for name in sorted(names)),
            "",
            found["signed"],
            hashlib.sha256(content).hexdigest(),
        )
    )
    to_sign = "\n".join(
        (
            ALGORITHM,
            str(timestamp),
            f"{date}/{SERVICE}/tc3_request",
            hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest(),
        )
    )
    expected = hmac.digest(_signing_key(account.secret_key, date), to_sign.encode(), "sha256").hex()
    # A date that is not the timestamp's was signed with another day's key, but may have been put in afterwards.
    if found["date"] != date or not hmac.compare_digest(expected, found["signature"]):
        raise Refusal(
            "AuthFailure.SignatureFailure",
            "The provided credentials could not be validated. Please check your signature is correct.",
        )


def _needed(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        shown = name.removeprefix("X-TC-")
        raise Refusal("MissingParameter", f"The request is missing a required parameter `{shown}`.")
    return value


def _timestamp(headers: Mapping[str, str]) -> int:
    value = _needed(headers, "X-TC-Timestamp")
    if not value.isascii() or not value.isdecimal() or len(value) > 12:
        raise Refusal("InvalidParameter", "The value type of parameter `Timestamp` is not valid.")
    return int(value)


@lru_cache(maxsize=16)
def _signing_key(secret_key: str, date: str) -> bytes:
    """The key of one day: three of the four HMACs of a signature."""
    key = ("TC3" + secret_key).encode()
    for part in (date, SERVICE, "tc3_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
