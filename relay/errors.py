"""Errors, named by whose fault it is; each knows its HTTP answer.

What another library raises is translated where that library is called, and nowhere else. A message says what to do and
never holds an upstream's address, a key, a prompt or a traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from relay.pure.openai import error_body

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Both official SDKs keep to it. Where an upstream may have acted, asking again would buy the answer twice.
NO_RETRY: Mapping[str, str] = MappingProxyType({"x-should-retry": "false"})


class RelayError(Exception):
    """An error that a client is told about: `status` and `headers` before the head has left, `body` in either case."""

    type: ClassVar[str] = "talk_api_error"
    default_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        type: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        # A message may quote a header, whose bytes that are no UTF-8 stand in it as lone surrogates; JSON has none.
        message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status or self.default_status
        self.headers = dict(headers)
        self.param = param
        self._type = type or self.type

    @property
    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`"""
        return error_body(self.message, type=self._type, code=self.code, param=self.param)


class Reject(RelayError):
    """The request is refused: the client's to mend. What plugins raise in `on_request`."""

    type = "invalid_request_error"
    default_status = 400


class UpstreamError(RelayError):
    """The upstream failed. If it may have acted, the client may have been charged, and is told not to retry by itself."""

    type = "upstream_error"
    default_status = 502

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        kind: str = "error",
        acted: bool = True,
    ) -> None:
        """`kind` is the metric's label: connect, first_byte, idle, status, died, malformed, incomplete, reported, error."""
        super().__init__(message, code=code, status=status, headers=NO_RETRY if acted else NO_HEADERS)
        self.kind = kind


class UpstreamBusy(UpstreamError):
    """The upstream takes no more requests for now. The relay's own account there is used up, not the client's."""

    type = "requests"

    def __init__(self, retry_after: str | None) -> None:
        message = "The model server is busy. Ask again later."
        super().__init__(message, code="rate_limit_exceeded", status=429, kind="status", acted=False)
        if retry_after is not None:
            self.headers["Retry-After"] = retry_after


class ModerationError(RelayError):
    """A reply cannot be shown, or a request not passed on: it violates, or nobody could say whether it does."""

    type = "moderation_error"
    default_status = 503

    def __init__(self, message: str, *, code: str, status: int | None = None, acted: bool = True) -> None:
        """`acted`: whether an upstream may have."""
        super().__init__(message, code=code, status=status, headers=NO_RETRY if acted else NO_HEADERS)


class Unavailable(RelayError):
    """The relay itself cannot serve now."""

    type = "server_error"
    default_status = 503


class InternalError(RelayError):
    """Our own fault. The client is told no more than that."""

    def __init__(self) -> None:
        super().__init__("Internal server error.", code="internal_error", headers=NO_RETRY)


class PluginError(InternalError):
    """A plugin raised what is not ours. The log names it. request_id: "" while it is not known."""

    def __init__(self, plugin: str, hook: str, request_id: str = "") -> None:
        super().__init__()
        self.plugin = plugin
        self.hook = hook
        self.request_id = request_id

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} failed in {self.hook}"


def forget_frames(error: BaseException | None) -> None:
    """Let go of the frames through which an exception came, and those before it.

    Where a local of such a frame holds the exception they are a circle, which keeps all that the frames hold, bodies of
    requests included, until the collector comes; and that comes seldom.
    """
    while error is not None:
        error.__traceback__, error = None, error.__context__


def being_cancelled() -> bool:
    """Whether the running task is. If not, a CancelledError is one that somebody else's code brought up by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def unsupported_model() -> Reject:
    return Reject("Unsupported model.", code="invalid_model", status=404, type="talk_api_error")


def unsupported_messages() -> Reject:
    return Reject("Unsupported messages.", code="invalid_messages", type="talk_api_error")


def upstream_incomplete() -> UpstreamError:
    return UpstreamError(
        "The model's answer ended before it was complete; what was sent is all there is. Ask again if you need the rest.",
        code="upstream_incomplete",
        kind="incomplete",
    )


def upstream_malformed() -> UpstreamError:
    return UpstreamError(
        "The model server sent what cannot be read; the answer ends here. Ask again.",
        code="upstream_malformed",
        kind="malformed",
    )


def guard_failure(code: str) -> RelayError:
    """The error for a guard's `failure`."""
    if code == "upstream_malformed":
        return upstream_malformed()
    if code == "content_filter":
        return ModerationError("The answer was stopped by content moderation.", code=code, status=502)
    if code == "moderation_stalled":
        return ModerationError("The answer could not be moderated in the room that there is; ask again.", code=code)
    return ModerationError("Content moderation does not answer; nothing is sent unchecked. Ask again later.", code=code)
