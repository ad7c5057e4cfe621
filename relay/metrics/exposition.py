"""Counts as a scraper reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics


class Exposition(Protocol):
    """What can be scraped."""

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics if `accept` names it, else the text format 0.0.4.

        Some milliseconds of pure Python per hundred series; call it from a thread.
        """
        ...


class _Polite:
    """A registry whose metrics are read one by one, with the interpreter let go after each.

    A thread keeps it for 5 ms otherwise, and the loop, which has to ask for it after every wait, is late by as much.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            yield metric
            time.sleep(0)


def exposed(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """What `Exposition.render` gives."""
    polite = cast(CollectorRegistry, _Polite(registry))
    if "application/openmetrics-text" in accept.lower():
        body: bytes = openmetrics.generate_latest(polite)  # type: ignore[no-untyped-call]
        return body, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(polite), CONTENT_TYPE_PLAIN_0_0_4
