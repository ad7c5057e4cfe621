"""What is counted of requests: one record each, handed over when everything about it is settled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Sequence

import msgspec
from prometheus_client import CollectorRegistry

from relay.metrics import families
from relay.metrics.cells import Cells
from relay.metrics.collectors import Counter, Series, counter, counters, gauge, histogram, histograms, within
from relay.metrics.families import CLEAN, GEN_AI_OPERATIONS, OPERATIONS, OTHER, OUTCOMES, REFUSALS, UNSERVED


class RequestRecord(msgspec.Struct):
    """One request that has ended. Times are seconds; None: it did not come so far. Who makes it sets what is known.

    first_text_s: from its arrival; of a reply that is not streamed the first text is the whole of it.
    upstream_s, moderated_s, overhead_s: how much of the time to the first text was whose; moderated_s is None without
    moderation. input_tokens, output_tokens: as the upstream told them. steps: what each plugin did, and for how long.
    """

    operation: str
    outcome: str
    duration_s: float
    request_id: str = ""
    steps: Sequence[tuple[str, str, float]] = ()
    stream: bool = False
    model: str = ""
    """As the client named it; counted under its name only if it is one of the configured."""
    upstream: str = ""
    refusal: str = ""
    """The code of the error body if the request was refused."""
    first_text_s: float | None = None
    upstream_s: float | None = None
    moderated_s: float | None = None
    overhead_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int = 0


_Met = tuple[Cells, int, Cells, Sequence[int], Sequence[float], int]
"""Cells, and which of them, of a counter; and of a histogram its `cells`, `buckets`, `bounds` and `sum`."""

_ERROR_TYPES = {
    outcome: "" if outcome in CLEAN else "server" if outcome in UNSERVED else "client" for outcome in OUTCOMES
}


class RequestMetrics:
    """The part of `relay.metrics.Metrics` that is about requests, and what plugins do with them."""

    def __init__(self, registry: CollectorRegistry, upstreams: Container[str]) -> None:
        """upstreams: those that are known now, whenever that is."""
        self._models: set[str] = set()
        self._upstreams = upstreams
        self._requests = counters(families.REQUESTS, registry)
        self._refusals = counters(families.REFUSED, registry)
        self._chunks = counter(families.CHUNKS, registry)
        self._overhead = histogram(families.OVERHEAD, registry)
        self._moderated = histogram(families.FIRST_TEXT, registry)
        self._duration = histograms(families.REQUEST_DURATION, registry)
        self._first_token = histograms(families.FIRST_TOKEN, registry)
        self._output_token = histograms(families.OUTPUT_TOKEN, registry)
        self._tokens = histograms(families.TOKEN_USAGE, registry)
        self._upstream = histograms(families.UPSTREAM_FIRST_TEXT, registry)
        self._steps = Series(Counter, families.PLUGIN_REQUESTS, registry)
        self._errors = Series(Counter, families.PLUGIN_ERRORS, registry)
        self._blocks = Series(Counter, families.PLUGIN_BLOCKS, registry)
        self._seconds = histograms(families.PLUGIN_SECONDS, registry)
        self._met: dict[tuple[str, str], _Met] = {}
        self._in_flight = gauge(families.IN_FLIGHT, registry)
        self._look: Callable[[], int] = lambda: 0

    def know(self, models: Iterable[str], plugins: Iterable[str]) -> None:
        """See `relay.metrics.Metrics`."""
        self._models.update(models)
        plugins = tuple(plugins)
        self._steps.bind(plugin=plugins)
        self._errors.bind(plugin=plugins)
        self._blocks.bind(plugin=plugins)

    def watch(self, look: Callable[[], int]) -> None:
        """`look` says how many requests are in flight, whenever the counts are read."""
        self._look = look

    def look(self) -> None:
        self._in_flight.set(self._look())

    def failed(self, plugin: str, hook: str) -> None:
        """A plugin raised what is no refusal."""
        child = self._errors.get((plugin, within(hook, families.PLUGIN_HOOKS)))
        if child is not None:  # one that is not of the configuration is a test's
            child.inc()

    def blocked(self, plugin: str) -> None:
        """A plugin had the loop for too long."""
        child = self._blocks.get((plugin,))
        if child is not None:
            child.inc()

    def ended(self, record: RequestRecord) -> None:
        """Any request has ended, however it ended; once per request."""
        operation, outcome = record.operation, record.outcome
        counted = self._requests.get((operation, outcome))
        if counted is None:
            operation, outcome = within(operation, OPERATIONS), within(outcome, OUTCOMES, other="internal_error")
            counted = self._requests[operation, outcome]
        counted.inc()
        if record.refusal:
            self._refusals[(within(record.refusal, REFUSALS),)].inc()
        known = self._met
        for plugin, did, seconds in record.steps:
            # As `inc` and `observe` do, but not called: there are as many of these as of all the others.
            met = known.get((plugin, did)) or self._meet(plugin, did)
            if met is not None:
                counts, at, kept, buckets, bounds, total = met
                counts[at] += 1.0
                kept[buckets[bisect_left(bounds, seconds)]] += 1.0
                kept[total] += seconds
        if record.chunks:
            self._chunks.inc(record.chunks)
        if record.overhead_s is not None:
            self._overhead.observe(record.overhead_s)
            if record.moderated_s is not None:
                self._moderated.observe(record.moderated_s)
        if operation in GEN_AI_OPERATIONS:
            self._generated(record, operation, outcome)

    def _meet(self, plugin: str, did: str) -> _Met | None:
        """Where is counted what a plugin did with a request, and for how long; None for one that is not configured."""
        step = self._steps.get((plugin, did))
        if step is None:
            return None
        seconds = self._seconds[(plugin,)]
        met = self._met[plugin, did] = step.cells, step.at, seconds.cells, seconds.buckets, seconds.bounds, seconds.sum
        return met

    def _generated(self, record: RequestRecord, operation: str, outcome: str) -> None:
        model = record.model if record.model in self._models else OTHER
        self._duration[operation, model, _ERROR_TYPES[outcome]].observe(record.duration_s, record.request_id)
        first_text_s = record.first_text_s
        if record.upstream_s is not None:
            self._upstream[(within(record.upstream, self._upstreams),)].observe(record.upstream_s)
        if record.stream and first_text_s is not None:
            self._first_token[operation, model].observe(first_text_s, record.request_id)
            if record.output_tokens is not None and record.output_tokens > 1:
                token_s = (record.duration_s - first_text_s) / (record.output_tokens - 1)
                self._output_token[operation, model].observe(token_s)
        if record.input_tokens is not None:
            self._tokens[operation, model, "input"].observe(record.input_tokens)
        if record.output_tokens is not None:
            self._tokens[operation, model, "output"].observe(record.output_tokens)
