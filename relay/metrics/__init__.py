"""What the relay counts, and the only package that names a Prometheus metric.

Names follow OpenTelemetry's GenAI conventions where there is one (`gen_ai_server_*`, with their buckets, as Envoy AI
Gateway exports them); there is none for moderation or for a relay's own overhead, so those are ours, under `relay_`.

The tables in `families` are the reference: one `Family` per metric, one closed set per label. A label value that is
not in its set is counted as "other" (an outcome nobody has named is our own fault: "internal_error"). So the number of
series depends on the configuration, never on what clients send: no key ids, no request ids, no model names of requests.

Nothing here runs per chunk; what costs far more, a call to a moderator, is counted when it happens. The core counts in
locals and hands over the sums when a stream ends, as a `RequestRecord` and a `ModerationTally`. What is counted are plain
numbers (`collectors`, `cells`), all on the loop's thread; prometheus-client sees them when somebody reads. Counters are there
from the start, all of them: a counter whose first sample is already 1 hides that first event from `rate()`. Histograms
by model, upstream or plugin are made at their first observation, because an idle one costs some twenty series.

Exemplars carry the id of a request, in a process alone; the files of several workers have no place for them.

Collectors belong to a `Metrics` and its registry, never to the module: two relays in one process do not share a count.
"""

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from relay.metrics import families
from relay.metrics.collectors import Counter, Series, counter, counters, gauge, gauges, histogram, within
from relay.metrics.exposition import Exposition, exposed
from relay.metrics.families import (
    BREAKER_STATES,
    CHARACTERS,
    CHECKS,
    FAMILIES,
    OPERATIONS,
    OTHER,
    OUTCOMES,
    REFUSALS,
    RETRIES,
    UNJUDGED,
    UNVERIFIED,
    UPSTREAM_ERRORS,
    UPSTREAM_OUTCOMES,
    Family,
)
from relay.metrics.journal import JournalMetrics
from relay.metrics.moderation import Calls, ModerationMetrics, ModerationTally, Standing
from relay.metrics.requests import RequestMetrics, RequestRecord
from relay.metrics.store import StoreMetrics
from relay.pure.health import Reason

__all__ = [
    "BREAKER_STATES",
    "CHARACTERS",
    "CHECKS",
    "FAMILIES",
    "OPERATIONS",
    "OTHER",
    "OUTCOMES",
    "REFUSALS",
    "RETRIES",
    "UNJUDGED",
    "UNVERIFIED",
    "UPSTREAM_ERRORS",
    "UPSTREAM_OUTCOMES",
    "Calls",
    "Exposition",
    "Family",
    "Metrics",
    "ModerationTally",
    "RequestRecord",
    "Standing",
]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that is not installed


# Looked up on the disk, so at import and not where a loop may be running.
_RUNNING = (_installed("moderelay"), platform.python_version(), _installed("aiohttp"))

# How far apart `lag` is told. One that was late for longer made all that came meanwhile wait, the later the less.
LAG_PERIOD_S = 0.25
_MOST_LAGS = 40


class Metrics:
    """The counts of one relay. Its methods are the events of a request's life; none of them raises or waits.

    models, upstreams, plugins: as of `know`. Moderators are built by a plugin, later than this: it announces each with
    `add_moderator`.
    """

    def __init__(self, models: Iterable[str] = (), upstreams: Iterable[str] = (), plugins: Iterable[str] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        self._upstreams = {OTHER}
        self.requests = RequestMetrics(registry, self._upstreams)
        self._open_streams = gauge(families.OPEN_STREAMS, registry)
        self._lag = histogram(families.LOOP_LAG, registry)
        self._upstream_requests = Series(Counter, families.UPSTREAM_REQUESTS, registry)
        self._upstream_errors = Series(Counter, families.UPSTREAM_FAILURES, registry)
        self._retries = Series(Counter, families.UPSTREAM_RETRIES, registry)
        self._ejections = Series(Counter, families.UPSTREAM_EJECTIONS, registry)
        self._ejected = gauges(families.UPSTREAM_EJECTED, registry)
        self._trimmed = counter(families.HISTORY_TRIMMED, registry)
        self._charged = counters(families.QUOTA_CHARGED, registry)
        self._uncovered = counters(families.QUOTA_UNCOVERED, registry)
        self._tokens = counters(families.QUOTA_TOKENS, registry)
        self._degraded = counters(families.DEGRADED, registry)
        self._reloads = counters(families.RELOADS, registry)
        self.store = StoreMetrics(registry)
        self.journal = JournalMetrics(registry)
        self._moderation = ModerationMetrics(registry)
        # Those of every request are handed on as they are.
        self.request_ended = self.requests.ended
        self.moderated = self._moderation.moderated
        self.passed = self._moderation.passed
        self.scanned = self._moderation.scanned
        # A gauge, not an Info: prometheus-client's multiprocess mode knows no Info.
        gauges(families.BUILD_INFO, registry)[_RUNNING].set(1)
        self.know(models, (OTHER, *upstreams), plugins)

    @staticmethod
    def families() -> list[Family]:
        """Every metric of ours, for the documentation and the checks of the dashboards."""
        return list(FAMILIES)

    def know(self, models: Iterable[str], upstreams: Iterable[str], plugins: Iterable[str]) -> None:
        """Count these under their names from now on: the public names of models, and those of a configuration's parts.

        Those of an earlier one stay, for its requests may go on.
        """
        upstreams = tuple(upstreams)
        self._upstreams.update(upstreams)
        self.requests.know(models, plugins)
        by_upstream = (self._upstream_requests, self._upstream_errors, self._retries, self._ejections)
        for series in by_upstream:
            series.bind(upstream=upstreams)
        self._ejected.bind(upstream=upstreams)

    def add_moderator(self, name: str, labels: Iterable[str]) -> None:
        """Announce a configured moderator and the labels it can report, before its first check."""
        self._moderation.add_moderator(name, labels)

    def calls(self, moderator: str, look: Callable[[], Standing]) -> Calls:
        """What counts the calls to a moderator. `look` says how it stands with it, whenever the counts are read.

        It is called in whichever thread that happens, so it only looks.
        """
        return self._moderation.calls(moderator, look)

    def calls_end(self, moderator: str, look: Callable[[], Standing]) -> None:
        """What `look` was given for by `calls` is over."""
        self._moderation.forget(moderator, look)

    def stream_opened(self) -> None:
        """A stream is about to be written; `stream_closed` follows exactly once."""
        self._open_streams.inc()

    def stream_closed(self) -> None:
        """The stream is over, whoever ended it."""
        self._open_streams.dec()

    def lagged(self, seconds: float) -> None:
        """The loop called back so late, asked `LAG_PERIOD_S` after the last time."""
        for _ in range(_MOST_LAGS):
            self._lag.observe(seconds)
            seconds -= LAG_PERIOD_S
            if seconds <= 0:
                return

    def upstream_request(self, upstream: str, outcome: str) -> None:
        """One request to an upstream has its head, or will never have one; `outcome` is from `UPSTREAM_OUTCOMES`."""
        counted = self._upstream_requests.get((upstream, outcome))
        if counted is None:
            counted = self._upstream_requests[within(upstream, self._upstreams), within(outcome, UPSTREAM_OUTCOMES)]
        counted.inc()

    def upstream_error(self, upstream: str, kind: str) -> None:
        """An upstream failed us, before or inside a reply; `kind` is from `UPSTREAM_ERRORS`."""
        self._upstream_errors[within(upstream, self._upstreams), within(kind, UPSTREAM_ERRORS)].inc()

    def upstream_retry(self, upstream: str, outcome: str) -> None:
        """A request may be asked again elsewhere; `outcome` is from `RETRIES`."""
        self._retries[within(upstream, self._upstreams), outcome].inc()

    def upstream_ejected(self, upstream: str, reason: Reason) -> None:
        """An upstream is asked only after all others from now on."""
        known = within(upstream, self._upstreams)
        self._ejections[known, reason].inc()
        self._ejected[(known,)].set(1)

    def upstream_returned(self, upstream: str) -> None:
        """It is no longer."""
        self.upstream_stands(upstream, ejected=False)

    def upstream_stands(self, upstream: str, ejected: bool) -> None:
        """Whether it is asked only after all others now, whenever that began."""
        self._ejected[(within(upstream, self._upstreams),)].set(float(ejected))

    def history_trimmed(self, messages: int) -> None:
        """So many messages of a conversation are not sent on."""
        self._trimmed.inc(messages)

    def quota_charged(self, unit: str, charged: int, uncovered: int) -> None:
        """A request has been charged; it cost `uncovered` units more than there were."""
        self._charged[(unit,)].inc(charged)
        self._uncovered[(unit,)].inc(uncovered)

    def quota_counted(self, direction: str, ours: float, reported: int) -> None:
        """The tokens of a prompt or a reply, by our count and by the upstream's."""
        self._tokens[direction, "relay"].inc(ours)
        self._tokens[direction, "upstream"].inc(reported)

    def degraded(self, concern: str) -> None:
        """A request is served without the shared state of `concern`, which is one of `CONCERNS`."""
        self._degraded[(concern,)].inc()

    def reloaded(self, well: bool) -> None:
        """relay.toml was read again, and is served or refused."""
        self._reloads[("done" if well else "refused",)].inc()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics if `accept` names it, else the text format 0.0.4.

        Some milliseconds of pure Python per hundred series; call it from a thread.
        """
        self.look()
        return exposed(self._registry, accept)

    def look(self) -> None:
        """Set the gauges that tell how something stands to what is now. `render` does; a worker does every second."""
        self.requests.look()
        self._moderation.look()
        self.store.look()
