"""Where rows are measured: a model server, the peers, relays as they are needed, and clients that come for a round."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from bench.load import Told
from bench.model import say
from bench.processes import cpu_s, free_port, started
from bench.proxies import KEY, Plan, Proxy, Variant, nginx, router, running
from bench.shapes import Setting


@dataclass(frozen=True)
class Effort:
    """How much a run costs. curve: at how many streams. shrink: by what all streams and their events are divided."""

    rounds: int = 5
    seconds: float = 2.0
    curve: tuple[int, ...] = (5, 20, 100, 400)
    shrink: int = 1

    def streams(self, count: int) -> int:
        return max(4, count // self.shrink)

    def events(self, count: int) -> int:
        return max(4, count // self.shrink)


FULL = Effort()
QUICK = Effort(rounds=2, seconds=0.8, curve=(100, 400))
# For a test: everything once, and of everything a little.
TINY = Effort(rounds=1, seconds=0.05, shrink=50)


@dataclass
class Heard:
    """What the clients of one round say, and what the proxy and the model server used for it."""

    told: Told
    cpu_s: float
    model_cpu_s: float

    @property
    def cpu_us_per_event(self) -> float:
        return self.cpu_s * 1e6 / max(1, self.told["events"])

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_s * 1e6 / max(1, self.told["requests"])

    @property
    def events_per_s(self) -> float:
        return self.told["events"] / self.told["seconds"]


@dataclass
class Lab:
    """wrong: what did not come as it should have, for the table's foot. harness_us: what clients and model cost an event."""

    folder: Path
    effort: Effort
    chain: str
    router_venv: Path | None
    with_nginx: bool = True
    wrong: list[str] = field(default_factory=list)
    harness_us: list[tuple[float, float]] = field(default_factory=list)
    model_port: int = field(default_factory=free_port)
    model_pid: int = 0
    said: Setting = field(default_factory=Setting)
    peers: list[Proxy] = field(default_factory=list)
    _relays: dict[Variant, Proxy] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _plans: int = 0

    @contextmanager
    def open(self) -> Iterator["Lab"]:
        with self._stack as stack:
            model = (sys.executable, "-m", "bench.model", str(self.model_port))
            self.model_pid = stack.enter_context(started(*model, port=self.model_port)).pid
            self.peers = [self._start(plan) for plan in self.peer_plans()]
            yield self

    def peer_plans(self) -> list[Plan]:
        """Fresh ones, those that are installed."""
        plans = self._nginx(1)
        if self.router_venv is not None:
            plans.append(router(self.router_venv, self.model_port))
        return plans

    def _nginx(self, workers: int) -> list[Plan]:
        plan = nginx(self._place(), self.model_port, workers) if self.with_nginx else None
        return [] if plan is None else [plan]

    def plan(self, variant: Variant) -> Plan:
        return variant.plan(self._place(), self.model_port)

    def variant(self, **options: Any) -> Variant:
        """The chain that is measured, changed."""
        return Variant(chain=self.chain, **options)  # type: ignore[arg-type]

    def relay(self, **options: Any) -> Proxy:
        """The relay with this setting; once started it runs to the end."""
        variant = self.variant(**options)
        if variant not in self._relays:
            self._relays[variant] = self._start(self.plan(variant))
        return self._relays[variant]

    def shared(self) -> list[tuple[Proxy, Proxy]]:
        """Who can share its work: with one worker and with two; relays with the embedded store in both, for two need it."""
        one, two = (self.relay(store="embedded:", workers=count) for count in (1, 2))
        pairs = [(one, two)]
        for plan in self._nginx(2):
            pairs += [(peer, self._start(plan)) for peer in self.peers if peer.name == plan.name]
        return pairs

    def tencent(self) -> int:
        """The port of a fake of Tencent's service that takes 60 ms for each verdict."""
        port = free_port()
        fake = (sys.executable, "-m", "relay_plugins.tencent.fake", "--port", str(port))
        times = ("--p50-ms", "60", "--p99-ms", "60", "--calls-per-second", "0")
        self._stack.enter_context(started(*fake, *times, port=port))
        return port

    def everyone(self, **options: Any) -> list[Proxy]:
        """The relay with this setting, and the peers."""
        return [self.relay(**options), *self.peers]

    def say(self, model: str = "*", **setting: Any) -> None:
        """Set what the model server says; streams are shorter where less is measured."""
        said = Setting(**setting)
        said = replace(said, events=self.effort.events(said.events))
        say(self.model_port, said, model)
        if model == "*":
            self.said = said

    def heard(self, proxy: Proxy, streams: int, *options: str, seconds: float | None = None) -> Heard:
        """One round."""
        streams = self.effort.streams(streams)
        sample = ("--sample", str(1 + streams // 150))
        before = cpu_s(proxy.pid), cpu_s(self.model_pid)
        done = subprocess.run(
            self.load(proxy, streams, seconds or self.effort.seconds, *options, *sample),
            check=True,
            capture_output=True,
        )
        used = cpu_s(proxy.pid) - before[0], cpu_s(self.model_pid) - before[1]
        told: Told = json.loads(done.stdout)
        if told["errors"]:
            self.wrong.append(f"{proxy.name}, {streams} streams: {told['errors']} × {told['error']}")
        whole = self.said.frames * told["requests"]
        if "--cut" not in options and "--whole" not in options and not 0.99 * whole < told["events"] < 1.01 * whole:
            self.wrong.append(f"{proxy.name}, {streams} streams: {told['events']} events where {whole} were said")
        if told["events"]:
            self.harness_us.append((told["cpu_us"], used[1] * 1e6 / told["events"]))
        return Heard(told, *used)

    def load(self, proxy: Proxy, streams: int, seconds: float, *options: str) -> list[str]:
        """The command that is the clients of a round."""
        return [sys.executable, "-m", "bench.load", str(proxy.port), str(streams), str(seconds), KEY, *options]

    def rounds(
        self, targets: Sequence[Proxy], streams: int, *options: str, seconds: float | None = None
    ) -> list[list[Heard]]:
        """What was heard of each target; round by round, so that whatever else the machine does falls on all alike."""
        heard: list[list[Heard]] = [[] for _ in targets]
        for _ in range(self.effort.rounds):
            for target, each in zip(targets, heard, strict=True):
                each.append(self.heard(target, streams, *options, seconds=seconds))
        return heard

    def _start(self, plan: Plan) -> Proxy:
        proxy = self._stack.enter_context(running(plan, self.log()))
        wait_ready(plan)
        return proxy

    def log(self) -> Path:
        """A file for what a process prints."""
        return self._place().with_suffix(".log")

    def _place(self) -> Path:
        self._plans += 1
        return self.folder / str(self._plans)


def wait_ready(plan: Plan, patience_s: float = 60.0) -> float:
    """Wait until it says that it serves; returns the monotonic clock's seconds then."""
    until = time.monotonic() + patience_s
    while True:
        try:
            with urlopen(plan.ready, timeout=1):
                return time.monotonic()
        except (URLError, OSError):
            if time.monotonic() > until:
                sys.exit(f"{plan.name} is not ready after {patience_s:g} s")
            time.sleep(0.005)
