"""What counting costs: `python -m bench.metrics [--seconds 10]`.

One relay with the whole chain, 10,000 keys and ten models is asked with every key, and by 1,000 model names that nobody
configured. Then: how many series there are, how long a scrape takes (median and most of 30; the relay idle, and with 100
streams on it), how late chunks are with scrapes and without, and what share of the relay's processor time goes into
counting (`bench.sampled`), for streams of 200 chunks and for whole replies of one word.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import uvloop

from bench.load import Told
from bench.processes import free_port, started

KEYS, HOSTILE, MODELS, STREAMS = 10_000, 1_000, 10, 100

RELAY_TOML = """\
[server]
port = {port}
[admin]
port = {admin_port}
[store]
timeout_ms = 2000
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{model_port}/v1"
models = {models}
[[plugins]]
use = "auth"
keys = {keys}
[[plugins]]
use = "parameters"
[[plugins]]
use = "rate_limit"
requests_per_minute = 100000000
concurrent_streams = 100000
[[plugins]]
use = "quota"
unit = "tokens"
grant = 1000000000000
[[plugins]]
use = "moderation"
moderators = [{{ use = "lexicon", words = ["forbidden fruit"] }}]
[[plugins]]
use = "history"
max_tokens = 3000
"""


class Rig:
    """The relay and those who ask it."""

    def __init__(self, session: aiohttp.ClientSession, port: int, admin_port: int, pid: int, sums: Path) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._admin = f"http://127.0.0.1:{admin_port}/metrics"
        self._port = port
        self._pid = pid
        self._sums = sums

    async def ask_as_everybody(self) -> None:
        """Once with every key, and once for every name of a model."""
        asked = [(f"sk-{number}", "bench") for number in range(KEYS)]
        asked += [("sk-0", f'm{number}"}}\n') for number in range(HOSTILE)]
        left = iter(asked)

        async def ask() -> None:
            for key, model in left:
                body = {"model": model, "messages": [{"role": "user", "content": "1+1=?"}]}
                async with self._session.post(self._url, json=body, headers={"Authorization": f"Bearer {key}"}) as got:
                    await got.read()
                    if got.status not in (200, 404):
                        sys.exit(f"the relay answers {got.status}")

        await asyncio.gather(*(ask() for _ in range(20)))

    async def scrape(self) -> tuple[float, int]:
        """How many milliseconds it took, and how many series there are."""
        began = time.perf_counter()
        accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
        async with self._session.get(self._admin, headers=accept) as response:
            text = await response.text()
        took_ms = (time.perf_counter() - began) * 1e3
        return took_ms, sum(not line.startswith("#") for line in text.splitlines())

    async def scrapes(self, times: int, apart_s: float = 0.1) -> tuple[float, float, int]:
        """Median and most of the milliseconds, and the series."""
        took = []
        for _ in range(times):
            await asyncio.sleep(apart_s)
            took.append(await self.scrape())
        return statistics.median(each for each, _ in took), max(each for each, _ in took), took[-1][1]

    async def stream(self, seconds: float) -> Told:
        """What clients of streams say."""
        numbers = map(str, (self._port, STREAMS, seconds))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.load", *numbers, "sk-0", stdout=asyncio.subprocess.PIPE
        )
        said: Told = json.loads((await process.communicate())[0])
        return said

    async def whole(self, seconds: float) -> None:
        """Ask for whole replies, 20 at a time."""
        until = time.perf_counter() + seconds

        async def ask() -> None:
            body = {"model": "bench", "messages": [{"role": "user", "content": "1+1=?"}]}
            while time.perf_counter() < until:
                async with self._session.post(self._url, json=body, headers={"Authorization": "Bearer sk-0"}) as got:
                    await got.read()

        await asyncio.gather(*(ask() for _ in range(20)))

    async def share(self) -> float:
        """Of the processor time since the last call, in per cent."""
        self._sums.unlink(missing_ok=True)
        os.kill(self._pid, signal.SIGUSR1)
        while not self._sums.exists():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
        counting, every = map(int, json.loads(self._sums.read_text()))
        return 100 * counting / max(1, every)


def report(when: str, median_ms: float, most_ms: float, series: int) -> None:
    print(f"{when + ':':10} scrape {median_ms:.1f} ms (most {most_ms:.1f}), {series} series")


async def measure(rig: Rig, seconds: float) -> None:
    await rig.ask_as_everybody()
    report("idle", *await rig.scrapes(30))
    await rig.share()
    quiet = await rig.stream(seconds)
    print(f"streams:   counting is {await rig.share():.2f} % of the relay's processor time")
    streaming = asyncio.create_task(rig.stream(seconds))
    await asyncio.sleep(1)
    scraped = await rig.scrapes(30, apart_s=max(0.1, (seconds - 3) / 30))
    loud = await streaming
    report("streaming", *scraped)
    for name, said in (("without", quiet), ("with", loud)):
        p50_us, p99_us = said["delay_us"] or (0, 0)
        print(f"chunks {name:>7} scrapes: p50 {p50_us:.0f} µs, p99 {p99_us:.0f} µs late")
    await rig.share()
    await rig.whole(seconds)
    print(f"whole:     counting is {await rig.share():.2f} % of the relay's processor time")


async def ask(rig_of: Callable[[aiohttp.ClientSession], Rig], seconds: float) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await measure(rig_of(session), seconds)


def main(seconds: float) -> None:
    model_port, port, admin_port = free_port(), free_port(), free_port()
    models = json.dumps(["bench", *(f"model-{number}" for number in range(MODELS - 1))])
    keys = ", ".join(f'{{ name = "key-{number}", key = "sk-{number}" }}' for number in range(KEYS))
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, ExitStack() as processes:
        config, sums = Path(folder, "relay.toml"), Path(folder, "sums.json")
        config.write_text(
            RELAY_TOML.format(port=port, admin_port=admin_port, model_port=model_port, models=models, keys=f"[{keys}]")
        )
        model = (sys.executable, "-m", "bench.model", str(model_port), "--whole", "1")
        processes.enter_context(started(*model, port=model_port))
        relay = (sys.executable, "-m", "bench.sampled", str(sums), "serve", "--config", str(config))
        pid = processes.enter_context(started(*relay, port=port)).pid
        uvloop.run(ask(lambda session: Rig(session, port, admin_port, pid, sums), seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    main(parser.parse_args().seconds)
