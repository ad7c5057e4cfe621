"""The moderator `tencent`: what is sent with a text, and how often it is asked about."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import ipaddress
import itertools
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta
from tencentcloud.tms.v20201229 import models
from yarl import URL

from relay.log import Logger
from relay.moderator import PASS, Context, Moderator, Unavailable, Verdict
from relay.plugin import Services
from relay.secret import Secret
from relay_plugins.tencent.answer import LABELS, joined, verdict
from relay_plugins.tencent.faults import TooLong
from relay_plugins.tencent.service import Service, unusable

# Text that the service finds too long is halved, at most so often; the halves share the longest holdback there is.
_HALVINGS: Final = 3
_OVERLAP_CHARS: Final = 1000
_AIGC_CALLS_PER_SECOND: Final = 50  # an account's limit
_MAX_ID_CHARS: Final = 64
_MAX_USER_BYTES: Final = 128
_NO_ID_CHAR: Final = re.compile(r"[^A-Za-z0-9_@#-]")
_OTHER_STRING: Final = 7  # User.AccountType
_UNKNOWN_KEPT: Final = 16


class Tencent(Moderator):
    """Asks Tencent Cloud's text moderation (TMS): `TextModeration`, version 2020-12-29.

    secret_id, secret_key: an API key of the account, better a sub-account's that may do nothing else. token: with them,
    for temporary credentials. From files they are read again when they change.
    region, endpoint: of the service. An http:// endpoint sends texts unencrypted: for the fake, or a proxy beside the
    relay.
    biz_type: the policy, as named in the console; "" for the account's default. type: TEXT for content safety,
    TEXT_AIGC for whether a text was written by a machine.
    session: tell the service which windows belong to one reply; they are then shown in order, and one at a time.
    calls_per_second: below what the account may (1000; with TEXT_AIGC 50), since others may use it too.
    user: whom the service is told to be asking: nobody, the name of the key, or the request's `user`. ip_header: the
    header that holds the client's IPv4 address, set by a proxy; of a list the last, which that proxy has written.
    biz_tag: comes back in the console. source_language: en only after asking the service's support.
    """

    labels: ClassVar[frozenset[str]] = LABELS

    secret_id: Secret
    secret_key: Secret
    token: Secret | None = None
    region: Annotated[str, Meta(pattern=r"^[a-z]{2,}-[a-z]+(-[0-9a-z]+)*$")] = "ap-guangzhou"
    endpoint: str = "https://tms.tencentcloudapi.com"
    biz_type: Annotated[str, Meta(pattern=r"^([A-Za-z0-9_]{3,32})?$")] = ""
    type: Literal["TEXT", "TEXT_AIGC"] = "TEXT"
    session: bool = False
    calls_per_second: Annotated[float, Meta(gt=0)] = 800
    user: Literal["none", "key", "request"] = "none"
    ip_header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]*$")] = ""
    biz_tag: Annotated[str, Meta(max_length=128)] = ""
    source_language: Literal["", "zh", "en"] = ""

    _url: URL = dataclasses.field(init=False)
    _service: Service = dataclasses.field(init=False)
    _log: Logger = dataclasses.field(init=False)
    _numbers: Iterator[int] = dataclasses.field(init=False)
    _series: str = dataclasses.field(init=False)  # tells this process's calls from those of others
    _unknown: set[str] = dataclasses.field(init=False)  # suggestions that were logged

    def __post_init__(self) -> None:
        self._url = _address(self.endpoint)
        token = self.token.reveal() if self.token is not None else ""
        if problem := unusable(self.secret_id.reveal(), self.secret_key.reveal(), token):
            raise ValueError(problem)
        if self.type == "TEXT_AIGC":
            if self.calls_per_second > _AIGC_CALLS_PER_SECOND:
                raise ValueError(
                    f'type = "TEXT_AIGC" allows an account {_AIGC_CALLS_PER_SECOND} calls a second, and '
                    f"calls_per_second is {self.calls_per_second:g}; set calls_per_second = 40"
                )
            if self.session:
                raise ValueError(
                    'session = true joins texts for content safety; leave it out with type = "TEXT_AIGC", which judges '
                    "each text alone"
                )
        self._numbers = itertools.count(1)
        self._series = secrets.token_hex(3)
        self._unknown = set()

    @property
    def account(self) -> str:
        return f"tencent {self._url.host} {self.secret_id.reveal()}"

    @property
    def in_order(self) -> bool:
        return self.session

    @property
    def cacheable(self) -> bool:
        return not self.session and self.user == "none" and not self.ip_header

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        self._log = services.log
        if self._url.scheme == "http" and not _is_loopback(self._url.host or ""):
            services.log.warning("texts go to the moderator unencrypted", moderator=self.known_as, host=self._url.host)
        async with Service.connected(self._url, self.region, self.secret_id, self.secret_key, self.token) as service:
            self._service = service
            yield

    async def check(self, text: str, context: Context) -> Verdict:
        if not text:
            return PASS  # the service refuses it
        return await self._check(text, context, _HALVINGS)

    async def _check(self, text: str, context: Context, halvings: int) -> Verdict:
        response = None
        try:
            response = await self._service.ask(self._request(text, context))
        except TooLong:
            if not halvings or len(text) <= 2 * _OVERLAP_CHARS:
                raise
        if response is None:
            middle = len(text) // 2
            start = middle - _OVERLAP_CHARS // 2
            first = await self._check(text[: start + _OVERLAP_CHARS], context, halvings - 1)
            return joined(first, await self._check(text[start:], context, halvings - 1), start)
        try:
            return verdict(response, text, self._wonder)
        except (ValueError, TypeError, AttributeError) as problem:
            reference = str(response.RequestId or "")[:100]
            raise Unavailable(
                f"an answer without a verdict ({type(problem).__name__}, RequestId {reference or 'unknown'})",
                reference=reference,
            ) from None

    def _request(self, text: str, context: Context) -> models.TextModerationRequest:
        request = models.TextModerationRequest()
        # Half a surrogate pair cannot be sent; a question mark in its place keeps every position.
        request.Content = base64.b64encode(text.encode("utf-8", "replace")).decode()
        request.DataId = self._data_id(context)
        request.Type = self.type
        request.BizType = self.biz_type or None
        request.BizTag = self.biz_tag or None
        request.SourceLanguage = self.source_language or None
        if self.session:
            request.SessionId = _session_id(context)
        if user_id := self._user_id(context):
            request.User = models.User()
            request.User.UserId, request.User.AccountType = user_id, _OTHER_STRING
        if self.ip_header and (address := _ipv4(context.headers.get(self.ip_header, ""))):
            request.Device = models.Device()
            request.Device.IP = address
        return request

    def _data_id(self, context: Context) -> str:
        """Names one call in a support case: the request it belongs to, and which of its calls it is."""
        tail = f"-{self._series}-{next(self._numbers):x}"
        return _NO_ID_CHAR.sub("-", context.exchange)[: _MAX_ID_CHARS - len(tail)] + tail

    def _user_id(self, context: Context) -> str:
        if self.user == "none":
            return ""
        # A client may call itself anything, at any length.
        user = (context.caller if self.user == "key" else context.user).encode("utf-8", "replace")
        return user.decode() if len(user) <= _MAX_USER_BYTES else hashlib.sha256(user).hexdigest()

    def _wonder(self, suggestion: str) -> None:
        if suggestion not in self._unknown and len(self._unknown) < _UNKNOWN_KEPT:
            self._unknown.add(suggestion)
            self._log.warning(
                "moderator suggests what is not known; it blocks", moderator=self.known_as, said=suggestion
            )


def _address(endpoint: str) -> URL:
    """Raises ValueError with the remedy."""
    example = 'write it as in "https://tms.tencentcloudapi.com"'
    try:
        url = URL(endpoint)
        whole = url.scheme in ("http", "https") and bool(url.host) and bool(url.port)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"endpoint is no address; {example}")  # which is not repeated: a password may stand in it
    if url.user is not None or url.password is not None:
        raise ValueError(f"endpoint names a user or a password, which the service does not know; {example}")
    if url.raw_path not in ("", "/") or url.raw_query_string or url.raw_fragment:
        # The service's signature is over the path /.
        raise ValueError(f"endpoint goes on after the host; {example}")
    return url.with_path("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _session_id(context: Context) -> str:
    """The same for all windows of one surface of one choice."""
    place = f"{context.exchange}-{context.direction}-{context.choice}-{context.surface}"
    if len(place) > _MAX_ID_CHARS:
        return hashlib.sha256(place.encode("utf-8", "replace")).hexdigest()
    return _NO_ID_CHAR.sub("-", place)


def _ipv4(header: str) -> str:
    """The address in a header, "" if there is none: the service takes IPv4 only."""
    try:
        address = ipaddress.ip_address(header.rpartition(",")[2].strip())
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or "")
    return str(address)
