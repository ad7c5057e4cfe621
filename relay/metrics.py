"""What the relay counts, and the only file that names a Prometheus metric.

Names follow OpenTelemetry's GenAI conventions where there is one (`gen_ai_server_*`, with their buckets, as Envoy AI
Gateway exports them); there is none for moderation or for a relay's own overhead, so those are ours, under `relay_`.

The tables at the top are the reference: one `Family` per metric, one closed set per label. A label value that is not in
its set is counted as "other" (an outcome nobody has named is our own fault: "internal_error"). So the number of series
depends on the configuration, never on what clients send: no key ids, no request ids, no model names from requests.

Nothing here runs per chunk. The core counts in locals and hands over the sums when a stream ends, as a `RequestRecord`
and a `ModerationTally`. `.labels()` costs more than the increment, so children are bound once. Counters are bound at
start-up, all of them: a counter whose first sample is already 1 hides that first event from `rate()`. The two
histograms by model are bound at their first observation, because an idle one costs some twenty series.

Collectors belong to a `Metrics` and its registry, never to the module: two relays in one process do not share a count.
"""

import platform
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector

from relay.pure.health import REASONS, Reason

M = TypeVar("M", bound=MetricWrapperBase)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that is not installed


# Looked up on the disk, so at import and not where a loop may be running.
_RUNNING = (_installed("moderelay"), platform.python_version(), _installed("aiohttp"))


class Family(NamedTuple):
    """One metric, as it is named in queries. A histogram's series add `_bucket` (with `le`), `_sum` and `_count`."""

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ()


OTHER = "other"

OPERATIONS = ("chat", "models", OTHER)
"""What was asked for; "chat" under whichever dialect's route, "other" under none."""

OUTCOMES = ("completed", "filtered", "refused", "upstream_error", "client_gone", "drained", "internal_error")
"""How a request ended. "filtered": the reply was cut by moderation; a prompt that moderation refuses is "refused"."""

REFUSALS = (
    "bad_request",
    "headers_too_large",
    "invalid_api_key",
    "invalid_json",
    "repeated_key",
    "invalid_messages",
    "invalid_model",
    "invalid_n",
    "invalid_stream",
    "invalid_temperature",
    "invalid_max_tokens",
    "invalid_max_completion_tokens",
    "invalid_presence_penalty",
    "invalid_frequency_penalty",
    "invalid_top_p",
    "invalid_user",
    "invalid_logit_bias",
    "invalid_keyword",
    "keyword_too_long",
    "request_too_large",
    "request_timeout",
    "unsupported_media_type",
    "not_found",
    "method_not_allowed",
    "content_filter",
    "rate_limit_exceeded",
    "too_many_requests_in_flight",
    "moderation_unavailable",
    "moderation_stalled",
    "upstream_auth",
    "upstream_error",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_malformed",
    "upstream_incomplete",
    "draining",
    "internal_error",
    OTHER,
)
"""The `code` of an error body that was answered in place of a reply. Codes that an upstream or a plugin of somebody
else's made up are "other"."""

UPSTREAM_OUTCOMES = ("answered", "refused", "failed", "cancelled", OTHER)
"""Of one request to an upstream: a head with status 200 came; another status came; no head came; the client left before it."""

UPSTREAM_ERRORS = (
    *("connect", "first_byte", "idle", "status", "died", "malformed", "incomplete", "reported", "error"),
    OTHER,
)
"""What an upstream did wrong: the `kind` of an `UpstreamError`."""

RETRIES = ("retried", "over_budget")
"""Of a failure that may be retried."""

CHARACTERS = ("in", "checked", "released", "withheld", "blocked")
"""Of guarded text: came; shown to moderators (overlap counts twice); sent to the client; dropped without being
flagged itself (the tail after a cut, or the client left); dropped in a flagged window.
At the end of every reply in = released + withheld + blocked."""

UNVERIFIED = ("open_failure", "shadow", "unknown_field", "opaque", OTHER)
"""Why text left without a verdict: the moderator failed and `on_failure = "open"`; the mode; the two options."""

CHECKS = ("pass", "review", "block", "mask", "timeout", "error", "breaker_open", "cached", OTHER)
"""What became of one check."""

REQUESTS = Family(
    "relay_requests_total",
    "counter",
    "Requests that ended, by how they ended.",
    ("operation", "outcome"),
)
REFUSED = Family(
    "relay_refusals_total",
    "counter",
    "Requests answered with an error body instead of a reply, by its code.",
    ("code",),
)
OPEN_STREAMS = Family(
    "relay_open_streams",
    "gauge",
    "Replies being streamed to clients now.",
)
FIRST_BYTE = Family(
    "relay_time_to_first_byte_seconds",
    "histogram",
    "From a request's arrival to the first byte of its reply's head.",
)
CHUNKS = Family(
    "relay_chunks_total",
    "counter",
    "Chunks sent to clients, added when their reply ends.",
)
OVERHEAD = Family(
    "relay_overhead_seconds",
    "histogram",
    "Time the relay itself added before the first byte: neither the upstream's nor a moderator's.",
)
REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "From a request's arrival to the end of its reply. error_type is empty for a reply that ended cleanly.",
    ("gen_ai_operation_name", "gen_ai_request_model", "error_type"),
)
FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to the head of a stream, which leaves with its first frame.",
    ("gen_ai_operation_name", "gen_ai_request_model"),
)
UPSTREAM_REQUESTS = Family(
    "relay_upstream_requests_total",
    "counter",
    "Requests sent to an upstream, retries included.",
    ("upstream", "outcome"),
)
UPSTREAM_FAILURES = Family(
    "relay_upstream_errors_total",
    "counter",
    "What an upstream did wrong, before or inside a reply.",
    ("upstream", "kind"),
)
UPSTREAM_RETRIES = Family(
    "relay_upstream_retries_total",
    "counter",
    "Retries elsewhere that a failure of this upstream led to, or would have led to but for the budget.",
    ("upstream", "outcome"),
)
UPSTREAM_EJECTIONS = Family(
    "relay_upstream_ejections_total",
    "counter",
    "Times that an upstream was put behind all others, by what had gone wrong.",
    ("upstream", "reason"),
)
UPSTREAM_EJECTED = Family(
    "relay_upstream_ejected",
    "gauge",
    "Whether an upstream is asked only after all others now: 1 or 0.",
    ("upstream",),
)
HISTORY_TRIMMED = Family(
    "relay_history_trimmed_messages_total",
    "counter",
    "Messages that were dropped from conversations which had grown too long.",
)
MODERATION_CHARACTERS = Family(
    "relay_moderation_characters_total",
    "counter",
    "Characters of guarded text by what became of them: in = released + withheld + blocked; checked counts overlap.",
    ("state",),
)
RELEASED_UNVERIFIED = Family(
    "relay_released_unverified_characters_total",
    "counter",
    "Characters sent to clients without a verdict, by reason.",
    ("reason",),
)
MODERATION_CHECKS = Family(
    "relay_moderation_checks_total",
    "counter",
    "Checks by moderator and what became of them.",
    ("moderator", "outcome"),
)
VIOLATIONS = Family(
    "relay_moderation_violations_total",
    "counter",
    "Violations found, by moderator and its label.",
    ("moderator", "label"),
)
HOLD = Family(
    "relay_moderation_hold_seconds",
    "histogram",
    "The longest time that text was held for a verdict, once per moderated reply.",
)
BUILD_INFO = Family(
    "relay_build_info",
    "gauge",
    "Always 1; the labels say what is running.",
    ("version", "python", "aiohttp"),
)

FAMILIES = (
    REQUESTS,
    REFUSED,
    OPEN_STREAMS,
    FIRST_BYTE,
    CHUNKS,
    OVERHEAD,
    REQUEST_DURATION,
    FIRST_TOKEN,
    UPSTREAM_REQUESTS,
    UPSTREAM_FAILURES,
    UPSTREAM_RETRIES,
    UPSTREAM_EJECTIONS,
    UPSTREAM_EJECTED,
    HISTORY_TRIMMED,
    MODERATION_CHARACTERS,
    RELEASED_UNVERIFIED,
    MODERATION_CHECKS,
    VIOLATIONS,
    HOLD,
    BUILD_INFO,
)

# Buckets in seconds; the first two are OpenTelemetry's.
REQUEST_DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60),
)
# From a tenth of a millisecond, which is what the chain costs without a moderator that waits.
OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
# Up to the default `max_wait_ms` and `deadline_ms` together, and a little over.
HOLD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3.5, 5, 10)

# The operations that the GenAI conventions speak of; a list of models or a wrong path would only blur their quantiles.
_GEN_AI_OPERATIONS = frozenset({"chat"})
_CLEAN = frozenset({"completed", "filtered"})


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request that has ended. Times are seconds since its arrival; None: it did not come so far."""

    operation: str
    outcome: str
    duration_s: float
    model: str = ""
    """As the client named it; counted under its name only if it is one of the configured."""
    refusal: str = ""
    """The code of the error body if the request was refused."""
    first_byte_s: float | None = None
    first_token_s: float | None = None
    overhead_s: float | None = None
    chunks: int = 0


@dataclass(slots=True, kw_only=True)
class ModerationTally:
    """What moderation did to one request and its reply; counted up in place and handed over once.

    The first five are characters (`CHARACTERS`); the keys of `unverified` are from `UNVERIFIED`, those of `checks` are
    (moderator, one of `CHECKS`), those of `violations` are (moderator, its label).
    """

    came: int = 0
    checked: int = 0
    released: int = 0
    withheld: int = 0
    blocked: int = 0
    unverified: dict[str, int] = field(default_factory=dict)
    checks: dict[tuple[str, str], int] = field(default_factory=dict)
    violations: dict[tuple[str, str], int] = field(default_factory=dict)
    longest_hold_s: float | None = None


class Metrics:
    """The counts of one relay. Its methods are the events of a request's life; none of them raises or waits.

    `models` are the public names of the configuration, `upstreams` the configured names. Moderators are built by a
    plugin, later than this: it announces each with `add_moderator`.
    """

    def __init__(self, models: Iterable[str], upstreams: Iterable[str]) -> None:
        # `_created` doubles the series, and a Prometheus before 2.50 stores each as one more metric. The library has
        # no switch but this one, for the whole process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        self._models = frozenset(models)
        self._upstreams = frozenset(upstreams) | {OTHER}
        self._requests = _bind(_counter(REQUESTS, registry), OPERATIONS, OUTCOMES)
        self._refusals = _bind(_counter(REFUSED, registry), REFUSALS)
        self._open_streams = _gauge(OPEN_STREAMS, registry)
        self._first_byte = _histogram(FIRST_BYTE, FIRST_TOKEN_BUCKETS, registry)
        self._chunks = _counter(CHUNKS, registry)
        self._overhead = _histogram(OVERHEAD, OVERHEAD_BUCKETS, registry)
        self._duration = _OnDemand(_histogram(REQUEST_DURATION, REQUEST_DURATION_BUCKETS, registry))
        self._first_token = _OnDemand(_histogram(FIRST_TOKEN, FIRST_TOKEN_BUCKETS, registry))
        self._upstream_requests = _bind(_counter(UPSTREAM_REQUESTS, registry), self._upstreams, UPSTREAM_OUTCOMES)
        self._upstream_errors = _bind(_counter(UPSTREAM_FAILURES, registry), self._upstreams, UPSTREAM_ERRORS)
        self._retries = _bind(_counter(UPSTREAM_RETRIES, registry), self._upstreams, RETRIES)
        self._ejections = _bind(_counter(UPSTREAM_EJECTIONS, registry), self._upstreams, REASONS)
        self._ejected = _bind(_gauge(UPSTREAM_EJECTED, registry), self._upstreams)
        self._trimmed = _counter(HISTORY_TRIMMED, registry)
        self._characters = _bind(_counter(MODERATION_CHARACTERS, registry), CHARACTERS)
        self._unverified = _bind(_counter(RELEASED_UNVERIFIED, registry), UNVERIFIED)
        self._check_family = _counter(MODERATION_CHECKS, registry)
        self._violation_family = _counter(VIOLATIONS, registry)
        self._checks: dict[tuple[str, ...], Counter] = {}
        self._violations: dict[tuple[str, ...], Counter] = {}
        self._hold = _histogram(HOLD, HOLD_BUCKETS, registry)
        # A gauge, not an Info: prometheus-client's multiprocess mode knows no Info.
        _gauge(BUILD_INFO, registry).labels(*_RUNNING).set(1)

        self.add_moderator(OTHER, ())

    @staticmethod
    def families() -> list[Family]:
        """Every metric of ours, for the documentation and the checks of the dashboards."""
        return list(FAMILIES)

    def add_moderator(self, name: str, labels: Iterable[str]) -> None:
        """Announce a configured moderator and the labels it can report, before its first check."""
        self._checks |= _bind(self._check_family, (name,), CHECKS)
        self._violations |= _bind(self._violation_family, (name,), {*labels, OTHER})

    def stream_opened(self) -> None:
        """A stream is about to be written; `stream_closed` follows exactly once."""
        self._open_streams.inc()

    def stream_closed(self) -> None:
        """The stream is over, whoever ended it."""
        self._open_streams.dec()

    def request_ended(self, record: RequestRecord) -> None:
        """Any request has ended, however it ended; once per request."""
        operation = _within(record.operation, OPERATIONS)
        outcome = _within(record.outcome, OUTCOMES, other="internal_error")
        self._requests[operation, outcome].inc()
        if record.refusal:
            self._refusals[(_within(record.refusal, REFUSALS),)].inc()
        if record.chunks:
            self._chunks.inc(record.chunks)
        if record.first_byte_s is not None:
            self._first_byte.observe(record.first_byte_s)
        if record.overhead_s is not None:
            self._overhead.observe(record.overhead_s)
        if operation in _GEN_AI_OPERATIONS:
            model = _within(record.model, self._models)
            self._duration[operation, model, "" if outcome in _CLEAN else outcome].observe(record.duration_s)
            if record.first_token_s is not None:
                self._first_token[operation, model].observe(record.first_token_s)

    def upstream_request(self, upstream: str, outcome: str) -> None:
        """One request to an upstream has its head, or will never have one; `outcome` is from `UPSTREAM_OUTCOMES`."""
        self._upstream_requests[_within(upstream, self._upstreams), _within(outcome, UPSTREAM_OUTCOMES)].inc()

    def upstream_error(self, upstream: str, kind: str) -> None:
        """An upstream failed us, before or inside a reply; `kind` is from `UPSTREAM_ERRORS`."""
        self._upstream_errors[_within(upstream, self._upstreams), _within(kind, UPSTREAM_ERRORS)].inc()

    def upstream_retry(self, upstream: str, outcome: str) -> None:
        """A request may be asked again elsewhere; `outcome` is from `RETRIES`."""
        self._retries[_within(upstream, self._upstreams), outcome].inc()

    def upstream_ejected(self, upstream: str, reason: Reason) -> None:
        """An upstream is asked only after all others from now on."""
        known = _within(upstream, self._upstreams)
        self._ejections[known, reason].inc()
        self._ejected[(known,)].set(1)

    def upstream_returned(self, upstream: str) -> None:
        """It is no longer."""
        self._ejected[(_within(upstream, self._upstreams),)].set(0)

    def history_trimmed(self, messages: int) -> None:
        """So many messages of a conversation are not sent on."""
        self._trimmed.inc(messages)

    def moderated(self, tally: ModerationTally) -> None:
        """A moderated request has ended; once per request."""
        amounts = (tally.came, tally.checked, tally.released, tally.withheld, tally.blocked)
        for state, amount in zip(CHARACTERS, amounts, strict=True):
            if amount:
                self._characters[(state,)].inc(amount)
        for reason, amount in tally.unverified.items():
            self._unverified[(_within(reason, UNVERIFIED),)].inc(amount)
        for (moderator, outcome), amount in tally.checks.items():
            self._checks[self._moderator(moderator), _within(outcome, CHECKS)].inc(amount)
        for (moderator, label), amount in tally.violations.items():
            known = self._moderator(moderator)
            self._violations[known, label if (known, label) in self._violations else OTHER].inc(amount)
        if tally.longest_hold_s is not None:
            self._hold.observe(tally.longest_hold_s)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics if `accept` names it, else the text format 0.0.4.

        Some milliseconds of pure Python per hundred series; call it from a thread.
        """
        if "application/openmetrics-text" in accept.lower():
            body: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _moderator(self, name: str) -> str:
        return name if (name, OTHER) in self._checks else OTHER


class _OnDemand(dict[tuple[str, ...], Histogram]):
    """The children of a histogram, bound when they are first looked up. The caller keeps the key within closed sets."""

    def __init__(self, family: Histogram) -> None:
        super().__init__()
        self._family = family

    def __missing__(self, values: tuple[str, ...]) -> Histogram:
        child = self[values] = self._family.labels(*values)
        return child


def _bind(family: M, *closed: Iterable[str]) -> dict[tuple[str, ...], M]:
    """Every child of `family` over the product of its labels' closed sets."""
    return {values: family.labels(*values) for values in product(*closed)}


def _within(value: str, closed: Container[str], other: str = OTHER) -> str:
    return value if value in closed else other


def _counter(family: Family, registry: CollectorRegistry) -> Counter:
    return Counter(family.name, family.help, family.labels, registry=registry)


def _gauge(family: Family, registry: CollectorRegistry) -> Gauge:
    return Gauge(family.name, family.help, family.labels, registry=registry)


def _histogram(family: Family, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(family.name, family.help, family.labels, registry=registry, buckets=buckets)
