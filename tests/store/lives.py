"""A relay in a process of its own, clients that ask it over and over, and what the books must say of that: for tests that
kill.

Every request has a prompt and a reply of a length of its own. The upstream is told the request's id by the relay, so what
an id was charged can be held against what its client asked for and got.
"""

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise

import aiohttp

from relay.ledger import Ledger
from relay.store.address import parse
from relay.store.port import StoreError
from relay.store.redis import RedisStore
from relay.testing import Head, Pause, Script, ScriptedUpstream, Send, frames, whole

PATIENCE_S = 45.0
GRANT = 10**9
LEASE_S = 1
ACCOUNTS = tuple(f"caller{number}" for number in range(6))

CONFIG = """\
[server]
port = 0
workers = {workers}
[admin]
port = 0
[store]
url = "{store}"
timeout_ms = {timeout_ms}
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["*"]
[[plugins]]
use = "auth"
keys = [{keys}]
{between}
[[plugins]]
use = "quota"
grant = {grant}
instalment = {instalment}
lease_s = {lease_s}
on_store_failure = "{on_store_failure}"
[[plugins]]
use = "moderation"
moderators = [{{ use = "lexicon", words = ["forbidden fruit"] }}]
"""


def write(
    folder,
    base_url,
    *,
    accounts=ACCOUNTS,
    store="embedded:",
    timeout_ms=50,
    workers=1,
    grant=GRANT,
    instalment=20,
    lease_s=LEASE_S,
    on_store_failure="closed",
    between="",
):
    """The configuration. The data is in the same folder."""
    keys = ", ".join(f'{{ name = "{account}", key = "{secret(account)}" }}' for account in accounts)
    folder.mkdir(exist_ok=True)
    text = CONFIG.format(
        base_url=base_url,
        keys=keys,
        store=store,
        timeout_ms=timeout_ms,
        workers=workers,
        grant=grant,
        instalment=instalment,
        lease_s=lease_s,
        on_store_failure=on_store_failure,
        between=between,
    )
    (folder / "relay.toml").write_text(text)


def secret(account):
    return f"sk-{account}-0123456789"


class Life:
    """`relay serve` in a process of its own, from its start to its end, and its log."""

    def __init__(self, folder, process):
        self.folder = folder
        self.log = []
        self.errors = []
        self.process = process
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):
                self.log.append(json.loads(line))
            else:
                self.errors.append(line.decode())
            self._news.set()
            self._news = asyncio.Event()

    async def news(self, condition):
        """Wait for what makes the condition true: a line of the log, or the end of it."""
        while not condition():
            assert not self.ended, (self.log, self.errors)
            news = asyncio.create_task(self._news.wait())
            await asyncio.wait((news, self._reading), return_when=asyncio.FIRST_COMPLETED)
            news.cancel()

    @property
    def ended(self):
        return self._reading.done()

    def lines(self, event):
        return [line for line in self.log if line["event"] == event]

    @property
    def port(self):
        return self.lines("serving")[0]["port"]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self):
        return self.process.returncode is None

    @property
    def server(self):
        """The process of the embedded store; 0 if it is not told just now."""
        with suppress(OSError, ValueError):
            return json.loads((self.folder / "relay-data/store/server.json").read_bytes())["server"]
        return 0

    @property
    def journals(self):
        return [path.name for path in (self.folder / "relay-data/journal").rglob("*") if path.is_file()]

    async def metrics(self):
        """The samples that are not zero: name with labels → value."""
        url = f"http://127.0.0.1:{self.lines('serving')[0]['admin_port']}/metrics"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            samples = (line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
            return {name: float(value) for name, value in samples if float(value)}

    async def over(self, clients):
        """Wait until everything about all requests is over, and booked."""
        ids = {asked.id for all_asked in clients.asked.values() for asked in all_asked}

        async with asyncio.timeout(PATIENCE_S):
            await self.news(lambda: ids <= {line["request_id"] for line in self.lines("request")})
        await eventually(self.booked, "the journal's end")

    async def booked(self):
        """Whether no settlement waits for the store."""
        return "relay_journal_entries" not in await self.metrics()

    async def killed(self):
        """Wait until it has been killed, as a fail point does."""
        async with asyncio.timeout(PATIENCE_S):
            assert -signal.SIGKILL == await self.process.wait(), (self.log, self.errors)
            await self._reading

    async def ends(self):
        """Have it end in good order."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert 0 == await self.process.wait(), (self.log, self.errors)
            await self._reading
        assert not self.errors

    async def close(self):
        if self.alive:
            self.process.kill()
            await self.process.wait()
        await self._reading


@asynccontextmanager
async def lives():
    """`life = await start(folder, fail_point)`: a relay that serves, or has come to its point before that.

    None of them outlives the block.
    """
    started = []

    async def start(folder, fail_point=""):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve"),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "RELAY_FAILPOINT": fail_point},
        )
        life = Life(folder, process)
        started.append(life)
        async with asyncio.timeout(PATIENCE_S):
            await life.news(lambda: life.lines("serving") or (fail_point and life.ended))
        return life

    try:
        yield start
    finally:
        for life in started:
            await life.close()


# Clients


@dataclass
class Asked:
    """One request. prompt, reply: in characters; reached: the upstream had it; got: characters that the client read.

    id: as the client or the upstream heard it. whole: the client has read all of it, to the end. read: it has read an
    answer to its end, be that an error in its middle.
    """

    account: str
    prompt: int
    reply: int
    stream: bool
    id: str = ""
    reached: bool = False
    status: int = 0
    got: int = 0
    read: bool = False
    whole: bool = False


class Clients:
    """Who asks, and the upstream's script. asked: all requests so far, by account."""

    def __init__(self, seed, *, most=120):
        """most: characters of a prompt or a reply."""
        self.asked = {}
        self.stopped = False
        self._all = []
        self._random = random.Random(seed)
        self._most = most

    def script(self, request):
        """What the upstream does: the text that was agreed, in pieces and with pauses."""
        chance = self._random
        number, _, _ = request.json["messages"][-1]["content"].partition(":")
        asked = self._all[int(number)]
        asked.id, asked.reached = request.header("x-request-id"), True
        text = "字" * asked.reply
        if not asked.stream:
            return Script(Pause(chance.uniform(0, 0.02)), whole(frames.body(text)))
        steps, start = [], 0
        while start < len(text):
            size = chance.randint(1, 15)
            steps += [Send(frames.text(text[start : start + size])), Pause(chance.uniform(0, 0.005))]
            start += size
        return Script(Head(), Send(frames.role()), *steps, Send(frames.finish() + frames.done()))

    @property
    def whole(self):
        """How many have been answered whole."""
        return sum(asked.whole for asked in self._all)

    async def ask(self, client, url, account):
        """One request. Raises aiohttp.ClientError when its connection breaks."""
        chance = self._random
        prompt = f"{len(self._all):06d}:" + "p" * chance.randint(0, self._most)
        asked = Asked(account, len(prompt), chance.randint(1, self._most), chance.random() < 0.7)
        self._all.append(asked)
        self.asked.setdefault(account, []).append(asked)
        body = {"model": "m", "stream": asked.stream, "messages": [{"role": "user", "content": prompt}]}
        headers = {"Authorization": f"Bearer {secret(account)}"}
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            asked.id, asked.status = response.headers["x-request-id"], response.status
            data = b""
            try:
                async for piece in response.content.iter_any():
                    data += piece
                asked.read = True
            finally:
                if asked.status == 200:
                    _understand(asked, data)
        return asked

    async def keep_asking(self, url, account, *, until_broken=False):
        """Ask, request after request, until `stopped`; or until the relay is gone, if that is to be expected."""
        timeout = aiohttp.ClientTimeout(PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            while not self.stopped:
                try:
                    asked = await self.ask(client, url, account)
                except TimeoutError as error:
                    error.add_note(f"{self.asked[account][-1]}")
                    raise
                except aiohttp.ClientError:
                    if not until_broken:
                        raise
                    return
                if not asked.whole:
                    await asyncio.sleep(0.01)  # the store is away: more requests change nothing

    @asynccontextmanager
    async def asking(self, life, accounts=ACCOUNTS, *, until_broken=False):
        """They ask while the block runs, and are answered or cut off when it has ended."""
        self.stopped = False
        async with asyncio.TaskGroup() as group:
            for account in accounts:
                group.create_task(self.keep_asking(life.url, account, until_broken=until_broken))
            try:
                yield
            finally:
                self.stopped = True


def _understand(asked, data):
    """Count what has come, whole frames of it, and see whether it is all."""
    if not asked.stream:
        if asked.read:
            said = json.loads(data)["choices"][0]
            asked.got = len(said["message"]["content"])
            asked.whole = said["finish_reason"] == "stop"
        return
    events = [event.removeprefix(b"data: ") for event in data.split(b"\n\n")[:-1] if event.startswith(b"data: ")]
    parsed = [json.loads(event) for event in events if event != b"[DONE]"]
    choices = [choice for frame in parsed for choice in frame.get("choices", ())]
    asked.got = sum(len(choice["delta"].get("content") or "") for choice in choices)
    asked.whole = asked.read and events[-1:] == [b"[DONE]"] and not any("error" in frame for frame in parsed)
    if asked.whole:
        assert choices[-1]["finish_reason"] == "stop"
        assert asked.got == asked.reply


# Books


@asynccontextmanager
async def ledger_at(url, grant=GRANT):
    """The books, read by the test itself; the store need not be there yet."""
    store = RedisStore.at(parse(url), timeout_s=PATIENCE_S)
    try:
        yield Ledger(store, "characters", grant=grant, lease_s=LEASE_S)
    finally:
        await store.aclose()


def socket_of(life):
    """The URL of an embedded store."""
    return "unix://" + json.loads((life.folder / "relay-data/store/server.json").read_bytes())["socket"]


async def eventually(condition, what):
    """Wait until a condition, which may be a coroutine function, gives something true; what it gives."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    try:
                        found = await found
                    except StoreError:
                        found = False
                if found:
                    return found
                await asyncio.sleep(0.01)
    raise AssertionError(f"{what} took too long")


async def settled(ledger, accounts=ACCOUNTS):
    """Wait until nothing is reserved, by the ends of leases at the latest."""

    async def free():
        return all([(await ledger.look(account)).reserved == 0 for account in accounts])

    await eventually(free, "the end of the leases")


async def charges(ledger, account):
    """What each id was charged, all entries together, and by which kinds, the last one first. The books add up."""
    standing = await ledger.look(account)
    entries = await ledger.entries(account, limit=20_000)
    if not entries:
        assert standing.fresh
        return {}
    assert standing.reserved == 0
    assert entries[0].balance == standing.balance == sum(entry.amount for entry in entries)
    for entry, before in pairwise(entries):
        assert entry.balance == before.balance + entry.amount
    assert ["grant"] == [entry.kind for entry in entries if entry.kind in ("grant", "topup")]
    assert entries[-1].kind == "grant"
    found = {}
    for entry in entries[:-1]:
        taken, kinds = found.get(entry.id, (0, []))
        found[entry.id] = taken - entry.amount, [*kinds, entry.kind]
    for taken, kinds in found.values():
        assert taken >= 0
        assert kinds.count("charge") <= 1
    return found


async def audit_of_killed(ledger, clients, deaths):
    """What holds after relays were killed, so many times: nobody was charged twice, nor more than he was sent."""
    for account, all_asked in clients.asked.items():
        found = await charges(ledger, account)
        for asked in all_asked:
            taken, kinds = found.pop(asked.id, (0, ["nothing"]))
            most = asked.prompt + (asked.reply if asked.reached else 1)
            assert taken <= most, (asked, taken, kinds)
            if asked.got or asked.whole:
                assert taken >= asked.prompt, (asked, taken, kinds)
            if asked.whole and kinds[0] in ("charge", "correction"):
                assert taken == most, (asked, taken, kinds)
        # Those who were cut off before they, or the upstream, heard an id.
        unheard = sorted((asked.prompt + 1 for asked in all_asked if not asked.id), reverse=True)
        assert len(found) <= min(len(unheard), deaths), found
        for (taken, kinds), most in zip(sorted(found.values(), reverse=True), unheard, strict=False):
            assert kinds[0] == "sweep"
            assert taken <= most


async def audit_of_survivor(ledger, clients):
    """What holds if the relay has lived on: to the character, each request was charged what its client was told."""
    for account, all_asked in clients.asked.items():
        found = await charges(ledger, account)
        for asked in all_asked:
            assert asked.read, asked
            taken, kinds = found.pop(asked.id, (0, ["nothing"]))
            due = asked.prompt + asked.got if asked.got else 0
            assert taken == due, (asked, taken, kinds)
        assert {} == found


async def outlive_its_store(folder, kill, *, times, seed, audit=audit_of_survivor, **options):
    """A relay lives on while its store is killed and started again, so many times; then the books are looked at.

    kill: has the store die and come back, and returns when it is about to. options: of `write`.
    """
    clients = Clients(seed)
    chance = random.Random(seed)
    async with lives() as start, ScriptedUpstream(clients.script) as upstream:
        write(folder, upstream.base_url, **options)
        life = await start(folder)
        async with clients.asking(life):
            for number in range(times):
                await eventually(lambda n=clients.whole: clients.whole > n + 5, "requests")
                if number % 2:  # else the journal, which is bounded, might never have the time to end
                    await eventually(life.booked, "the journal's end")
                await asyncio.sleep(chance.uniform(0, 0.1))
                await kill(life)
            await eventually(lambda n=clients.whole: clients.whole > n + 5, "the last requests")
        await life.over(clients)
        async with ledger_at(options.get("store") or socket_of(life)) as ledger:
            await settled(ledger)
            await audit(ledger, clients)
        assert "relay_journal_lost_total" not in await life.metrics()
        await life.ends()
    return life, clients
