"""What is counted of the store that relays share: how commands went, how long a write and its answers took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from relay.metrics.collectors import counter, counters, gauge, gauges, histogram
from relay.metrics.families import (
    PROMISED,
    PROMISES,
    STORE_COMMANDS,
    STORE_RESTARTS,
    STORE_SECONDS,
    STORE_UP,
)
from relay.store.port import Trouble


class StoreMetrics:
    """What `relay.store.link.Observer` asks for, and the rest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        commands = counters(STORE_COMMANDS, registry)
        self._answered = commands[("ok",)]
        self._failed = {trouble: child for (trouble,), child in commands.items()}
        self._seconds = histogram(STORE_SECONDS, registry)
        self._restarts = counter(STORE_RESTARTS, registry)
        self._registry = registry
        self._look: Callable[[], bool] | None = None
        self._promised = gauges(PROMISED, registry)
        self._holders: list[tuple[str, Callable[[], int]]] = []

    def answered(self, commands: int, seconds: float) -> None:
        """What one write asked for is answered; so many commands did well."""
        if commands:
            self._answered.inc(commands)
        self._seconds.observe(seconds)

    def failed(self, trouble: Trouble) -> None:
        """A command was not answered, or refused."""
        self._failed[trouble].inc()

    def restarted(self) -> None:
        """The embedded server ended by itself, and is started again."""
        self._restarts.inc()

    def watch(self, look: Callable[[], bool]) -> None:
        """`look` says whether the store is up, whenever the counts are read."""
        if self._look is None:
            self._up = gauge(STORE_UP, self._registry)  # where there is no store it would say that there is one away
            self._up.set(1)  # of several workers the least is shown, and one that starts has not looked yet
        self._look = look

    @contextmanager
    def promising(self, kind: str, look: Callable[[], int]) -> Iterator[None]:
        """While this is open `look` says how many of a kind (`PROMISES`) the store holds for somebody, whenever it is read."""
        holder = kind, look
        self._holders.append(holder)
        try:
            yield
        finally:
            self._holders.remove(holder)

    def look(self) -> None:
        if self._look is not None:
            self._up.set(self._look())
        for kind in PROMISES:
            self._promised[(kind,)].set(sum(look() for held, look in tuple(self._holders) if held == kind))
