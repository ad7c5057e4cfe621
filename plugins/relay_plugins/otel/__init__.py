"""`otel`: traces by OpenTelemetry. One span for a request, one for the call of its model, and the context passed on.

It wraps no reply: what the spans say is what the relay knows of a request at its end (`ex.told`), so a chunk costs nothing.
Nothing that a client or a model has said is told, and nothing waits for a collector: what has ended is put into a queue of
bounded length, which a thread of the SDK's sends on.

The SDK is imported when the plugin is used, and named in the other files of this folder alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from msgspec import Meta

from relay.exchange import Exchange, Key, Operation
from relay.plugin import Plugin, Reply, Services
from relay.secret import Secret

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


class Otel(Plugin):
    """Traces requests by OpenTelemetry, and sends the traces by OTLP over HTTP. Needs `pip install "moderelay[otel]"`.

    Put it first: a request that a plugin before it refuses has no trace.

    endpoint: where traces are taken, such as "http://collector:4318/v1/traces". headers: what goes with them, such as a
    vendor's token. service_name: how the relay is called there. sample_ratio: the share of requests that are traced, 0 to 1.
    What is left out is taken from the environment, by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …), and else is a collector on this machine, "moderelay", and every request.

    trust_context: whether a client's `traceparent` is taken for the truth: its trace goes on here, and it says whether it
    is sampled. If not, a trace begins here and links to the client's. Switch it on where all clients are your own.
    """

    serves: ClassVar[frozenset[Operation]] = frozenset({"chat", "models", "quota"})

    endpoint: str = ""
    headers: dict[str, Secret] = dataclasses.field(default_factory=dict)
    service_name: str = ""
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] | None = None
    trust_context: bool = False

    _traced: Key[Any] = dataclasses.field(init=False)  # its own: two of them may trace one request to two collectors
    _tracing: Any = dataclasses.field(init=False)  # a Tracing: what it is made of is imported when it is used

    def __post_init__(self) -> None:
        self._traced = Key("otel.traced", object)
        if self.endpoint and (problem := _problem(self.endpoint)):
            raise ValueError(f"endpoint {problem}")
        for name, secret in self.headers.items():
            value = secret.reveal()
            if not _NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise ValueError(
                    f"the header {name!r} cannot be sent; look for a space or a line break in its name or value"
                )
        try:
            import relay_plugins.otel.tracing  # noqa: F401, PLC0415 - it comes with an extra
        except ImportError as error:
            raise ValueError('the OpenTelemetry SDK is missing; run pip install "moderelay[otel]"') from error

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        from relay_plugins.otel.tracing import opened  # noqa: PLC0415

        headers = {name: secret.reveal() for name, secret in self.headers.items()}
        async with opened(
            services.log,
            endpoint=self.endpoint,
            headers=headers,
            service_name=self.service_name,
            sample_ratio=self.sample_ratio,
            trust_context=self.trust_context,
        ) as self._tracing:
            yield

    async def on_request(self, ex: Exchange) -> Reply | None:
        traced = self._tracing.begin(ex)
        if traced is not None:
            ex[self._traced] = traced
        return None

    async def on_end(self, ex: Exchange) -> None:
        if self._traced in ex:
            self._tracing.end(ex[self._traced], ex)


def _problem(endpoint: str) -> str:
    """What is wrong with it; "" if nothing is."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not endpoint.isprintable():
        return "has to be a URL that begins with http:// or https://"
    if parts.username is not None or parts.password is not None:
        return 'carries a password; send it as a header instead: headers = { Authorization = { env = "…" } }'
    if parts.path in ("", "/"):
        return f"has no path; collectors take traces at {parts.scheme}://{parts.netloc}/v1/traces"
    return ""
