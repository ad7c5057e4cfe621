"""What is counted of the store that relays share: how commands went, how long a write and its answers took."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from relay.metrics.collectors import bind, counter, gauge, histogram
from relay.metrics.families import (
    STORE_BUCKETS,
    STORE_COMMANDS,
    STORE_OUTCOMES,
    STORE_RESTARTS,
    STORE_SECONDS,
    STORE_UP,
)
from relay.store.port import Trouble


class StoreMetrics:
    """What `relay.store.link.Observer` asks for, and the rest."""

    def __init__(self, registry: CollectorRegistry) -> None:
        commands = bind(counter(STORE_COMMANDS, registry), STORE_OUTCOMES)
        self._answered = commands[("ok",)]
        self._failed = {trouble: child for (trouble,), child in commands.items()}
        self._seconds = histogram(STORE_SECONDS, STORE_BUCKETS, registry)
        self._restarts = counter(STORE_RESTARTS, registry)
        self._up = gauge(STORE_UP, registry)
        self._look: Callable[[], bool] | None = None

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
        self._look = look

    def look(self) -> None:
        if self._look is not None:
            self._up.set(self._look())
