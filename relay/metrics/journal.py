"""What is counted of the journal: settlements that wait for the store, that it took in the end, that nobody booked."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from relay.metrics.collectors import counter, gauge
from relay.metrics.families import JOURNAL_ENTRIES, JOURNAL_LOST, JOURNAL_REPLAYED


class JournalMetrics:
    """The counts of one process's journals."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._entries = gauge(JOURNAL_ENTRIES, registry)
        self._replayed = counter(JOURNAL_REPLAYED, registry)
        self._lost = counter(JOURNAL_LOST, registry)

    def waiting(self, change: int) -> None:
        """So many more are in one, or fewer."""
        self._entries.inc(change)

    def replayed(self) -> None:
        """The store took one, or had it already."""
        self._replayed.inc()

    def lost(self) -> None:
        """One is lost."""
        self._lost.inc()
