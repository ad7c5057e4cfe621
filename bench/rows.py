"""The rows of the table, in groups that can be measured alone: `GROUPS`.

Each group takes a `Lab` and gives rows; each measures the relay and its peers round by round.
"""

import math
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

from bench.lab import Heard, Lab, wait_ready
from bench.phrases import held, phrases
from bench.processes import pss_kb
from bench.proxies import RELAY, Plan, Proxy, running
from bench.row import MEDIAN, TAIL, Row
from bench.shapes import TOKENS
from bench.slow import NAME, PATIENCE_S, slow_reader

Figures = dict[str, list[float]]

# Where very many streams are opened, so many begin in a second.
STARTS_PER_S: Final = 1000


def figures(targets: Sequence[Proxy], heard: Sequence[Sequence[Heard]], what: Callable[[Heard], float]) -> Figures:
    """By the targets' names."""
    return {target.name: [what(each) for each in rounds] for target, rounds in zip(targets, heard, strict=True)}


def percentile_ms(of: Literal["delay_us", "first_us"], place: int) -> Callable[[Heard], float]:
    """place: 0 for the median, 1 for the 99th percentile. NaN if nothing came."""

    def what(heard: Heard) -> float:
        pair = heard.told[of]
        return math.nan if pair is None else pair[place] / 1000

    return what


def cpu(lab: Lab) -> list[Row]:
    """Of the proxy's processes, for each event that arrives."""
    rows = []
    targets = lab.everyone()
    for pace_ms, streams in ((5, 20), (5, 100), *((20, streams) for streams in lab.effort.curve)):
        lab.say(pace_ms=pace_ms)
        heard = lab.rounds(targets, streams)
        rows.append(
            Row(
                group="cpu",
                key=f"cpu {streams} {pace_ms}",
                name=f"CPU per event, {streams} streams" + (f", an event a {pace_ms} ms" if pace_ms != 5 else ""),
                unit="µs",
                figures=figures(targets, heard, lambda each: each.cpu_us_per_event),
                shown=pace_ms == 5 or streams == 400,
                streams=streams if pace_ms == 20 else 0,
            )
        )
    at_100, at_400 = (row.median(RELAY) for row in (rows[1], rows[-1]))
    if at_100 and at_400:
        rows[-1].note = f"{at_400 / at_100:.2f} × the relay's own at 100 streams"
    return rows


def tencent(lab: Lab) -> list[Row]:
    """The same with a second moderator, which has to be asked; the peers ask nobody."""
    lab.say()
    targets = lab.everyone(tencent_port=lab.tencent())
    heard = lab.rounds(targets, 100)
    return [
        Row(
            group="tencent",
            key="tencent",
            name="the same with Tencent's fake at 60 ms, 100 streams",
            unit="µs",
            figures=figures(targets, heard, lambda each: each.cpu_us_per_event),
        )
    ]


def carried(lab: Lab) -> list[Row]:
    """Each stream offers 200 events a second, which is more than two cores carry."""
    lab.say()
    targets = lab.everyone()
    rows = []
    for streams in (400, 1000):
        heard = lab.rounds(targets, streams, "--cut", seconds=1.5 * lab.effort.seconds)
        rows.append(
            Row(
                group="carried",
                key=f"carried {streams}",
                name=f"carried at {streams:,} streams",
                unit="events/s",
                figures=figures(targets, heard, lambda each: each.events_per_s),
                digits=0,
            )
        )
    return rows


def whole(lab: Lab) -> list[Row]:
    """Replies of 200 tokens that are not streamed, 20 at a time."""
    lab.say()
    plain, quota = lab.relay(), lab.relay(quota=True, store="embedded:")
    targets = [plain, quota, *lab.peers]
    heard = lab.rounds(targets, 20, "--whole")
    rows = []
    for mine, key, name in (
        (0, "whole", "CPU per request that is not streamed"),
        (1, "whole quota", "the same with quota, its store counted"),
    ):
        chosen = [mine, *range(2, len(targets))]
        got = figures(
            [targets[place] for place in chosen],
            [heard[place] for place in chosen],
            lambda each: each.cpu_us_per_request,
        )
        rows.append(Row(group="whole", key=key, name=name, unit="µs", figures=got, digits=0))
    return rows


def latency(lab: Lab) -> list[Row]:
    """Of an event, from the model server's write to the client's read, at 100 streams."""
    lab.say()
    targets = [lab.relay(), lab.relay(heads=False), *lab.peers]
    heard = lab.rounds(targets, 100)
    share = held(TOKENS, phrases())
    rows = []
    for mine, key, name, note in (
        (1, "latency", "added to an event, {}, no heads of phrases in the text", ""),
        (0, "latency held", "the same, {}, the lexicon as it is", f"{share:.0%} of events end in a head and are held"),
    ):
        chosen = [mine, *range(2, len(targets))]
        for place, which in enumerate((MEDIAN, TAIL)):
            got = figures(
                [targets[each] for each in chosen],
                [heard[each] for each in chosen],
                percentile_ms("delay_us", place),
            )
            rows.append(Row("latency", f"{key} {which}", name.format(which), "ms", got, digits=2, note=note))
    return rows


def first(lab: Lab) -> list[Row]:
    """From a request to its first event, at 100 streams that begin every 1.2 s."""
    lab.say()
    targets = lab.everyone()
    direct = Proxy("asked directly", lab.model_port, lab.model_pid)
    streams = lab.effort.streams(100)
    every = 1.2 if lab.effort.shrink == 1 else 0.2
    rows = []
    for over, key, name in (
        (every * (streams - 1) / streams, "first spread", "first event, {}, starts spread evenly"),
        (0.0, "first together", "first event, {}, 100 starts in the same instant"),
    ):
        options = ("--every", str(every), "--over", str(over))
        everyone = [*targets, direct]
        heard = lab.rounds(everyone, 100, *options)
        both = []
        for place, which in enumerate((MEDIAN, TAIL)):
            got = figures(everyone, heard, percentile_ms("first_us", place))
            both.append(Row("first", f"{key} {which}", name.format(which), "ms", got, digits=2))
        alone = " / ".join(f"{statistics.median(row.figures.pop(direct.name)):.2f}" for row in both)
        both[0].note = f"{alone} without a proxy"
        rows += both
    return rows


def memory(lab: Lab) -> list[Row]:
    """Of a stream that is open, in a proxy that has just been started; then 5,000 of them, with all replies counted."""
    streams, many = lab.effort.streams(1000), lab.effort.streams(5000)
    got: Figures = {}
    served: Figures = {}
    at_once: dict[str, int] = {}
    for later in reversed(range(lab.effort.rounds)):
        for plan in [lab.plan(lab.variant()), *lab.peer_plans()]:
            with running(plan, lab.log()) as proxy:
                wait_ready(plan)
                lab.say(pace_ms=250, events=400)
                got.setdefault(plan.name, []).append(_opened_kb(lab, proxy, streams))
                if later:
                    continue
                # The first has to be open still when the last begins.
                lab.say(pace_ms=250, events=round(1.5 * many / STARTS_PER_S / 0.250))
                told = lab.heard(proxy, 5000, "--once", "--over", str(many / STARTS_PER_S)).told
                served[plan.name] = [told["requests"] - told["errors"]]
                at_once[plan.name] = told["peak"]
    return [
        Row("memory", "memory", f"memory per open stream, {streams:,} open", "KB", got),
        Row(
            group="memory",
            key="open",
            name=f"{many:,} streams, an event a 250 ms: served whole",
            unit="replies",
            figures=served,
            digits=0,
            note=f"open at a time: {', '.join(f'{who} {peak:,}' for who, peak in at_once.items())}",
        ),
    ]


def _opened_kb(lab: Lab, proxy: Proxy, streams: int) -> float:
    command = lab.load(proxy, streams, 1, "--once", "--prompted", "--over", str(streams / STARTS_PER_S))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        load.stdout.readline()
        # With the clients there already: what they have in common with the proxy, Python for one, counts in parts.
        idle = pss_kb(proxy.pid)
        load.stdin.write(b"\n")
        load.stdin.flush()
        load.stdout.readline()
        time.sleep(0.5)  # each has had an event or two
        busy = pss_kb(proxy.pid)
        load.kill()
    return (busy - idle) / streams


def workers(lab: Lab) -> list[Row]:
    """Two of them, at the load of one; the relay's store counts, as does the supervisor, and nginx's master."""
    lab.say()
    pairs = lab.shared()
    heard = lab.rounds([target for pair in pairs for target in pair], 100)
    got = {
        one.name: [second.cpu_us_per_event / first.cpu_us_per_event for first, second in zip(*both, strict=True)]
        for (one, _), both in zip(pairs, zip(heard[::2], heard[1::2], strict=True), strict=True)
    }
    return [Row("workers", "workers", "two workers, CPU per event ÷ one worker's", "×", got, digits=2)]


def start(lab: Lab) -> list[Row]:
    """From the command to the first 200: of /readyz, or of whatever a peer answers first."""
    got: Figures = {}
    for _ in range(lab.effort.rounds):
        for plan in [lab.plan(lab.variant()), *lab.peer_plans()]:
            got.setdefault(plan.name, []).append(_start_s(plan))
    return [Row("start", "start", "from start to ready", "s", got, digits=2)]


def _start_s(plan: Plan) -> float:
    began = time.monotonic()
    with subprocess.Popen(plan.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        ready = wait_ready(plan)
        process.terminate()
    return ready - began


def slow(lab: Lab) -> list[Row]:
    """One client that reads nothing, and 100 others."""
    lab.say()
    lab.say(NAME, large=True, pace_ms=1, events=1_000_000)
    targets = lab.everyone()
    p99_ms = percentile_ms("delay_us", 1)
    held_kb: Figures = {}
    growing: set[str] = set()
    without: Figures = {}
    beside: Figures = {}
    for _ in range(lab.effort.rounds):
        for target in targets:
            without.setdefault(target.name, []).append(p99_ms(lab.heard(target, 100)))
            with slow_reader(target, lab.model_port) as reader:
                held_kb.setdefault(target.name, []).append(reader.held_kb)
                growing |= set() if reader.paused else {target.name}
                beside.setdefault(target.name, []).append(p99_ms(lab.heard(target, 100)))
    note = f"still growing after {PATIENCE_S:g} s: {', '.join(sorted(growing))}" if growing else ""
    return [
        Row("slow", "slow held", "held for a client that reads nothing", "KB", held_kb, digits=0, note=note),
        Row("slow", "slow without", "the 100 others' p99 without it", "ms", without, digits=2),
        Row("slow", "slow beside", "the 100 others' p99 beside it", "ms", beside, digits=2),
    ]


def shapes(lab: Lab) -> list[Row]:
    """100 streams as in the first group, written differently."""
    rows = []
    targets = lab.everyone()
    for key, name, setting in (
        ("openai", "OpenAI's frames, obfuscation and usage: null", {"shape": "openai"}),
        ("mistral", "Mistral's frames, arrays of parts", {"shape": "mistral"}),
        ("crlf", "the first API's frames, lines end in CRLF", {"shape": "crlf"}),
        ("2 together", "two events in one read", {"together": 2}),
        ("5 together", "five events in one read", {"together": 5}),
    ):
        lab.say(**setting)
        heard = lab.rounds(targets, 100)
        got = figures(targets, heard, lambda each: each.cpu_us_per_event)
        rows.append(Row("shapes", key, name, "µs", got, headline=False))
    return rows


GROUPS: Final[dict[str, Callable[[Lab], list[Row]]]] = {
    "cpu": cpu,
    "tencent": tencent,
    "carried": carried,
    "whole": whole,
    "latency": latency,
    "first": first,
    "memory": memory,
    "workers": workers,
    "start": start,
    "slow": slow,
    "shapes": shapes,
}
