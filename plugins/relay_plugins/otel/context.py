"""W3C Trace Context: the trace that a request comes from, and the one that is told to the upstream.

https://www.w3.org/TR/trace-context/. Contexts are handed on by hand and never attached: hooks run in several tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

from multidict import CIMultiDictProxy
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import NonRecordingSpan, SpanContext, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

# As much as 3.3.1.5 wants to be handed on. What is longer is dropped whole, and not read: it may be as long as a head.
MAX_STATE_CHARS: Final = 512
_MAX_PARENT_CHARS: Final = 512

NOWHERE: Final = Context()
"""Not `None`, for which OpenTelemetry reads a context variable."""

_W3C: Final = TraceContextTextMapPropagator()


class _Bounded(Getter[Mapping[str, str]]):
    """The two headers out of a carrier, if somebody can have meant them."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        return [carrier[key]] if key in carrier else None

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


_BOUNDED: Final = _Bounded()


def coming(headers: CIMultiDictProxy[str], *, state: bool) -> SpanContext | None:
    """The span of a client's that a request comes from. state: with its `tracestate`."""
    parents = headers.getall("traceparent", ())
    if len(parents) != 1 or len(parents[0]) > _MAX_PARENT_CHARS:
        return None
    carrier = {"traceparent": parents[0]}
    states = ",".join(headers.getall("tracestate", ())) if state else ""
    if states and len(states) <= MAX_STATE_CHARS:
        carrier["tracestate"] = states
    found = get_current_span(_W3C.extract(carrier, NOWHERE, _BOUNDED)).get_span_context()
    return found if found.is_valid else None


def within(span: SpanContext) -> Context:
    """The context of what a span causes."""
    return set_span_in_context(NonRecordingSpan(span), NOWHERE)


def going(span: SpanContext, headers: MutableMapping[str, str]) -> None:
    """Have a request say that `span` sends it; not if it is none."""
    _W3C.inject(headers, within(span))
