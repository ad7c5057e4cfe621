"""What `bench.moderation` runs on: a model that talks, a relay that moderates, the fake of Tencent's service, clients.

Each is a process; the fake's is the one that calls this, which does nothing else while clients read. All on loopback.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bench.processes import cpu_s, free_port, started
from bench.texts import reply
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake

KEY = "sk-bench"
CHARS_PER_S = 75.0
LOG = Path(__file__).parent / "out" / "relay.log"
OVERLAP = 15  # one less than holdback_chars

RELAY_TOML = """\
[server]
port = {port}
drain_s = 0
[admin]
port = {admin_port}
[store]
url = "memory:"
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{model_port}/v1"
models = ["bench"]
[[plugins]]
use = "auth"
keys = [{{ name = "bench", key = "{key}" }}]
[[plugins]]
use = "moderation"
moderators = [{{ use = "tencent", endpoint = "{endpoint}", secret_id = "{id}", secret_key = "{secret}", \
calls_per_second = {calls_per_second} }}]
{options}
"""

Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Heard:
    """What clients read in one run.

    replies: as `bench.listener` prints them. asked: how many replies there should be. delay_s, first_s: the median, the
    99th percentile and the most, of characters and of first words. cpu_us: of the relay, for each chunk read.
    """

    replies: list[dict[str, Any]]
    asked: int
    chunks: int
    delay_s: tuple[float, float, float]
    first_s: tuple[float, float, float]
    cpu_us: float
    cores: float

    @property
    def lost(self) -> int:
        return self.asked - sum(bool(each["complete"]) for each in self.replies)

    @property
    def losses(self) -> dict[str, int]:
        """Replies that were asked for and are not complete, by the code of their error."""
        lost = Counter(each["code"] or f"status {each['status']}" for each in self.replies if not each["complete"])
        return dict(lost + Counter({"not asked": self.asked - len(self.replies)}))

    @property
    def altered(self) -> int:
        """How many complete replies are not what the model said."""
        return sum(each["complete"] and each["said"] != whole(each) for each in self.replies)

    @property
    def chars(self) -> int:
        return sum(len(each["said"]) for each in self.replies)


def whole(told: Mapping[str, Any]) -> str:
    """What the model said, of which a client may have got less."""
    return reply(told["seed"], told["chars"])


class Rig:
    """One relay with one setting, and all that it needs."""

    def __init__(self, fake: Fake, port: int, admin_port: int, pid: int, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.port = port
        self.session = session
        self._admin_port = admin_port
        self._pid = pid

    async def metrics(self) -> dict[Series, float]:
        async with self.session.get(f"http://127.0.0.1:{self._admin_port}/metrics") as response:
            families = text_string_to_metric_families(await response.text())
        return {
            (each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples
        }

    async def total(self, name: str, **labels: str) -> float:
        return total(await self.metrics(), name, **labels)

    async def listen(self, streams: int, rounds: int, spread_s: float, chars: int = 0) -> Heard:
        """Let clients read replies to their ends."""
        before, began = cpu_s(self._pid), asyncio.get_running_loop().time()
        numbers = map(str, (self.port, streams, rounds, spread_s, chars))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.listener", *numbers, KEY, stdout=asyncio.subprocess.PIPE
        )
        said = json.loads((await process.communicate())[0])
        used_s = cpu_s(self._pid) - before
        return Heard(
            said["replies"],
            streams * rounds,
            said["chunks"],
            tuple(said["delay_s"]),
            tuple(said["first_s"]),
            used_s * 1e6 / max(1, said["chunks"]),
            used_s / (asyncio.get_running_loop().time() - began),
        )

    async def control(self, **changes: object) -> None:
        """Switch the fake as one would from outside."""
        async with self.session.post(f"{self.fake.endpoint}/control", json=changes) as response:
            response.raise_for_status()

    def unseen(self, replies: Iterable[Mapping[str, Any]]) -> int:
        """How many of the characters that clients got the fake was never shown as something new.

        By its own record, which knows nothing of the relay's: it has to keep its calls.
        """
        shown: dict[str, list[str]] = {}
        for ask in self.fake.counts.kept:
            shown.setdefault(ask.data_id.rsplit("-", 2)[0], []).append(ask.text)
        return sum(len(each["said"]) - seen(each["said"], whole(each), shown.get(each["id"], [])) for each in replies)


def total(metrics: Mapping[Series, float], name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    return sum(
        value for (each, said), value in metrics.items() if each == name and labels.items() <= dict(said).items()
    )


def seen(got: str, whole: str, windows: list[str]) -> int:
    """How much of what a client got stands in the new part of some window of the reply it is from."""
    seen = bytearray(len(got))
    ends = {0}
    for window in windows:
        places, at = [], whole.find(window)
        while at >= 0:
            places.append(at)
            at = whole.find(window, at + 1)
        if not places:
            continue
        # A short one may stand in several places: where another one ended, or else behind what was shown last.
        fitting = [at for at in places if at + OVERLAP in ends] or [at for at in places if at + OVERLAP >= max(ends)]
        start = (fitting or places)[0]
        ends.add(start + len(window))
        for place in range(start + OVERLAP if start else 0, min(start + len(window), len(got))):
            seen[place] = 1
    return sum(seen)


@asynccontextmanager
async def rig(options: str, calls_per_second: float, service: Mapping[str, Any]) -> AsyncIterator[Rig]:
    """`options`: lines of relay.toml for the plugin `moderation`. `service`: settings of the fake."""
    model_port, port, admin_port = (free_port() for _ in range(3))
    async with Fake(**service) as fake, aiohttp.ClientSession() as session:
        with tempfile.TemporaryDirectory(prefix="relay-bench-") as name, ExitStack() as processes:
            toml = RELAY_TOML.format(
                port=port, admin_port=admin_port, model_port=model_port, key=KEY, endpoint=fake.endpoint, id=SECRET_ID,
                secret=SECRET_KEY, calls_per_second=calls_per_second, options=options,
            )  # fmt: skip
            config = Path(name, "relay.toml")
            config.write_text(toml)  # noqa: ASYNC240 — nothing runs yet
            talker = (sys.executable, "-m", "bench.talker", str(model_port), str(CHARS_PER_S))
            processes.enter_context(started(*talker, port=model_port))
            relay = (sys.executable, "-m", "relay", "serve", "--config", str(config))
            process = processes.enter_context(started(*relay, port=port, log=LOG))
            yield Rig(fake, port, admin_port, process.pid, session)
