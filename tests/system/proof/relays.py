"""The relay that is looked at: `relay serve` with every plugin there is, and one that misbehaves."""

import asyncio
import json
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from lives import lives

from proof.upstreams import BLOCKED, LEXICON, MASKED, REVIEWED

PATIENCE_S = 30.0
TOKEN = "admin-0123456789"
KEYS = {name: f"sk-{name}-0123456789" for name in ("user", "greedy", "poor", "spent", "stranger")}
KNOWN = ("user", "greedy", "poor", "spent")
GRANT = 10_000_000

SERVICE = """{{ use = "tencent", endpoint = "{endpoint}", secret_id = "{id}", secret_key = "{secret}", calls_per_second = {calls} }}"""

CONFIG = """\
[server]
port = 0
workers = {workers}
drain_s = {drain_s}
[admin]
port = 0
token = "{token}"
[store]
url = "embedded:"
timeout_ms = 1000
[[upstreams]]
name = "main"
base_url = "{main}"
models = ["chat"]
first_byte_timeout_s = 4
idle_timeout_s = 1
[[upstreams]]
name = "spare"
base_url = "{spare}"
models = ["chat"]
first_byte_timeout_s = 4
idle_timeout_s = 1
[[upstreams]]
name = "lonely"
base_url = "{lonely}"
models = ["lonely"]
first_byte_timeout_s = 4
idle_timeout_s = 1
[[plugins]]
use = "auth"
keys = [{keys}]
[[plugins]]
use = "misbehaving:Misbehaving"
[[plugins]]
use = "parameters"
[[plugins]]
use = "rate_limit"
requests_per_minute = 100000
concurrent_streams = 1000
overrides = {{ greedy = {{ requests_per_minute = 60, burst = 1, concurrent_streams = 1 }} }}
[[plugins]]
use = "quota"
unit = "tokens"
grant = {grant}
on_store_failure = "{on_failure}"
[[plugins]]
use = "history"
max_turns = 3
[[plugins]]
use = "moderation"
on_failure = "{on_failure}"
moderators = [{{ use = "lexicon", words = ["{lexicon}"] }}, {service}]
[plugins.labels.Ad]
mask = 50
[plugins.labels.Value]
review = 50
"""

# What the fake of the moderation service knows.
WORDS = [
    {"word": BLOCKED, "label": "Abuse", "suggestion": "Block"},
    {"word": MASKED, "label": "Ad", "suggestion": "Review", "score": 90},
    {"word": REVIEWED, "label": "Value", "suggestion": "Review", "score": 90},
]


class Relay:
    """A relay that serves, its upstreams and the service that it asks. life: its process; see `lives`."""

    def __init__(self, life, upstreams, fake):
        self.life = life
        self.main, self.spare, self.lonely = self.upstreams = upstreams
        self.fake = fake

    @property
    def admin_port(self):
        return self.life.lines("serving")[0]["admin_port"]

    @property
    def workers(self):
        """Number → process id of those that serve."""
        alive = {}
        for line in self.life.log:
            if line["event"] == "worker serves":
                alive[line["worker"]] = line["pid"]
            elif line["event"] == "worker ended" and alive.get(line["worker"]) == line["pid"]:
                del alive[line["worker"]]
        return alive

    async def take_away(self, name, left):
        """Leave a key so many units of its balance."""
        url = f"http://127.0.0.1:{self.admin_port}/admin/quota/{name}/top-up"
        order = {"amount": left - GRANT, "idempotency_key": f"take-{name}"}
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as client,
            client.post(url, json=order) as reply,
        ):
            assert reply.status == 200, await reply.text()

    async def metrics(self):
        return await self.life.metrics()


def write(folder, upstreams, fake, *, workers=1, drain_s=30, on_failure="closed", calls_per_second=0):
    """relay.toml and what lies beside it. calls_per_second: to the moderation service; 0: it is not asked at all."""
    folder.mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("misbehaving.py"), folder)
    main, spare, lonely = (each.url for each in upstreams)
    text = CONFIG.format(
        workers=workers,
        drain_s=drain_s,
        token=TOKEN,
        main=main,
        spare=spare,
        lonely=lonely,
        keys=", ".join(f"{{ name = {json.dumps(name)}, key = {json.dumps(KEYS[name])} }}" for name in KNOWN),
        grant=GRANT,
        on_failure=on_failure,
        lexicon=LEXICON,
        service=SERVICE.format(
            endpoint=fake.endpoint,
            id=fake.account.secret_id,
            secret=fake.account.secret_key,
            calls=calls_per_second,
        )
        if calls_per_second
        else "",
    )
    (folder / "relay.toml").write_text(text)


@asynccontextmanager
async def relay(folder, upstreams, fake, **options):
    """A relay while the block runs. It ends in good order, and has complained of nothing but by its log."""
    write(folder, upstreams, fake, **options)
    async with lives() as start:
        life = await start(folder)
        yield Relay(life, upstreams, fake)
        with suppress(ProcessLookupError):
            life.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await life.process.wait() == 0, life.log[-3:]
            while not life.ended:
                await asyncio.sleep(0.01)
        assert life.errors == []
