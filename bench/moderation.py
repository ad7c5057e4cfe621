"""What moderating a stream costs and how late it makes it: `python -m bench.moderation [curve|budget|outage …]`.

A model server says Chinese prose, 75 characters a second, to 200 clients at once; a relay asks the fake of Tencent's
service about it, in strict mode. The fake takes 60 ms for half of its verdicts and up to 400 ms for 99 of 100, and fails
one call in a hundred.

    curve   calls, characters and delays, for several settings of the windows
    budget  the same with 50 calls a second for all
    outage  the service falls silent while all streams run, and comes back; `on_failure` "closed", then "open"

What stands in bench/out afterwards: moderation.txt, windows.svg.

    python -m bench.moderation [curve|budget|outage …] [--quick] [--streams 200] [--rounds 2] [--only 1200]
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from bench.listener import said
from bench.picture import Point, bars, svg
from bench.rig import CHARS_PER_S, KEY, Heard, Rig, rig, total
from relay.metrics.families import UNJUDGED

OUT = Path(__file__).parent / "out"
P50_MS, P99_MS = 60, 400
SPREAD_S = 4.0
ERRORS = {"InternalError.ErrTextTimeOut": 2, "http_503": 1, "reset": 1}
SERVICE: dict[str, Any] = {"p50_ms": P50_MS, "p99_ms": P99_MS, "calls_per_second": 0, "errors": ERRORS}
MANY_CALLS = 5000  # a second: no bound for anything here
KEPT_CALLS = 1_000_000

HOLDBACK_CHARS, DEADLINE_S = 16, 2.0  # the defaults
BUDGET = 50
HOLE_AFTER_S, HOLE_S = 9.0, 6.0
PROBE_EVERY_S, PROBE_CHARS = 0.25, 20


@dataclass(frozen=True)
class Setting:
    """Of the windows; what is not said is as shipped."""

    max_wait_ms: int
    sentence_chars: int = 64
    most_calls: float | None = None  # per 1,000 characters
    most_scanned: float | None = None  # for each character
    most_delay_s: float | None = None  # of half of all characters

    @property
    def name(self) -> str:
        return f"{self.max_wait_ms} ms"

    @property
    def options(self) -> str:
        return f"window = {{ max_wait_ms = {self.max_wait_ms}, sentence_chars = {self.sentence_chars} }}"


SHIPPED = Setting(
    1200,
    most_calls=17,
    most_scanned=1.3,
    most_delay_s=1.2 / 2 + (HOLDBACK_CHARS - 1) / CHARS_PER_S + P50_MS / 1e3 + 0.02,
)
# Twice the time for twice the text: as it takes half a window to say what sentence_chars asks for, one alone does little.
SAVER = Setting(2400, sentence_chars=128, most_calls=12)
SETTINGS = (Setting(300), Setting(600), SHIPPED, SAVER)


class Size(NamedTuple):
    """How much is measured. chars: of a reply at least; 0 for 900 to 1,500, which is usual."""

    streams: int
    rounds: int
    chars: int = 0


class Paper:
    """What is printed, and kept."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.text += line + "\n"


def spread(seconds: Sequence[float]) -> str:
    return " / ".join(f"{each:.2f}" for each in seconds)


def met(value: float, most: float | None) -> str:
    if most is None:
        return ""
    return f"≤ {most:g}" if value <= most else f"MISSED ≤ {most:g}"


# The curve


class Cost(NamedTuple):
    """What one setting costs. All per character that the model said."""

    calls: float
    scanned: float
    checks: int
    failures: int
    unjudged: dict[str, int]


async def cost(bench: Rig) -> Cost:
    metrics = await bench.metrics()
    said = total(metrics, "relay_moderation_characters_total", state="in")
    return Cost(
        1000 * total(metrics, "relay_moderation_calls_total") / said,
        total(metrics, "relay_moderation_scanned_characters_total") / said,
        round(total(metrics, "relay_moderation_checks_total")),
        sum(bench.fake.counts.refused.values()),
        {
            outcome: round(value)
            for (name, labels), value in metrics.items()
            if name == "relay_moderation_checks_total" and value and (outcome := dict(labels)["outcome"]) in UNJUDGED
        },
    )


async def curve(paper: Paper, size: Size, settings: Sequence[Setting]) -> None:
    paper(f"\nThe curve: {size.streams} streams of {CHARS_PER_S:g} characters/s, {size.rounds} replies each")
    paper(
        f"{'max_wait':>8} {'sentence':>8}  {'calls/1,000':>16}  {'scanned÷said':>16}  {'delay s p50/p99/max':>20}"
        f"  {'first text s p50/p99':>20}  {'replies':>7} {'lost':>4} {'altered':>7}  {'checks':>7} {'failed calls':>12}"
        f"  {'µs/event':>8} {'cores':>5} {'load':>5}"
    )
    points, replies, lost = [], 0, 0
    for setting in settings:
        async with rig(f'request = "off"\n{setting.options}', MANY_CALLS, {**SERVICE, "error_share": 0.01}) as bench:
            heard = await bench.listen(size.streams, size.rounds, SPREAD_S, size.chars)
            spent = await cost(bench)
        calls = f"{spent.calls:.1f} {met(spent.calls, setting.most_calls)}"
        scanned = f"{spent.scanned:.2f} {met(spent.scanned, setting.most_scanned)}"
        paper(
            f"{setting.name:>8} {setting.sentence_chars:>8}  {calls:>16}  {scanned:>16}  {spread(heard.delay_s):>20}"
            f"  {spread(heard.first_s[:2]):>20}  {heard.asked:>7} {heard.lost:>4} {heard.altered:>7}"
            f"  {spent.checks:>7} {spent.failures:>12}  {heard.cpu_us:>8.1f} {heard.cores:>5.2f} {os.getloadavg()[0]:>5.2f}"
        )
        if setting.most_delay_s is not None:
            paper(
                f"{'':19}delay p50 {heard.delay_s[0]:.2f} s {met(heard.delay_s[0], round(setting.most_delay_s, 2))} s"
            )
        if heard.lost:
            paper(f"{'':19}lost by {heard.losses}; checks without a verdict {spent.unjudged}")
        points.append(Point(setting.name, spent.calls, *heard.delay_s[:2]))
        replies, lost = replies + heard.asked, lost + heard.lost
    at_most = f"; with none of n lost, fewer than 3/n are to 95 %: {3 / replies:.2%}" if not lost else ""
    paper(f"lost of all replies: {lost} of {replies}, {lost / replies:.3%} {met(lost / replies, 0.001)}{at_most}")
    paper()
    paper(bars(points))
    picture = svg(points, f"What windows cost, and how late they make a stream of {CHARS_PER_S:g} characters/s")
    (OUT / "windows.svg").write_text(picture, encoding="utf-8")


# A small budget


async def budget(paper: Paper, size: Size) -> None:
    calls = max(1, round(BUDGET * size.streams / 200))
    paper(f"\nThe budget: {calls} calls/s for {size.streams} streams, one reply each; the fake refuses more")
    service = {**SERVICE, "error_share": 0.01, "calls_per_second": calls, "keep_calls": KEPT_CALLS}
    async with rig('request = "off"', calls, service) as bench:
        heard = await bench.listen(size.streams, 1, SPREAD_S, size.chars)
        spent = await cost(bench)
        unverified = await bench.total("relay_released_unverified_characters_total")
        counts = bench.fake.counts
        unseen = bench.unseen(heard.replies)
        paper(f"  complete {heard.asked - heard.lost} of {heard.asked}, altered {heard.altered}")
        most = counts.shown()["most_in_a_second"]
        refused = counts.refused["RequestLimitExceeded"]
        paper(f"  calls in the fullest second {most} {met(most, calls)}, refused as too many {refused}")
        paper(
            f"  released without a verdict, by the relay's count {unverified:.0f}; by the fake's, {unseen} of {heard.chars}"
        )
        paper(f"  calls per 1,000 characters {spent.calls:.1f}, scanned ÷ said {spent.scanned:.2f}")
        paper(f"  delay s p50/p99/max {spread(heard.delay_s)}, first text s p50/p99/max {spread(heard.first_s)}")
        paper(f"  load {os.getloadavg()[0]:.2f}")


# An outage


class Probe(NamedTuple):
    """One new request during an outage: when it was sent, how it was answered, how long that took.

    reply: as those that `bench.listener` prints.
    """

    sent: float
    status: int
    took_s: float
    reply: dict[str, Any]


class Watch:
    """Looks at the relay while the service is away: its breaker, and what becomes of new requests."""

    def __init__(self, bench: Rig) -> None:
        self.probes: list[Probe] = []
        self.opened: float | None = None  # the breaker, on the monotonic clock
        self.closed: float | None = None  # again, after that
        self._bench = bench
        self._number = 0

    async def look(self) -> None:
        while True:
            state = await self._bench.total("relay_moderation_breaker_state")
            if self.opened is None and state == 2:
                self.opened = time.monotonic()
            if self.opened is not None and self.closed is None and state == 0:
                self.closed = time.monotonic()
            await asyncio.sleep(0.05)

    async def probe(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._ask())
                await asyncio.sleep(PROBE_EVERY_S)

    async def _ask(self) -> None:
        self._number += 1
        number = self._number
        asked = {
            "model": "bench",
            "stream": True,
            "seed": number,
            "max_tokens": PROBE_CHARS,
            "messages": [{"role": "user", "content": f"请问第{number}件事？"}],
        }
        sent = time.monotonic()
        url = f"http://127.0.0.1:{self._bench.port}/v1/chat/completions"
        async with self._bench.session.post(url, json=asked, headers={"Authorization": f"Bearer {KEY}"}) as response:
            took_s = time.monotonic() - sent
            body = await response.read()
        reply = {
            "id": response.headers["x-request-id"],
            "seed": number,
            "chars": PROBE_CHARS,
            "said": said(body),
            "complete": b'"finish_reason":"stop"' in body,
        }
        self.probes.append(Probe(sent, response.status, took_s, reply))


async def outage(paper: Paper, size: Size) -> None:
    for on_failure in ("closed", "open"):
        # A verdict that does not come for another reason would blur what is counted.
        service = {**SERVICE, "keep_calls": KEPT_CALLS}
        async with rig(f'on_failure = "{on_failure}"', MANY_CALLS, service) as bench:
            watch = Watch(bench)
            listening = asyncio.create_task(bench.listen(size.streams, 1, SPREAD_S, size.chars))
            await asyncio.sleep(HOLE_AFTER_S)
            looking, probing = asyncio.create_task(watch.look()), asyncio.create_task(watch.probe())
            await bench.control(outage="black_hole")
            gone = time.monotonic()
            await asyncio.sleep(HOLE_S)
            await bench.control(outage="none")
            back = time.monotonic()
            heard = await listening
            while not any(probe.reply["complete"] and probe.sent > back for probe in watch.probes):
                if time.monotonic() > back + 60:
                    break
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)
            for task in (looking, probing):
                task.cancel()
            await asyncio.gather(looking, probing, return_exceptions=True)
            await asyncio.sleep(0.5)
            paper(
                f'\nThe outage: {size.streams} streams, the service silent for {HOLE_S:g} s, on_failure = "{on_failure}"'
            )
            opened = watch.opened - gone if watch.opened is not None else float("inf")
            paper(f"  breaker open after {opened:.2f} s {met(opened, 5)} s")
            if on_failure == "closed":
                closed(paper, heard, gone)
            told(paper, watch, gone, back, recovers=on_failure == "closed")
            await accounts(paper, bench, heard, watch)
            paper(f"  load {os.getloadavg()[0]:.2f}")


def closed(paper: Paper, heard: Heard, gone: float) -> None:
    """How the streams ended that were under way."""
    running = [each for each in heard.replies if each["began"] < gone < each["ended"]]
    ended = sorted(each["ended"] - gone for each in running)
    errors = sum(each["code"] == "moderation_unavailable" and not each["complete"] for each in running)
    paper(
        f"  streams under way {len(running)}, ended by the error moderation_unavailable {errors}, "
        f"after s p50/max {spread((ended[len(ended) // 2], ended[-1]))} {met(ended[-1], 1.2 + DEADLINE_S)} (max_wait + deadline)"
    )


def told(paper: Paper, watch: Watch, gone: float, back: float, *, recovers: bool) -> None:
    """What new requests were told. `recovers`: they were refused, and at some time are not any more."""
    early = [probe for probe in watch.probes if gone <= probe.sent and (not watch.opened or probe.sent < watch.opened)]
    down = [probe for probe in watch.probes if watch.opened and watch.opened <= probe.sent < back]
    for name, probes in (("before the breaker is open", early), ("while it is", down)):
        if probes:
            took = sorted(1000 * probe.took_s for probe in probes)
            statuses = {
                status: sum(probe.status == status for probe in probes) for status in {each.status for each in probes}
            }
            paper(
                f"  new requests {name}: {', '.join(f'{count} × {status}' for status, count in sorted(statuses.items()))}, "
                f"told in ms p50/max {took[len(took) // 2]:.0f} / {took[-1]:.0f}"
            )
    paper(f"  after the service is back: breaker closed {since(watch.closed, back)}")
    if recovers:
        fine = min(
            (probe.sent for probe in watch.probes if probe.reply["complete"] and probe.sent > back), default=None
        )
        paper(f"  the first new request that goes through is sent {since(fine, back)}")


def since(then: float | None, before: float) -> str:
    return f"after {then - before:.2f} s" if then is not None else "NEVER"


async def accounts(paper: Paper, bench: Rig, heard: Heard, watch: Watch) -> None:
    """Three counts of the same characters: the clients', the relay's and the fake's."""
    metrics = await bench.metrics()
    released = total(metrics, "relay_moderation_characters_total", state="released")
    unverified = total(metrics, "relay_released_unverified_characters_total")
    reasons = {
        dict(labels)["reason"]: round(value)
        for (name, labels), value in metrics.items()
        if name == "relay_released_unverified_characters_total" and value
    }
    unverified -= reasons.pop("request", 0)  # went to the upstream
    replies = [*heard.replies, *(probe.reply for probe in watch.probes)]
    got, unseen = sum(len(each["said"]) for each in replies), bench.unseen(replies)
    paper(f"  replies complete {heard.asked - heard.lost} of {heard.asked}, altered {heard.altered}")
    paper(f"  clients got {got} characters; released by the relay's count {released:.0f}")
    paper(
        f"  without a verdict: by the relay's count {unverified:.0f} {reasons or ''}; never shown to the fake {unseen}"
    )


async def run(args: argparse.Namespace) -> None:
    size = Size(40, 1, 400) if args.quick else Size(args.streams, args.rounds)
    settings = [each for each in SETTINGS if not args.only or each.max_wait_ms in args.only]
    OUT.mkdir(parents=True, exist_ok=True)
    paper = Paper()
    for part in args.parts or ("curve", "budget", "outage"):
        if part == "curve":
            await curve(paper, size, settings)
        elif part == "budget":
            await budget(paper, size)
        else:
            await outage(paper, Size(size.streams, 1))
    (OUT / "moderation.txt").write_text(paper.text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="curve|budget|outage")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2, help="replies of each stream, for the curve")
    parser.add_argument("--only", type=int, nargs="*", metavar="MS", help="of the curve's settings, by max_wait_ms")
    parser.add_argument("--quick", action="store_true", help="40 streams and shorter replies")
    args = parser.parse_args()
    if unknown := set(args.parts) - {"curve", "budget", "outage"}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are curve, budget and outage")
    uvloop.run(run(args))


if __name__ == "__main__":
    main()
