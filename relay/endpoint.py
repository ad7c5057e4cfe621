"""One upstream that is asked: what its requests begin with. How they are sent is for `relay.connections` to say."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

from aiohttp import hdrs
from yarl import URL

from relay.config import Upstream
from relay.connections import Connections, Connector
from relay.reply import Reply
from relay.told import Server

# uvicorn closes idle connections after 5 s; one that we give up first is never found closed.
POOL_IDLE_S: Final = 4.0


class Endpoint(Connections):
    """Where one upstream is asked. Made inside a running loop."""

    __slots__ = ("_stream", "_whole", "server")

    def __init__(self, upstream: Upstream, connector: Connector) -> None:
        url = URL(upstream.base_url + "/chat/completions")
        super().__init__(
            url,
            connector,
            # Nobody waits for a connection longer than for the reply.
            connect_timeout_s=min(upstream.connect_timeout_s, upstream.first_byte_timeout_s),
            first_byte_timeout_s=upstream.first_byte_timeout_s,
            idle_s=POOL_IDLE_S,
        )
        key = None if upstream.api_key is None else upstream.api_key.reveal()
        self.server: Final = Server(upstream.name, url.host or "", url.port or 0)
        self._stream = _head(url, key, "text/event-stream")
        self._whole = _head(url, key, "application/json")

    def ask(self, body: bytes, *, stream: bool, request_id: str, more: bytes = b"") -> Coroutine[Any, Any, Reply]:
        """POST it; the reply is asked for uncompressed. Raises what `post` does.

        more: `Exchange.upstream_lines`.
        """
        return self.post((self._stream if stream else self._whole) + request_id.encode() + more, body)


def _head(url: URL, key: str | None, accept: str) -> bytes:
    """The head of every request, up to its id and length, which stand at the end. Raises ValueError if it is no head."""
    lines = [
        f"{hdrs.METH_POST} {url.raw_path_qs} HTTP/1.1",
        f"{hdrs.HOST}: {url.host_port_subcomponent}",
        f"{hdrs.CONTENT_TYPE}: application/json",
        f"{hdrs.ACCEPT_ENCODING}: identity",
        f"{hdrs.ACCEPT}: {accept}",
        *([f"{hdrs.AUTHORIZATION}: Bearer {key}"] if key is not None else []),
        "x-request-id: ",
    ]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a key or an address holds a character that cannot stand in the head of a request")
    return "\r\n".join(lines).encode()
