"""What was done to a relay, and when."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proof.prometheus import INTERVAL_S

PATIENCE_S = 30.0
WARM_S = 5.0
"""After which the shortest windows are full."""
CALM_S = 6.0
"""For which a relay is looked at while all is well."""
HOLD_S = 2.0
"""For which a fault goes on after it was seen."""


@dataclass
class Phase:
    """Times in seconds since 1970. over: when all was well again, as far as that was waited for."""

    name: str
    start: float
    over: float = 0.0


@dataclass
class Timeline:
    """One relay's, by the job under which it is scraped. `calm` is before anything was wrong."""

    job: str
    calm: Phase = None
    faults: list[Phase] = field(default_factory=list)

    @property
    def end(self):
        return self.faults[-1].over

    def __str__(self):
        began = self.calm.start
        return f"{self.job}: " + ", ".join(
            f"{each.name} {each.start - began:.0f}-{each.over - began:.0f} s" for each in (self.calm, *self.faults)
        )


class Watch:
    """Keeps the timeline of a relay by what Prometheus sees of it. JOB in a query stands for `job="…"`, this relay's."""

    def __init__(self, prometheus, job):
        self.timeline = Timeline(job)
        self._prometheus = prometheus

    async def calm(self):
        """Before all faults."""
        await self.until("up{JOB} == 1")
        await asyncio.sleep(WARM_S)
        self.timeline.calm = calm = Phase("calm", time.time())
        await asyncio.sleep(CALM_S)
        calm.over = time.time()

    @asynccontextmanager
    async def fault(self, name, *, seen, over=None, hold_s=HOLD_S):
        """While the block brings a fault about. It ends with `await seen()`, and then takes the fault away.

        seen: the query by which Prometheus sees it; over: the one by which it sees that all is well again.
        """
        phase = Phase(name, time.time())

        async def wait():
            await self.until(seen)
            await asyncio.sleep(hold_s)

        yield wait
        await asyncio.sleep(INTERVAL_S)
        if over is not None:
            await self.until(over)
        phase.over = time.time()
        self.timeline.faults.append(phase)

    async def values(self, query):
        """What it gives now, without labels."""
        query = query.replace("JOB", f'job="{self.timeline.job}"')
        return list((await asyncio.to_thread(self._prometheus.now, query)).values())

    async def until(self, query):
        """Wait until a query gives something."""
        end = time.monotonic() + PATIENCE_S
        while not await self.values(query):
            assert time.monotonic() < end, f"for {PATIENCE_S:g} s nothing came of {query}; {self.timeline.faults}"
            await asyncio.sleep(INTERVAL_S / 4)
