"""From an exchange to its spans, and how these leave: the SDK's provider, its queue and the exporter.

A span of the call is made when it is over, under the id that the upstream was told before: when it is sent is decided by
plugins that come later, and a call that nobody makes has no span.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.semconv._incubating.attributes import process_attributes
from opentelemetry.semconv.attributes import service_attributes
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode

from relay.exchange import Exchange
from relay.log import Logger
from relay.thread import aside
from relay.told import Call
from relay_plugins.otel.context import NOWHERE, coming, going, within
from relay_plugins.otel.spans import (
    OPERATION,
    client_attributes_of,
    client_failure,
    model_of,
    server_attributes_of,
    server_failure,
)

SERVICE_NAME: Final = "moderelay"

# So long the last spans have to leave. A collector that hangs must not hold up who stops or reloads the relay.
CLOSE_S: Final = 3.0
# How often it is said that a collector does not take what is sent.
TELL_EVERY_S: Final = 60.0


@dataclass(slots=True)
class Traced:
    """A request that is sampled.

    client_id: of the span of its call. offset_ns: what to add to a monotonic time, so that it is one since 1970.
    """

    span: Span
    client_id: int
    offset_ns: int

    def at(self, monotonic_s: float) -> int:
        """A time of the exchange's as OpenTelemetry has it."""
        return int(monotonic_s * 1e9) + self.offset_ns


class _Ids(RandomIdGenerator):
    """Random ones; but an id that was given away already is the next span's."""

    def __init__(self) -> None:
        self.given = 0

    def generate_span_id(self) -> int:
        given, self.given = self.given, 0
        return given or super().generate_span_id()


class Tracing:
    """Spans are begun and ended on the loop; takes some time to make, so in a thread."""

    def __init__(
        self, exporter: SpanExporter, *, service_name: str, sample_ratio: float | None, trust_context: bool
    ) -> None:
        self._trust_context = trust_context
        self._ids = _Ids()
        self.provider = TracerProvider(
            # None: the environment's, or else all of them.
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)) if sample_ratio is not None else None,
            resource=_resource(service_name),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer(SERVICE_NAME, version(SERVICE_NAME))

    def begin(self, ex: Exchange) -> Traced | None:
        """Begin the span of a request, and tell its upstream; None if the request is not sampled."""
        parent = coming(ex.headers, state=self._trust_context) if "traceparent" in ex.headers else None
        offset_ns = time.time_ns() - time.monotonic_ns()
        trusted = parent is not None and self._trust_context
        span = self._tracer.start_span(
            "HTTP",  # its name and all else that it says are known in the end
            within(parent) if parent is not None and trusted else NOWHERE,
            SpanKind.SERVER,
            links=(Link(parent),) if parent is not None and not trusted else (),
            start_time=int(ex.started * 1e9) + offset_ns,
        )
        own = span.get_span_context()
        if not span.is_recording():
            if ex.operation == "chat":
                going(own, ex.upstream_headers)
            return None
        client_id = self._ids.generate_span_id()
        if ex.operation == "chat":
            going(SpanContext(own.trace_id, client_id, False, own.trace_flags, own.trace_state), ex.upstream_headers)
        return Traced(span, client_id, offset_ns)

    def end(self, traced: Traced, ex: Exchange) -> None:
        """The request has ended."""
        told, span = ex.told, traced.span
        if told.call is not None:
            self._called(traced, ex, told.call, told.ended_at)
        span.update_name(f"{told.method} {ex.route}")
        span.set_attributes(server_attributes_of(ex, told))
        if server_failure(ex, told) is not None:
            span.set_status(StatusCode.ERROR)
        span.end(traced.at(told.ended_at))

    def _called(self, traced: Traced, ex: Exchange, call: Call, ended_at: float) -> None:
        """The span of a call that has been made."""
        self._ids.given = traced.client_id
        span = self._tracer.start_span(
            f"{OPERATION} {model_of(ex.request)}",
            within(traced.span.get_span_context()),
            SpanKind.CLIENT,
            attributes=client_attributes_of(ex, call),
            start_time=traced.at(call.asked_at),
        )
        self._ids.given = 0
        if client_failure(ex, call) is not None:
            span.set_status(StatusCode.ERROR)
        span.end(traced.at(call.ended_at if call.ended_at is not None else ended_at))


class TellingExporter(SpanExporter):
    """An exporter that says in our log, and not often, when it fails. Called by the SDK's thread."""

    def __init__(self, exporter: SpanExporter, log: Logger) -> None:
        self._exporter = exporter
        self._log = log
        self._lost = 0
        self._told_at = -TELL_EVERY_S
        self._closed = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._closed.is_set():
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            if time.monotonic() - self._told_at >= TELL_EVERY_S:
                self._told_at = time.monotonic()
                self._log.warning("the collector does not take traces", spans_lost=self._lost)
        return result

    def shutdown(self) -> None:
        """Send nothing more; who waits to try again gives up."""
        if not self._closed.is_set():
            self._closed.set()
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


@asynccontextmanager
async def opened(
    log: Logger,
    *,
    endpoint: str,
    headers: Mapping[str, str],
    service_name: str,
    sample_ratio: float | None,
    trust_context: bool,
) -> AsyncIterator[Tracing]:
    """One that sends to `endpoint`; what is empty or None is the environment's to say. Closed within CLOSE_S."""

    def made() -> tuple[TellingExporter, Tracing]:
        exporter = TellingExporter(OTLPSpanExporter(endpoint=endpoint or None, headers=dict(headers) or None), log)
        tracing = Tracing(exporter, service_name=service_name, sample_ratio=sample_ratio, trust_context=trust_context)
        return exporter, tracing

    exporter, tracing = await asyncio.to_thread(made)
    try:
        yield tracing
    finally:
        await _close(tracing, exporter, log)


async def _close(tracing: Tracing, exporter: TellingExporter, log: Logger) -> None:
    """Send what is left, for so long as there is time."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await aside("otel-close", tracing.provider.shutdown)
    except TimeoutError:
        log.warning("the collector does not take the last traces", waited_s=CLOSE_S)
        exporter.shutdown()


def _resource(service_name: str) -> Resource:
    """What sends the spans: the relay, as relay.toml or the environment have it."""
    found = OTELResourceDetector().detect().attributes
    return Resource.create(
        {
            service_attributes.SERVICE_NAME: service_name or found.get(service_attributes.SERVICE_NAME) or SERVICE_NAME,
            service_attributes.SERVICE_VERSION: version(SERVICE_NAME),
            process_attributes.PROCESS_PID: os.getpid(),
        }
    )
