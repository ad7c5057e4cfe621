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
CALM_PATIENCE_S = 180.0
"""For how long a machine that has other things to do may keep a relay from being on time."""
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
        """Before all faults: seconds in which the machine let the relay's loop be on time, and as many before as rules look back."""
        late = (
            'sum(relay_loop_lag_seconds_count{{JOB}}{0}) - sum(relay_loop_lag_seconds_bucket{{JOB,le="0.1"}}{0})'.format
        )
        await self.until(f"{late('')} == {late(f' offset {WARM_S + CALM_S:g}s')}", CALM_PATIENCE_S)
        over = time.time()
        self.timeline.calm = Phase("calm", over - CALM_S, over)

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

    async def until(self, query, patience_s=PATIENCE_S):
        """Wait until a query gives something."""
        end = time.monotonic() + patience_s
        while not await self.values(query):
            assert time.monotonic() < end, f"for {patience_s:g} s nothing came of {query}; {self.timeline.faults}"
            await asyncio.sleep(INTERVAL_S / 4)
