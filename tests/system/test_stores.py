"""What Redis can do to a relay, each on Debian's own: silence, slowness, no room, a replica for a master, a new master, a
Cluster that moves; and what the caller is told meanwhile.

Asserted is what is told, that it is told, and that all is well again afterwards. Bounds on time are generous: the machine
is busy with other tests. (What holds of every kind of store is in tests/store, and runs here on these servers too.)
"""

import asyncio
import io
import json
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from servers import cluster, redis_single, redis_tls, scripted, sentinel

from relay.config import Store
from relay.log import configure
from relay.metrics import Metrics
from relay.options import ConfigError
from relay.secret import Secret
from relay.store import link
from relay.store.address import parse
from relay.store.opening import opened
from relay.store.port import StoreError
from relay.store.pulse import beating
from relay.store.redis import RedisStore

pytestmark = pytest.mark.system

TIMEOUT_S = 0.05  # as it is configured unless somebody says otherwise
PATIENCE_S = 40.0
# The breaker opens after this; a busy machine needs more, which is not the point.
OPEN_S = 1.0

COUNT = scripted("return redis.call('INCR', KEYS[1])")
GET = scripted("return redis.call('GET', KEYS[1])")
FILL = scripted("return redis.call('SET', KEYS[1], string.rep('x', tonumber(ARGV[1])))")
TWO_TAGS = scripted("return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}")


@asynccontextmanager
async def on(running, timeout_s=TIMEOUT_S):
    """A store on a running server, warm."""
    store = RedisStore.at(parse(running.url), timeout_s=timeout_s)
    try:
        await store.open()
        await well(store)
        yield store
    finally:
        await store.aclose()


async def outcome(store, script=COUNT, key="n", args=()):
    try:
        return await store.run(script, [store.key("t", key)], args)
    except StoreError as error:
        return error.trouble, error.acted


async def well(store, script=GET, key="n"):
    """Wait until the store answers."""
    async with asyncio.timeout(PATIENCE_S):
        while isinstance(found := await outcome(store, script, key), tuple):
            await asyncio.sleep(0.02)
    return found


async def until(store, trouble):
    """Ask until this is told; how long that took, and what else was told meanwhile."""
    began, told = time.monotonic(), set()
    async with asyncio.timeout(PATIENCE_S):
        while (found := await outcome(store)) != trouble:
            told.add(found if isinstance(found, tuple) else "ok")
            await asyncio.sleep(0.01)
    return time.monotonic() - began, told


@pytest.fixture(scope="module")
def single():
    with redis_single(enable_debug_command="local", enable_protected_configs="local") as running:
        yield running


@pytest.fixture(autouse=True)
def _well_again(request):
    """Leave a server that tests share as it was."""
    yield
    if "single" in request.fixturenames:
        running = request.getfixturevalue("single")
        running.main.resume()
        running.main.say("CONFIG", "SET", "maxmemory", "0")
        running.main.say("REPLICAOF", "NO", "ONE")
        running.main.say("FLUSHALL")


async def test_black_hole(single):
    """A server that takes everything and answers nothing: slow, then the breaker, at no cost to who asks; then all is well."""
    async with on(single) as store:
        single.main.pause()
        took, told = await until(store, ("breaker", False))
        assert {("slow", True)} == told
        assert took < 20 * OPEN_S
        assert not store.up
        single.main.resume()
        assert int(await well(store, COUNT)) >= 1
        assert store.up


async def test_black_hole_at_the_start(single, tmp_path):
    """A server that answers nothing when the relay starts does not stop it."""
    single.main.pause()
    table = Store(url=Secret(single.url))
    log = io.BytesIO()
    async with opened(table, folder=tmp_path, data=tmp_path, log=configure(log), metrics=Metrics((), ())) as store:
        assert "store away" == json.loads(log.getvalue().splitlines()[0])["event"]
        assert not store.reached
        async with beating(store, configure(log)) as pulse:
            single.main.resume()
            async with asyncio.timeout(PATIENCE_S):
                while not (pulse.up and store.reached):
                    await asyncio.sleep(0.02)


async def test_slow(single):
    """A server that takes longer than the time-out does what it was asked, once, and late; the caller was told it may."""
    async with on(single) as store:
        sleeping = asyncio.create_task(asyncio.to_thread(single.main.say, "DEBUG", "SLEEP", "0.6"))
        await until(store, ("slow", True))
        await sleeping
        await well(store)


async def test_full(single):
    """A server without room says so at once, and has done nothing; what only reads still runs."""
    async with on(single) as store:
        assert "ok" != await outcome(store, FILL, "big", (2_000_000,))
        single.main.say("CONFIG", "SET", "maxmemory", "1mb")
        assert ("full", False) == await outcome(store)
        assert None is await outcome(store, GET)
        single.main.say("CONFIG", "SET", "maxmemory", "0")
        assert 1 == await outcome(store)
        assert store.up


async def test_no_disk(single):
    """A server that cannot write its disk says so (MISCONF) where it was told to care; what only reads still runs."""
    async with on(single) as store:
        single.main.say("CONFIG", "SET", "save", "1 1")
        folder = Path(single.main.connect().config_get("dir")["dir"])
        single.main.say("CONFIG", "SET", "dbfilename", "folder")  # which is no file
        await asyncio.to_thread((folder / "folder").mkdir)
        try:
            await outcome(store)
            async with asyncio.timeout(PATIENCE_S):
                while ("readonly", False) != await outcome(store):
                    await asyncio.sleep(0.1)
            async with on(single) as another:
                assert ("readonly", False) == await outcome(another)
                assert all([isinstance(await outcome(another, GET), bytes) for _ in range(20)])
        finally:
            single.main.say("CONFIG", "SET", "save", "")
            single.main.say("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
            single.main.say("CONFIG", "SET", "dbfilename", "dump.rdb")
        assert isinstance(await well(store, COUNT), int)


async def test_readonly(single):
    """A server that has become a replica refuses what writes; when it is a master again all is well."""
    async with on(single) as store:
        single.main.say("REPLICAOF", "127.0.0.1", "1")
        _, told = await until(store, ("readonly", False))
        assert {("away", True), ("away", False), "ok"} >= told
        single.main.say("REPLICAOF", "NO", "ONE")
        assert int(await well(store, COUNT)) >= 1


async def test_reset(single):
    """Connections that are cut under load: what was under way may have happened, the next commands find a new connection."""
    async with on(single) as store:
        stop = asyncio.get_running_loop().time() + 1.0
        told, counted = [], 0

        async def ask():
            nonlocal counted
            while asyncio.get_running_loop().time() < stop:
                found = await outcome(store)
                counted += not isinstance(found, tuple)
                if isinstance(found, tuple):
                    told.append(found)
                    await asyncio.sleep(0.01)

        asking = [asyncio.create_task(ask()) for _ in range(20)]
        for _ in range(5):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(single.main.say, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.gather(*asking)
        assert {("away", True), ("away", False), ("breaker", False), ("slow", True)} >= set(told)
        kept = int(await well(store))
        # Every answer was true; of those without one that may have happened some did.
        assert counted <= kept <= counted + sum(acted for _, acted in told)


async def test_killed_and_started_again():
    """A server that dies: away at once, the breaker, and found again when it is back, with no script loaded."""
    with redis_single(appendonly="yes") as running:
        async with on(running) as store:
            assert 1 == await outcome(store)
            running.main.kill()
            _, told = await until(store, ("breaker", False))
            assert {("away", True), ("away", False)} >= told
            await asyncio.to_thread(running.main.start)
            assert 2 == await well(store, COUNT)


async def test_script_flush_under_load(single):
    """Scripts that are forgotten at any time change no outcome."""
    async with on(single, timeout_s=2.0) as store:
        for _ in range(10):
            flushing = asyncio.create_task(asyncio.to_thread(single.main.say, "SCRIPT", "FLUSH"))
            found = await asyncio.gather(*(outcome(store) for _ in range(100)))
            assert list(range(found[0], found[0] + 100)) == sorted(found)
            await flushing


async def test_tls():
    """A certificate of an unknown authority and a server that wants TLS are found out at the start."""
    with redis_tls() as running:
        address = parse(running.url)
        for table, words in (
            (Store(url=Secret(running.plain_url)), "no TLS .*ssl_ca_certs names the authority"),
            (Store(url=Secret(running.plain_url.replace("rediss:", "redis:"))), None),
        ):
            log = io.BytesIO()
            context = opened(table, folder=None, data=None, log=configure(log), metrics=Metrics((), ()))
            if words:
                with pytest.raises(ConfigError, match=words):
                    async with context:
                        pass
            else:
                async with context:  # Redis cuts such a connection without a word
                    assert b"store away" in log.getvalue()
        store = RedisStore.at(replace(address, tls={**address.tls, "ssl_check_hostname": False}), timeout_s=2.0)
        await store.open()
        assert 1 == await outcome(store)
        await store.aclose()


async def test_what_it_is_is_told(single, tmp_path):
    """A Cluster behind redis://, a sentinel behind redis://, a single server behind redis+cluster:// stop the start."""

    async def refused(url):
        with pytest.raises(ConfigError) as error:
            async with opened(
                Store(url=Secret(url)),
                folder=tmp_path,
                data=tmp_path,
                log=configure(io.BytesIO()),
                metrics=Metrics((), ()),
            ):
                pass
        return str(error.value)

    assert "this is no Cluster; write redis://" in await refused(single.url.replace("redis:", "redis+cluster:"))
    with sentinel() as watched:
        port = watched.sentinels[0].address[1]
        assert "this is a sentinel; write redis+sentinel://" in await refused(f"redis://127.0.0.1:{port}")
    with cluster() as clustered:
        port = clustered.main.address[1]
        assert "this is a cluster; write redis+cluster://" in await refused(f"redis://127.0.0.1:{port}")


async def test_the_master_dies():
    """Sentinel's failover: away while there is no master, then the new one is found; what it has is what was replicated."""
    with sentinel() as running:
        async with on(running) as store:
            answered = [await well(store, COUNT) for _ in range(100)][-1]
            running.main.kill()
            _, told = await until(store, ("breaker", False))
            assert {("away", True), ("away", False), ("slow", True)} >= told
            kept = await well(store, COUNT)
            assert 1 <= kept <= answered + 1 + len(told)
            assert int(running.servers[1].say("GET", "relay:{t}:n")) >= kept


async def test_a_failover_on_purpose():
    """The old master lives on as a replica: its connections lead nowhere, and the new master is found without a restart."""
    with sentinel() as running:
        async with on(running) as store:
            await well(store, COUNT)
            await asyncio.to_thread(running.sentinels[0].say, "SENTINEL", "FAILOVER", "main")
            async with asyncio.timeout(PATIENCE_S):
                while "master" != (await asyncio.to_thread(running.servers[1].connect().info, "replication"))["role"]:
                    await asyncio.sleep(0.05)
                while "slave" != (await asyncio.to_thread(running.main.connect().info, "replication"))["role"]:
                    await well(store)
                    await asyncio.sleep(0.05)
            kept = await well(store, COUNT)
            assert kept == int(running.servers[1].say("GET", "relay:{t}:n"))


async def test_crossslot():
    """A script whose keys are on two nodes is our own mistake, and told as one; its neighbours are served."""
    with cluster() as running:
        async with on(running, timeout_s=2.0) as store:
            keys = [store.key("a", "n"), store.key("b", "n")]
            good, bad, other = await asyncio.gather(
                store.run(COUNT, keys[:1]),
                store.run(TWO_TAGS, keys),
                store.run(COUNT, keys[1:]),
                return_exceptions=True,
            )
            assert (1, 1) == (good, other)
            assert ("error", True) == (bad.trouble, bad.acted)
            assert "CROSSSLOT" in bad.detail


async def test_a_slot_moves():
    """Keys that move to another node while they are used (ASK, TRYAGAIN, MOVED) are found there; no count is lost."""
    with cluster() as running:
        async with on(running, timeout_s=2.0) as store:
            key = store.key("t", "n")
            slot = running.main.connect().execute_command("CLUSTER", "KEYSLOT", key)
            await well(store, COUNT)
            homes = {server: _id(server) for server in running.servers}
            source = next(server for server in running.servers if server.connect().dbsize())
            target = next(server for server in running.servers if server is not source)
            counted = 1
            target.say("CLUSTER", "SETSLOT", slot, "IMPORTING", homes[source])
            source.say("CLUSTER", "SETSLOT", slot, "MIGRATING", homes[target])
            counted += await _counts(store, 10)
            source.say("MIGRATE", "127.0.0.1", target.address[1], key, 0, 5000)
            counted += await _counts(store, 10)  # ASK
            for server in (target, source):
                server.say("CLUSTER", "SETSLOT", slot, "NODE", homes[target])
            counted += await _counts(store, 10)  # MOVED
            assert counted == int(await well(store))


async def _counts(store, number):
    """How often the count went up."""
    found = await asyncio.gather(*(outcome(store) for _ in range(number)))
    return sum(not isinstance(each, tuple) for each in found)


def _id(server):
    identity = server.say("CLUSTER", "MYID")
    return identity.decode() if isinstance(identity, bytes) else identity


async def test_a_node_dies():
    """The other nodes' keys are served all the while; the dead one's when its replica has taken its place."""
    with cluster(replicas=1) as running:
        async with on(running) as store:
            tags = [f"tag{number}" for number in range(30)]

            async def ask(tag):
                try:
                    return await store.run(COUNT, [store.key(tag, "n")])
                except StoreError as error:
                    return error.trouble

            await well(store, COUNT)
            masters = [server for server in running.servers if _role(server) == "master"]
            masters[0].kill()
            served = set()
            async with asyncio.timeout(PATIENCE_S):
                found = dict(zip(tags, await asyncio.gather(*map(ask, tags)), strict=True))
                served |= {tag for tag, answer in found.items() if isinstance(answer, int)}
                assert served
                while served < set(tags):
                    found = dict(zip(tags, await asyncio.gather(*map(ask, tags)), strict=True))
                    assert {"away", "slow", "breaker"} >= {each for each in found.values() if isinstance(each, str)}
                    served |= {tag for tag, answer in found.items() if isinstance(answer, int)}
                    await asyncio.sleep(0.05)


def _role(server):
    return server.connect().info("replication")["role"]


def test_the_breaker_opens_within_a_second():
    """By its table: a server that is silent is not asked any more within a second, at a beat every quarter of one."""
    assert min(seconds for _, seconds in link.SILENCES) < OPEN_S
    assert all(count * 0.25 <= OPEN_S or seconds < OPEN_S / 2 for count, seconds in link.SILENCES)
    assert redis.VERSION >= (8, 1)
