"""What is counted, as plain numbers; and how prometheus-client sees it when somebody reads.

A request is counted some twenty times, so that a count must cost next to nothing: no lock (all is counted on the loop's
thread), no check, a histogram's bucket found by bisection and added up with those below when it is read. A reader on
another thread sees each number whole, and of a histogram perhaps an observation in one number and not yet in the next.

There are no `_created` series: they double the others, and a Prometheus before 2.50 stores each as one more metric.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate, product
from math import inf
from time import time
from typing import Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from relay.metrics import cells
from relay.metrics.families import OTHER, Configured, Family


class Child(Protocol):
    """One series of a family, or a histogram's few."""

    def __init__(self, family: Family, values: Sequence[str]) -> None: ...

    def samples(self) -> Iterator[Sample]: ...


C = TypeVar("C", bound=Child)


class Counter:
    """A sum. cells, at: where it is kept."""

    __slots__ = ("_labels", "_name", "at", "cells")

    def __init__(self, family: Family, values: Sequence[str]) -> None:
        self._name = family.name
        self._labels = dict(zip(family.labels, values, strict=True))
        self.cells, (self.at,) = cells.keeper.place(family, [(self._name, self._labels)])

    def inc(self, amount: float = 1.0) -> None:
        self.cells[self.at] += amount

    def samples(self) -> Iterator[Sample]:
        yield Sample(self._name, self._labels, self.cells[self.at])


class Gauge(Counter):
    """How something stands."""

    __slots__ = ()

    def dec(self) -> None:
        self.cells[self.at] -= 1

    def set(self, value: float) -> None:
        self.cells[self.at] = value


class Histogram:
    """How often something was how great. cells, buckets, sum: where it is kept; bounds: those of its buckets."""

    __slots__ = ("_exemplars", "_labels", "_limits", "_name", "bounds", "buckets", "cells", "sum")

    def __init__(self, family: Family, values: Sequence[str]) -> None:
        self._name = family.name
        self._labels = dict(zip(family.labels, values, strict=True))
        self.bounds = family.buckets
        self._limits = [_told(bound) for bound in (*family.buckets, inf)]
        self._exemplars: dict[int, tuple[str, float, float]] = {}
        buckets = [(f"{self._name}_bucket", {**self._labels, "le": limit}) for limit in self._limits]
        self.cells, at = cells.keeper.place(family, [*buckets, (f"{self._name}_sum", self._labels)])
        self.buckets, self.sum = at[:-1], at[-1]

    def observe(self, amount: float, request_id: str = "") -> None:
        """request_id: of a request that is an example for the bucket."""
        kept = self.cells
        bucket = bisect_left(self.bounds, amount)
        kept[self.buckets[bucket]] += 1.0
        kept[self.sum] += amount
        if request_id:
            self._exemplars[bucket] = (request_id, amount, time())

    def samples(self) -> Iterator[Sample]:
        kept, name, labels = self.cells, f"{self._name}_bucket", self._labels
        total = kept[self.sum]
        counts = accumulate([kept[place] for place in self.buckets])
        count = 0.0
        for bucket, (limit, count) in enumerate(zip(self._limits, counts, strict=True)):
            found = self._exemplars.get(bucket)
            exemplar = Exemplar({"request_id": found[0]}, found[1], found[2]) if found else None
            yield Sample(name, {**labels, "le": limit}, count, None, exemplar)
        yield Sample(f"{self._name}_count", labels, count)
        yield Sample(f"{self._name}_sum", labels, total)


def _told(bound: float) -> str:
    """As it stands in `le`."""
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text


class Series(dict[tuple[str, ...], C], Generic[C]):
    """The series of one family by the values of their labels, made when they are first looked up.

    The caller keeps the key within closed sets; `get` makes none.
    """

    def __init__(self, kind: type[C], family: Family, registry: CollectorRegistry) -> None:
        super().__init__()
        self._kind = kind
        self._family = family
        registry.register(_Collector(family, self))

    def __missing__(self, values: tuple[str, ...]) -> C:
        made = self[values] = self._kind(self._family, values)
        return made

    def bind(self, **configured: Iterable[str]) -> None:
        """Make all over the product of the labels' closed sets. configured: those that the configuration names."""
        labels = self._family.labels.items()
        sets = [configured[name] if isinstance(closed, Configured) else closed for name, closed in labels]
        for values in product(*sets):
            self[values]  # is made by that


class _Collector(Generic[C]):
    """What a registry asks for the numbers of a family."""

    def __init__(self, family: Family, series: Series[C]) -> None:
        self._family = family
        self._series = series

    def describe(self) -> list[Metric]:
        return [Metric(cells.stem(self._family), self._family.help, self._family.type)]

    def collect(self) -> list[Metric]:
        [metric] = self.describe()
        for child in tuple(self._series.values()):
            metric.samples.extend(child.samples())
        return [metric]


def within(value: str, closed: Container[str], other: str = OTHER) -> str:
    return value if value in closed else other


def counter(family: Family, registry: CollectorRegistry) -> Counter:
    return Series(Counter, family, registry)[()]


def gauge(family: Family, registry: CollectorRegistry) -> Gauge:
    return Series(Gauge, family, registry)[()]


def histogram(family: Family, registry: CollectorRegistry) -> Histogram:
    return Series(Histogram, family, registry)[()]


def counters(family: Family, registry: CollectorRegistry, **configured: Iterable[str]) -> Series[Counter]:
    """All of them from the start."""
    made = Series(Counter, family, registry)
    made.bind(**configured)
    return made


def gauges(family: Family, registry: CollectorRegistry) -> Series[Gauge]:
    """Each when it is first looked up."""
    return Series(Gauge, family, registry)


def histograms(family: Family, registry: CollectorRegistry) -> Series[Histogram]:
    """Each when it is first looked up."""
    return Series(Histogram, family, registry)
