import asyncio
import json

import pytest

from relay.errors import (
    InternalError,
    ModerationError,
    PluginError,
    Reject,
    RelayError,
    Unavailable,
    UpstreamError,
    being_cancelled,
    guard_failure,
    unsupported_messages,
    unsupported_model,
    upstream_incomplete,
    upstream_malformed,
)

NO_RETRY = {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("error", "status", "type", "code", "headers"),
    [
        (RelayError("No.", code="c"), 500, "talk_api_error", "c", {}),
        (Reject("No.", code="c"), 400, "invalid_request_error", "c", {}),
        (Reject("No.", code="c", status=429, type="requests", headers={"retry-after": "3"}), 429, "requests", "c",
         {"retry-after": "3"}),
        (UpstreamError("No.", code="c"), 502, "upstream_error", "c", NO_RETRY),
        (UpstreamError("No.", code="c", status=504), 504, "upstream_error", "c", NO_RETRY),
        (UpstreamError("No.", code="c", acted=False), 502, "upstream_error", "c", {}),
        (ModerationError("No.", code="c"), 503, "moderation_error", "c", NO_RETRY),
        (Unavailable("No.", code="c"), 503, "server_error", "c", {}),
        (InternalError(), 500, "talk_api_error", "internal_error", NO_RETRY),
        (PluginError("shout", "feed"), 500, "talk_api_error", "internal_error", NO_RETRY),
        (unsupported_model(), 404, "talk_api_error", "invalid_model", {}),
        (unsupported_messages(), 400, "talk_api_error", "invalid_messages", {}),
        (upstream_incomplete(), 502, "upstream_error", "upstream_incomplete", NO_RETRY),
        (upstream_malformed(), 502, "upstream_error", "upstream_malformed", NO_RETRY),
        (guard_failure("upstream_malformed"), 502, "upstream_error", "upstream_malformed", NO_RETRY),
        (guard_failure("content_filter"), 502, "moderation_error", "content_filter", NO_RETRY),
        (guard_failure("moderation_stalled"), 503, "moderation_error", "moderation_stalled", NO_RETRY),
        (guard_failure("moderation_unavailable"), 503, "moderation_error", "moderation_unavailable", NO_RETRY),
    ],
)  # fmt: skip
def test_answers(error: RelayError, status: int, type: str, code: str, headers: dict[str, str]) -> None:
    """Each error knows its status, its headers, and the type and code of its body."""
    assert error.status == status
    assert error.headers == headers
    body = json.loads(error.body)["error"]
    assert (body["type"], body["code"]) == (type, code)
    assert body["message"] == error.message


def test_body() -> None:
    """The body has the four fields that the official clients read."""
    error = Reject("Too long.", code="too_long", param="messages")
    expected = {"message": "Too long.", "type": "invalid_request_error", "param": "messages", "code": "too_long"}
    assert {"error": expected} == json.loads(error.body)
    assert str(error) == "Too long."


def test_headers_are_its_own() -> None:
    """An error's headers can be added to without changing those of another."""
    first, second = InternalError(), InternalError()
    first.headers["retry-after"] = "1"
    assert "retry-after" not in second.headers


def test_quoted_bytes() -> None:
    """A message that quotes a header with bytes that are no UTF-8 still makes a body."""
    key = b"sk-\xff".decode("utf-8", "surrogateescape")
    assert json.loads(Reject(f"Not {key}.", code="c").body)["error"]["message"] == "Not sk-?."


def test_plugin_error() -> None:
    """A plugin's failure names plugin and hook to the operator, and tells the client nothing of them."""
    error = PluginError("shout", "on_request")
    assert str(error) == "plugin 'shout' failed in on_request"
    assert b"shout" not in error.body


async def test_being_cancelled() -> None:
    """A task is being cancelled when somebody cancels it, and not when work that it waits for is."""

    async def wait_for(task: asyncio.Future[None]) -> bool:
        try:
            await task
        except asyncio.CancelledError:
            return being_cancelled()
        return False

    waited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_for(waited))
    await asyncio.sleep(0)
    waited.cancel()
    assert await waiting is False
    waiting = asyncio.create_task(wait_for(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting is True
