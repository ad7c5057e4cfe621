"""`POST /admin/reload`: relay.toml is read again. 200 when it is served; 422 says what is wrong in it, and nothing has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from relay.admin_api import query_of
from relay.errors import Reject, Unavailable
from relay.options import ConfigError

PATH: Final = "/admin/reload"

Reload = Callable[[], Awaitable[None]]


async def answer(request: web.BaseRequest, reload: Reload | None) -> bytes:
    """The body of the answer, when it is served. Raises Reject or Unavailable for every refusal.

    reload: None while the relay starts. Raises ConfigError.
    """
    if request.method != hdrs.METH_POST:
        raise Reject(
            f"{PATH} answers POST only.", code="method_not_allowed", status=405, headers={hdrs.ALLOW: hdrs.METH_POST}
        )
    query_of(request, ())
    if reload is None:
        raise Unavailable(
            "The relay is starting; try again in a moment.", code="starting", headers={hdrs.RETRY_AFTER: "1"}
        )
    try:
        await reload()
    except ConfigError as error:
        raise Reject(f"Nothing has changed:\n{error}", code="configuration_refused", status=422) from None
    return b'{"state":"done"}'
