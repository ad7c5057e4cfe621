"""The faults, each of them seen by Prometheus and taken away again: five relays of about one configuration, hurt side by side.

`served` is hurt by its upstreams; `visited` by its clients and its plugins, until it is stopped; `moderated` by its moderator; `lenient` where it lets pass what it
cannot check, by its store and its quotas; `crew` in its workers.
"""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from proof.relays import KEYS
from proof.upstreams import BLOCKED, LEXICON, SINS

CROWD = 50


LONG = [{"role": role, "content": "and so on"} for _ in range(9) for role in ("user", "assistant")]
LONG.append({"role": "user", "content": "hello"})


def increase(series):
    return f"increase({series}[4s])"


def increased(series):
    """A query that gives something while a counter grows."""
    return f"sum({increase(series)}) > 0"


@asynccontextmanager
async def usual(load):
    """What goes on all the time: streams and whole replies of two models, with prompts that nobody has seen."""
    user = KEYS["user"]

    def chat(number):
        match number % 5:
            case 0:
                return load.ask(user, content=f"hello {number}", stream=False)
            case 1:
                return load.ask(user, content=f"hello {number}", model="lonely")
            case 2:
                return load.look("/v1/models" if number % 2 else "/v1/quota", user)
            case _:
                return load.ask(user, content=f"hello {number}")

    async with load.every(0.25, chat):
        yield


@asynccontextmanager
async def mood(upstreams, what):
    for each in upstreams:
        each.mood = what
    try:
        yield
    finally:
        for each in upstreams:
            each.mood = "well"


@asynccontextmanager
async def down(*upstreams):
    for each in upstreams:
        await each.down()
    try:
        yield
    finally:
        for each in upstreams:
            await each.up()


@asynccontextmanager
async def service(fake, **changes):
    """The moderation service is changed, and changed back."""
    before = {name: getattr(fake.settings, name) for name in changes}
    fake.change(**changes)
    try:
        yield
    finally:
        fake.change(**before)


@asynccontextmanager
async def stopped(pid):
    """The process does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def halting(pid):
    """The process does nothing for most of the time."""

    async def halt():
        while True:
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(0.25)
            finally:
                os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.05)

    halts = asyncio.create_task(halt())
    try:
        yield
    finally:
        halts.cancel()
        await asyncio.wait((halts,))


async def crowd(watch, load):
    """Many streams at once. How many of them were whole, of how many, and how often they were scraped meanwhile."""
    series = "sum(relay_open_streams{JOB})"
    async with watch.fault("crowd", seen=f"{series} >= {CROWD}", over=f"{series} < {CROWD / 2}") as seen:
        began = time.time()
        asked = [asyncio.create_task(load.ask(KEYS["user"], content="slowly")) for _ in range(CROWD)]
        await seen()
        replies = await asyncio.gather(*asked)
        took = time.time() - began
    [scrapes] = await watch.values(f"sum_over_time(up{{JOB}}[{int(took)}s])")
    return sum(_is_whole(body) for _, body in replies), len(replies), scrapes


def _is_whole(body):
    return body is not None and body.endswith(b"data: [DONE]\n\n") and b'"error"' not in body


class Hurt:
    """What is done to one relay. watch: its `Watch`; relay: its process and what it depends on; load: who asks it."""

    def __init__(self, watch, relay, load):
        self.watch, self.relay, self.load = watch, relay, load
        self.user = KEYS["user"]
        self.fake = relay.fake

    def fault(self, name, seen, over=None, hold_s=2.0):
        return self.watch.fault(name, seen=seen, over=over, hold_s=hold_s)

    async def while_so(self, name, seen, *hurts, **options):
        """A fault that lies in what happens meanwhile: context managers."""
        async with self.fault(name, seen, **options) as until, AsyncExitStack() as stack:
            for hurt in hurts:
                await stack.enter_async_context(hurt)
            await until()

    async def while_asked(self, name, seen, seconds, make, **options):
        """One that lies in what is asked."""
        await self.while_so(name, seen, self.load.every(seconds, make), **options)


class Served(Hurt):
    async def act(self):
        load, user, relay = self.load, self.user, self.relay
        main, lonely = relay.main, relay.lonely
        well = "sum(relay_upstream_ejected{JOB}) == 0"

        def ejected(reason):
            return increased(f'relay_upstream_ejections_total{{JOB,upstream="main",reason="{reason}"}}')

        # The first of all: most streams of the last minute of the lapse have to be late.
        slow = (
            mood([main, lonely], "slow"),
            load.every(0.15, lambda _: load.ask(user)),
            load.every(0.03, lambda _: load.ask(user, model="lonely")),
        )
        await self.while_so("upstreams slow", ejected("slow"), *slow, over=well, hold_s=5)
        over_budget = increased('relay_upstream_retries_total{JOB,outcome="over_budget"}')
        busy = mood(relay.upstreams, "busy"), load.every(0.03, lambda _: load.ask(user, stream=False))
        await self.while_so("upstreams busy", over_budget, *busy)
        await self.while_so("upstreams down", ejected("heads"), down(main, lonely), over=well)
        await self.while_so("replies break off", ejected("replies"), mood([main, lonely], "breaking off"), over=well)
        failing = f"count(sum by (upstream) ({increase('relay_upstream_errors_total{JOB}')}) > 0) >= 3"
        await self.while_so("upstreams fail", failing, mood(relay.upstreams, "failing"), over=well, hold_s=5)
        for what, kind in (("reporting", "reported"), ("raving", "malformed"), ("hanging", "idle")):
            told = increased(f'relay_upstream_errors_total{{JOB,kind="{kind}"}}')
            await self.while_so(f"upstream {what}", told, mood([lonely], what), hold_s=1)


class Visited(Hurt):
    async def act(self):
        load, user, relay = self.load, self.user, self.relay
        code = 'relay_refusals_total{{JOB,code="{}"}}'.format

        self.crowd = await crowd(self.watch, load)
        raised = increased('relay_requests_total{JOB,outcome="internal_error"}')
        await self.while_asked("plugin raises", raised, 0.3, lambda _: load.ask(user, mishap="raise"))
        raised = increased('relay_plugin_errors_total{JOB,hook="on_end"}')
        await self.while_asked("plugin raises late", raised, 0.3, lambda _: load.ask(user, mishap="raise at the end"))
        late = "sum(rate(relay_loop_lag_seconds_sum{JOB}[4s])) > 0.05"
        await self.while_asked("loop blocked", late, 0.9, lambda _: load.ask(user, mishap="block"))
        gone = increased('relay_requests_total{JOB,outcome="client_gone"}')
        await self.while_asked("clients leave", gone, 0.3, lambda _: load.ask(user, leave=True))
        unknown = increased(code("invalid_api_key"))
        await self.while_asked("unknown keys", unknown, 0.1, lambda _: load.ask(KEYS["stranger"]))
        nonsense = increased(code("invalid_json"))
        await self.while_asked("nonsense asked", nonsense, 0.1, lambda _: load.ask(user, data=b"{"))
        often = increased(code("rate_limit_exceeded"))
        await self.while_asked("too many requests", often, 0.1, lambda _: load.ask(KEYS["greedy"]))
        trimmed = increased("relay_history_trimmed_messages_total{JOB}")
        await self.while_asked("long conversations", trimmed, 0.2, lambda _: load.ask(user, messages=LONG))
        async with self.fault("drain", increased(code("draining")), hold_s=1) as seen:
            asked = [asyncio.create_task(load.ask(user, content="slowly")) for _ in range(10)]
            await self.watch.until("sum(relay_open_streams{JOB}) >= 10")
            relay.life.process.send_signal(signal.SIGTERM)
            await seen()
        async with self.fault("gone", "up{JOB} == 0") as seen:
            await asyncio.wait(asked)
            await seen()


class Moderated(Hurt):
    async def act(self):
        load, user, fake = self.load, self.user, self.fake
        closed = "relay_moderation_breaker_state{JOB} == 0"
        opened = "relay_moderation_breaker_state{JOB} == 2"

        def utter(number):
            return load.ask(user, content=f"utter {tuple(SINS)[number % len(SINS)]} {number}")

        def sin(number):
            return load.ask(user, content=f"{(BLOCKED, LEXICON)[number % 2]} {number}")

        def outcome(name):
            return increased(f'relay_moderation_checks_total{{JOB,outcome="{name}"}}')

        filtered = increased('relay_requests_total{JOB,outcome="filtered"}')
        await self.while_asked("replies violate", filtered, 0.2, utter)
        await self.while_so("moderator down", opened, service(fake, outage="refuse"), over=closed, hold_s=4)
        refused = increased('relay_refusals_total{JOB,code="content_filter"}')
        await self.while_asked("prompts violate", refused, 0.2, sin)
        slow = "sum(rate(relay_moderation_call_seconds_sum{JOB}[4s])) / sum(rate(relay_moderation_call_seconds_count{JOB}[4s])) > 0.2"
        await self.while_so("moderator slow", slow, service(fake, p50_ms=300, p99_ms=320))
        waiting = "sum(relay_moderation_checks_waiting{JOB})"
        await self.while_asked(
            "moderator's budget used up",
            f"{waiting} > 20",
            0.05,
            lambda n: load.ask(user, content=f"hi {n}"),
            over=f"{waiting} == 0",
            hold_s=3,
        )
        unsigned = service(fake, error_share=1, errors={"AuthFailure.SignatureFailure": 1})
        await self.while_so("moderator unauthorized", outcome("unauthorized"), unsigned, over=closed)
        bad = service(fake, error_share=0.3, errors={"http_500": 1, "reset": 1, "garbage": 1})
        await self.while_so("moderator errs", outcome("error"), bad, over=closed)
        await self.while_so("moderator silent", outcome("timeout"), service(fake, outage="black_hole"), over=closed)
        slower = "relay_moderation_rate_allowed{JOB} < 0.8 * relay_moderation_rate_ceiling{JOB}"
        await self.while_so("moderator asked too often", slower, service(fake, calls_per_second=3), hold_s=5)


class Lenient(Hurt):
    async def act(self):
        load, user, relay = self.load, self.user, self.relay
        closed = "relay_moderation_breaker_state{JOB} == 0"
        unverified = increased("relay_released_unverified_characters_total{JOB}")
        await self.while_so("moderator down, let pass", unverified, service(self.fake, outage="refuse"), over=closed)
        await relay.take_away("poor", 30)
        exhausted = increased('relay_requests_total{JOB,outcome="exhausted"}')
        await self.while_asked("quota ends", exhausted, 0.5, lambda _: load.ask(KEYS["poor"], content="at-length"))
        uncovered = increased("relay_quota_uncovered_total{JOB}")
        await self.while_asked(
            "quota does not cover", uncovered, 0.5, lambda _: load.ask(KEYS["spent"], content="huge")
        )
        opaque = increased('relay_released_unverified_characters_total{JOB,reason="opaque"}')
        await self.while_asked("replies hold what is no text", opaque, 0.2, lambda _: load.ask(user, content="opaque"))
        slow = "histogram_quantile(0.95, sum by (le) (rate(relay_store_seconds_bucket{JOB}[4s]))) > 0.1"
        await self.while_so("store slow", slow, halting(relay.life.server))
        back = "relay_journal_entries{JOB} == 0 and relay_store_up{JOB} == 1"
        full = "relay_journal_entries{JOB} > 1200 and relay_store_up{JOB} == 0"
        # Requests without anything to moderate, as many as there have to be for a journal that is noticed.
        many = load.every(0.004, lambda _: load.ask(user, content="nothing", stream=False))
        strange = load.every(0.5, lambda _: load.ask(KEYS["stranger"]))
        self._leave_half_a_line()
        await self.while_so("store silent", full, stopped(relay.life.server), many, strange, over=back)
        restarted = increased("relay_store_restarts_total{JOB}")
        async with self.fault("store dies", restarted, over=back) as seen:
            os.kill(relay.life.server, signal.SIGKILL)
            await seen()
        leaked = 'sum(relay_store_promises{JOB,kind="slot"}) > 40'
        await self.while_asked("slots leak", leaked, 0.1, lambda _: load.ask(user, mishap="leak"))

    def _leave_half_a_line(self):
        """What a relay leaves that is killed while it writes to its journal; the others look for it when theirs is empty."""
        journal = self.relay.life.folder / "relay-data/journal/tokens"
        journal.mkdir(parents=True, exist_ok=True)
        (journal / "0-half.jsonl").write_bytes(b'{"unit":"tokens","acc')


class Crew(Hurt):
    async def act(self):
        load, user, relay = self.load, self.user, self.relay
        serving = 'sum(relay_workers{JOB,state="serving"})'
        all_serve = f'{serving} == 2 and sum(relay_workers{{JOB,state!="serving"}}) == 0'
        ends = 'relay_worker_ends_total{{JOB,reason="{}"}}'.format

        self.crowd = await crowd(self.watch, load)
        async with (
            self.fault("worker hung", increased(ends("hung")), over=all_serve) as seen,
            stopped(relay.workers[0]),
        ):
            await seen()
        async with self.fault("workers replaced", increased(ends("left")), over=all_serve) as seen:
            asked = [asyncio.create_task(load.ask(user, content="slowly")) for _ in range(10)]
            await self.watch.until("sum(relay_open_streams{JOB}) >= 10")
            relay.life.process.send_signal(signal.SIGHUP)
            await seen()
            await asyncio.wait(asked)
        async with self.fault("configuration refused", increased(ends("refused"))) as seen:
            path = relay.life.folder / "relay.toml"
            path.write_text(path.read_text() + '[[plugins]]\nuse = "nobody"\n')
            relay.life.process.send_signal(signal.SIGHUP)
            await seen()
        async with self.fault("workers die", f"{serving} == 0", over=all_serve) as seen:
            killing = asyncio.create_task(self._kill())
            await seen()
            killing.cancel()

    async def _kill(self):
        while True:
            for pid in self.relay.workers.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.1)
