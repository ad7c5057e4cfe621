"""Prometheus' collectors, made from our families. Children are bound to their labels once: that costs more than to count."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import product
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from relay.metrics.families import OTHER, Configured, Family

M = TypeVar("M", bound=MetricWrapperBase)


class OnDemand(dict[tuple[str, ...], Histogram]):
    """The children of a histogram, bound when they are first looked up. The caller keeps the key within closed sets."""

    def __init__(self, family: Histogram) -> None:
        super().__init__()
        self._family = family

    def __missing__(self, values: tuple[str, ...]) -> Histogram:
        child = self[values] = self._family.labels(*values)
        return child


def bind(collector: M, family: Family, **configured: Iterable[str]) -> dict[tuple[str, ...], M]:
    """Every child over the product of its labels' closed sets. configured: those that the configuration names."""
    sets = [configured[name] if isinstance(closed, Configured) else closed for name, closed in family.labels.items()]
    return {values: collector.labels(*values) for values in product(*sets)}


def within(value: str, closed: Container[str], other: str = OTHER) -> str:
    return value if value in closed else other


def counter(family: Family, registry: CollectorRegistry) -> Counter:
    return Counter(family.name, family.help, tuple(family.labels), registry=registry)


def gauge(family: Family, registry: CollectorRegistry) -> Gauge:
    mode = family.across or "livesum"
    return Gauge(family.name, family.help, tuple(family.labels), registry=registry, multiprocess_mode=mode)


def histogram(family: Family, registry: CollectorRegistry) -> Histogram:
    return Histogram(family.name, family.help, tuple(family.labels), registry=registry, buckets=family.buckets)


def counters(
    family: Family, registry: CollectorRegistry, **configured: Iterable[str]
) -> dict[tuple[str, ...], Counter]:
    return bind(counter(family, registry), family, **configured)
