"""What shared state costs a request: `python -m bench.store [--redis URL] [--rounds 5] [--seconds 3]`.

Relays with the same chain, but for `rate_limit` and `quota`, answer whole replies of one word, 1 and 20 at a time. CPU is
charged to the relay's own process, and to the embedded server's, divided by requests; medians of several rounds of one
run. With --redis the same on a server that is there already, whose CPU is not seen.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

from bench.processes import children, free_port, own_cpu_s, started

KEY = "sk-bench"
BODY = b'{"model":"bench","messages":[{"role":"user","content":"1+1=?"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (KEY.encode(), len(BODY), BODY)
)

RELAY_TOML = """\
[server]
port = {port}
[admin]
port = {admin_port}
[store]
url = "{store}"
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{model_port}/v1"
models = ["bench"]
[[plugins]]
use = "auth"
keys = [{{ name = "bench", key = "{key}" }}]
"""
RATE_LIMIT = '[[plugins]]\nuse = "rate_limit"\nrequests_per_minute = 100000000\nconcurrent_streams = 100000\n'
QUOTA = '[[plugins]]\nuse = "quota"\nunit = "characters"\ngrant = 1000000000000\n'


@dataclass
class Target:
    """A relay under measurement. Microseconds for each request, by how many there were at a time."""

    name: str
    port: int
    pid: int
    cpu_us: dict[int, list[float]] = field(default_factory=dict)
    store_us: dict[int, list[float]] = field(default_factory=dict)
    p50_us: dict[int, list[float]] = field(default_factory=dict)


class Client(asyncio.Protocol):
    """One connection, one request after the other."""

    def __init__(self, until: float, took_us: list[float]) -> None:
        self._until = until
        self._took_us = took_us
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200"):
            sys.exit(f"the relay answers {data!r}")
        now = time.perf_counter()
        self._took_us.append((now - self._asked) * 1e6)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(None)


async def load(port: int, clients: int, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    took_us: list[float] = []
    until = time.perf_counter() + seconds
    asking = [
        (await loop.create_connection(lambda: Client(until, took_us), "127.0.0.1", port))[1] for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for client in asking))
    return took_us


def measure(target: Target, clients: int, seconds: float) -> None:
    store = children(target.pid)
    before = own_cpu_s(target.pid), sum(map(own_cpu_s, store))
    took_us = uvloop.run(load(target.port, clients, seconds))
    after = own_cpu_s(target.pid), sum(map(own_cpu_s, store))
    for kept, used in zip((target.cpu_us, target.store_us), zip(before, after, strict=True), strict=True):
        kept.setdefault(clients, []).append((used[1] - used[0]) * 1e6 / len(took_us))
    target.p50_us.setdefault(clients, []).append(statistics.median(took_us))


def report(targets: list[Target]) -> str:
    lines = [f"{'':28}{'at once':>8}{'CPU µs':>9}{'added':>8}{'p50 µs':>9}{'added':>8}{'store µs':>10}"]
    for clients in targets[0].cpu_us:
        base_cpu, base_p50 = (statistics.median(kept[clients]) for kept in (targets[0].cpu_us, targets[0].p50_us))
        for target in targets:
            cpu, p50, store = (
                statistics.median(kept[clients]) for kept in (target.cpu_us, target.p50_us, target.store_us)
            )
            lines.append(
                f"{target.name:28}{clients:8}{cpu:9.0f}{cpu - base_cpu:8.0f}{p50:9.0f}{p50 - base_p50:8.0f}{store:10.0f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    plugins = {"rate_limit": RATE_LIMIT, "quota": QUOTA, "rate_limit + quota": RATE_LIMIT + QUOTA}
    chains = {"auth": ("memory:", ""), "auth, rate_limit in memory": ("memory:", RATE_LIMIT)}
    chains |= {f"{name}, embedded": ("embedded:", tables) for name, tables in plugins.items()}
    if args.redis:
        chains |= {f"{name}, Redis": (args.redis, tables) for name, tables in plugins.items()}
    model_port = free_port()
    targets = []
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, ExitStack() as processes:
        model = (sys.executable, "-m", "bench.model", str(model_port), "--whole", "1")
        processes.enter_context(started(*model, port=model_port))
        for name, (store, tables) in chains.items():
            config = Path(folder, name, "relay.toml")
            config.parent.mkdir()
            port, admin_port = free_port(), free_port()
            toml = RELAY_TOML.format(port=port, admin_port=admin_port, model_port=model_port, store=store, key=KEY)
            config.write_text(toml + tables)
            relay = (sys.executable, "-m", "relay", "serve", "--config", str(config))
            targets.append(Target(name, port, processes.enter_context(started(*relay, port=port)).pid))
        for clients in (1, 20):
            for _ in range(args.rounds):
                for target in targets:
                    measure(target, clients, args.seconds)
    print(report(targets))


if __name__ == "__main__":
    main()
