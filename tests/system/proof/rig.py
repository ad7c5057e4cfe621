"""All of it together: five relays, one Prometheus, every fault once."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from proof import faults
from proof.load import load
from proof.prometheus import Prometheus, prometheus
from proof.relays import WORDS, relay
from proof.timeline import Timeline, Watch
from proof.upstreams import upstreams
from relay.serve import allow_many_files
from relay_plugins.tencent.fake import Fake

HURT = {
    "served": (faults.Served, {}),
    "visited": (faults.Visited, {}),
    "moderated": (faults.Moderated, {"calls_per_second": 40}),
    "lenient": (faults.Lenient, {"calls_per_second": 800, "on_failure": "open"}),
    "crew": (faults.Crew, {"workers": 2, "drain_s": 2}),
}
CROWDED = ("visited", "crew")


@dataclass
class Seen:
    """What there is to ask afterwards, by job. crowds: how many streams were whole, of how many, and how often they were
    scraped. logged: the ids of requests in the log."""

    prometheus: Prometheus
    timelines: dict[str, Timeline]
    crowds: dict[str, tuple[int, int, float]]
    logged: dict[str, set[str]]


async def run(folder, rules, stack):
    """Hurt them all. Prometheus runs on until `stack` is closed."""
    allow_many_files()
    seen = Seen(None, {}, {}, {})
    async with AsyncExitStack() as running:

        async def begin(job, options):
            ups = await running.enter_async_context(upstreams(3))
            fake = await running.enter_async_context(Fake(words=WORDS, p50_ms=20, p99_ms=40))
            return await running.enter_async_context(relay(folder / job, ups, fake, **options))

        relays = {job: await begin(job, options) for job, (_, options) in HURT.items()}
        jobs = {job: each.admin_port for job, each in relays.items()}
        seen.prometheus = stack.enter_context(prometheus(folder, jobs, rules))

        async def hurt(job, kind):
            watch = Watch(seen.prometheus, job)
            seen.timelines[job] = watch.timeline
            async with load(relays[job].life.url) as asking, faults.usual(asking):
                await watch.calm()
                hurt = kind(watch, relays[job], asking)
                await hurt.act()
                if job in CROWDED:
                    seen.crowds[job] = hurt.crowd
                seen.logged[job] = {line["request_id"] for line in relays[job].life.lines("request")}

        async with asyncio.TaskGroup() as group:
            for job, (kind, _) in HURT.items():
                group.create_task(hurt(job, kind))
    return seen
