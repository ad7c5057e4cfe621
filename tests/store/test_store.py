"""What holds for every store: scripts run whole or not at all, in one write a turn, and trouble is told in time.

Runs on every kind (see conftest): those that wheels allow, and with `-m system` Debian's Redis in all its forms.
"""

import asyncio
import gc
import re
import time

import pytest
from servers import scripted

from relay.store import link as links
from relay.store.address import Address, parse
from relay.store.port import Script, StoreError
from relay.store.redis import RedisStore

GET = scripted("return redis.call('GET', KEYS[1])")
ECHO = scripted("return ARGV")
KINDS_OF_VALUES = scripted("return {1, 'two', false, {3, {4}}, redis.call('GET', KEYS[1])}")
WRONG = scripted("redis.call('SET', KEYS[1], 'half'); return nil + 1")


@pytest.fixture
def store(every_store):
    return every_store


class Told:
    """An observer that writes down."""

    def __init__(self):
        self.turns = []
        self.troubles = []

    def answered(self, commands, seconds):
        self.turns.append(commands)

    def failed(self, trouble):
        self.troubles.append(trouble)


def calls(kind):
    """How often scripts were called on the servers, by the command that called them."""
    found = {"evalsha": 0, "eval": 0}
    for server in kind.servers:
        for name, about in server.say("INFO", "commandstats").items():
            if (command := name.removeprefix("cmdstat_")) in found:
                found[command] += about["calls"]
    return found


async def test_it_answers(store):
    """Integers, bytes, None and lists of them come back as what they are."""
    assert [1, b"two", None, [3, [4]], None] == await store.run(KINDS_OF_VALUES, [store.key("t", "none")])


async def test_arguments_arrive(store):
    """Text is UTF-8, bytes are themselves, numbers are written out; none of them can be mistaken for another argument."""
    given = ["é 词\r\n$1\r\n", b"\x00\xff", 2**53 - 1, -1, 1.5, ""]
    assert ["é 词\r\n$1\r\n".encode(), b"\x00\xff", b"9007199254740991", b"-1", b"1.5", b""] == await store.run(
        ECHO, [store.key("t")], given
    )


async def test_what_is_no_argument_is_refused_at_once(store):
    """A mistake of ours is raised where it is made, and hurts nobody else."""
    other = store.run(ECHO, [store.key("t")], ["x"])
    with pytest.raises(TypeError):
        store.run(ECHO, [store.key("t")], [None])
    assert [b"x"] == await other


async def test_a_key_may_be_any_text(store, count):
    """Tags and parts that look like structure do not meet, and all keys of a tag are on one node."""
    tags = ["a", "a}", "{a", "a:b", "词", " ", "a/b", "%7B"]
    keys = [store.key(tag, part) for tag in tags for part in ("x", "x:y", "{z}")]
    assert len(set(keys)) == len(keys)
    assert {1} == {await store.run(count, [key]) for key in keys}
    for tag in tags:
        both = scripted("return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}")
        assert [b"1", b"1"] == await store.run(both, [store.key(tag, "x"), store.key(tag, "{z}")])


async def test_every_command_of_a_turn_has_its_answer(store, count):
    """A thousand at once over a hundred tags: each gets its own answer, and no effect is missing or doubled."""
    keys = [store.key(str(number % 100), "n") for number in range(1000)]
    answers = await asyncio.gather(*(store.run(count, [key]) for key in keys))
    for tag in range(100):
        assert list(range(1, 11)) == answers[tag::100]


async def test_a_script_that_is_not_known_is_sent_whole(store, count, kind):
    """After SCRIPT FLUSH the next call is by source, those that follow by digest; no effect is doubled."""
    key = store.key("t", "n")
    assert 1 == await store.run(count, [key])
    for server in kind.servers:
        server.say("SCRIPT", "FLUSH")
    before = calls(kind)
    assert [2, 3] == await asyncio.gather(store.run(count, [key]), store.run(count, [key]))
    assert 4 == await store.run(count, [key])
    after = calls(kind)
    assert after["eval"] - before["eval"] in (1, 2)
    assert 3 <= after["evalsha"] - before["evalsha"]


async def test_a_script_that_fails_fails_alone(store, count):
    """What goes wrong in one of a turn's scripts is told to its caller; the rest of the turn is done."""
    answers = await asyncio.gather(
        store.run(count, [store.key("t", "n")]),
        store.run(WRONG, [store.key("t", "w")]),
        store.run(count, [store.key("t", "n")]),
        return_exceptions=True,
    )
    assert [1, 2] == answers[::2]
    assert ("error", True) == (answers[1].trouble, answers[1].acted)
    assert "attempt to perform arithmetic" in answers[1].detail


async def test_a_turn_is_one_write(kind, count):
    """What is asked for in one turn of the loop goes in one write to each node, what is asked for later in others."""
    told = Told()
    store = RedisStore.at(parse(kind.url), timeout_s=2.0, observer=told)
    await store.open()
    try:
        key = store.key("one", "n")
        await asyncio.gather(*(store.run(count, [key]) for _ in range(50)))
        assert [50] == told.turns
        for _ in range(3):
            await store.run(count, [key])
        assert [50, 1, 1, 1] == told.turns
    finally:
        await store.aclose()


async def test_a_caller_that_is_cancelled_hurts_nobody(store, count):
    """Its command is on its way all the same; its neighbours get their own answers."""
    key = store.key("t", "n")
    futures = [asyncio.ensure_future(store.run(count, [key])) for _ in range(5)]
    futures[1].cancel()
    await asyncio.sleep(0)
    futures[3].cancel()
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert [1, 3, 5] == answers[::2]
    assert 6 == await store.run(count, [key])


async def test_a_caller_that_has_left_is_no_error(store):
    """A failure that nobody waits for leaves no trace in the log."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    store.run(WRONG, [store.key("t")])
    assert [b"x"] == await store.run(ECHO, [store.key("t")], ["x"])
    gc.collect()
    assert [] == told


async def test_it_closes_after_what_is_under_way(kind, count):
    """What was asked for before is answered, what is asked for afterwards is told that it is away."""
    store = RedisStore.at(parse(kind.url), timeout_s=2.0)
    await store.open()
    key = store.key("closing", "n")
    futures = [asyncio.ensure_future(store.run(count, [key])) for _ in range(20)]
    await store.aclose()
    answers = [await future for future in futures]
    assert answers == list(range(answers[0], answers[0] + 20))
    with pytest.raises(StoreError) as refused:
        await store.run(count, [key])
    assert ("away", False) == (refused.value.trouble, refused.value.acted)


async def test_closed_as_soon_as_opened(kind):
    """Nothing is left of a connection that was made and closed in one turn of the loop."""
    store = RedisStore.at(parse(kind.url), timeout_s=2.0)
    await store.open()
    await store.aclose()


async def test_it_connects_by_itself(kind, count):
    """A store that was never opened connects when it is asked."""
    store = RedisStore.at(parse(kind.url), timeout_s=5.0)
    try:
        async with asyncio.timeout(20):
            while (found := await outcomes(store, count, [store.key("self", "n")])) != "ok":
                assert ("away", False) == found  # a Cluster's slots are not known yet
                await asyncio.sleep(0.02)
        assert store.up
    finally:
        await store.aclose()


async def test_a_lost_connection_is_made_anew(store, count, kind):
    """When the server cuts connections that are idle, the next command finds a new one."""
    key = store.key("t", "n")
    assert 1 == await store.run(count, [key])
    for server in kind.servers:
        await asyncio.to_thread(server.say, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    async with asyncio.timeout(20):
        while (found := await outcomes(store, count, [key])) != "ok":
            assert "away" == found[0]
            await asyncio.sleep(0.02)
    assert 2 <= int(await store.run(GET, [key]))


async def test_time_is_the_servers(store):
    """A script reads the server's clock."""
    now = scripted("local t = redis.call('TIME'); return string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))")
    assert abs(int(await store.run(now, [store.key("t")])) - time.time() * 1000) < 60_000


# Trouble that needs no Redis of Debian's: on a server of the test's own


async def outcomes(store, script, keys, args=()):
    """What came of a call: "ok", or its trouble and whether it may have acted."""
    try:
        await store.run(script, keys, args)
    except StoreError as error:
        return error.trouble, error.acted
    return "ok"


async def test_a_server_that_is_slow(kind, count):
    """A caller waits for no longer than the time-out, and is told that it may have happened; it happens once."""
    store = RedisStore.at(parse(kind.url), timeout_s=0.05)
    await store.open()
    key = store.key("slow", "n")
    try:
        while "ok" != await outcomes(store, GET, [key]):
            await asyncio.sleep(0.02)
        before = int(await store.run(GET, [key]) or 0)
        for server in kind.servers:
            await asyncio.to_thread(server.say, "CLIENT", "PAUSE", "400", "ALL")
        assert ("slow", True) == await outcomes(store, count, [key])
        async with asyncio.timeout(20):
            while "ok" != await outcomes(store, GET, [key]):
                await asyncio.sleep(0.02)
            assert before + 1 == int(await store.run(GET, [key]))
    finally:
        await store.aclose()


async def test_no_more_than_so_many_wait(server, count, monkeypatch):
    """Who asks for more than the bound is refused at once, and has not acted; the others are served."""
    monkeypatch.setattr(links, "MAX_COMMANDS", 10)
    store = RedisStore.on_socket(server, timeout_s=2.0)
    await store.open()
    try:
        key = store.key("bound", "n")
        before = int(await store.run(GET, [key]) or 0)
        found = await asyncio.gather(*(outcomes(store, count, [key]) for _ in range(15)))
        assert ["ok"] * 10 + [("slow", False)] * 5 == found
        assert before + 10 == int(await store.run(GET, [key]))
    finally:
        await store.aclose()


async def test_nobody_there(tmp_path, count):
    """Where no server is, callers hear so at once; then the breaker opens, and nobody tries but now and then."""
    told = Told()
    store = RedisStore.on_socket(str(tmp_path / "none"), timeout_s=0.05, observer=told)
    try:
        async with asyncio.timeout(20):
            while "breaker" not in told.troubles:
                assert not (await outcomes(store, count, [store.key("t")]))[1]
                await asyncio.sleep(0.02)
        assert {"away", "breaker"} == set(told.troubles)
        assert (False, False) == (store.up, store.reached)
    finally:
        await store.aclose()


async def test_a_loop_that_was_busy_is_not_a_slow_store(server, count):
    """An answer that lies there unread when the time is over counts as one that came in time."""
    store = RedisStore.on_socket(server, timeout_s=0.05)
    await store.open()
    try:
        await store.run(count, [store.key("busy", "n")])
        for _ in range(5):
            future = asyncio.ensure_future(store.run(count, [store.key("busy", "n")]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            end = time.perf_counter() + 0.2
            while time.perf_counter() < end:
                pass
            assert await future
    finally:
        await store.aclose()


async def test_a_server_that_writes_nothing(store, kind, count):
    """Whoever only reads hardly notices that others are refused, however often."""
    key = store.key("t", "n")
    assert 1 == await store.run(count, [key])
    for server in kind.servers:
        server.say("CONFIG", "SET", "min-replicas-to-write", "9")
    try:
        found = []
        for _ in range(100):
            found += await asyncio.gather(outcomes(store, count, [key]), outcomes(store, GET, [key]))
        assert "ok" not in found[::2]
        assert found[1::2].count("ok") > 90
    finally:
        for server in kind.servers:
            server.say("CONFIG", "SET", "min-replicas-to-write", "0")


class Deaf(asyncio.Protocol):
    """A server that reads nothing any more on its first connection, after the greeting; on others it answers 1."""

    def __init__(self, connections):
        self._connections = connections

    def connection_made(self, transport):
        self._transport = transport
        self._connections.append(transport)

    def data_received(self, data):
        greeting = b"PING" in data
        self._transport.write(b"+PONG\r\n" if greeting else b":1\r\n" * data.count(b"EVALSHA"))
        if greeting and len(self._connections) == 1:
            self._transport.pause_reading()


async def test_a_server_that_reads_nothing(tmp_path, count, monkeypatch):
    """More is on its way than the kernel takes, so the write waits too: there is a new connection all the same."""
    monkeypatch.setattr(links, "SILENT_S", 0.1)
    connections = []
    path = str(tmp_path / "deaf")
    server = await asyncio.get_running_loop().create_unix_server(lambda: Deaf(connections), path)
    store = RedisStore.on_socket(path, timeout_s=0.05)
    try:
        await store.open()
        key = store.key("t")
        first = await asyncio.gather(*(outcomes(store, count, [key], ["x" * 10_000]) for _ in range(200)))
        assert {("slow", True)} == set(first)
        async with asyncio.timeout(20):
            while "ok" != await outcomes(store, count, [key]):
                await asyncio.sleep(0.02)
        assert 2 == len(connections)
    finally:
        await store.aclose()
        server.close()
        for transport in connections:
            transport.abort()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h:0", "one of the hosts is not written as"),
        ("redis://h:x", "one of the hosts is not written as"),
        ("redis://a,b", "names several hosts"),
        ("redis://h/1/2", "more follows the hosts than one database"),
        ("redis://h/x", "the database is not a number"),
        ("redis://hunter2@h", "has an @ but no password before it"),
        (
            "redis://:hunter2@h?socket_timeout=1",
            "does not know one of the options after '?'; it takes none; the time-out is",
        ),
        ("redis://h?ssl_ca_certs=x", "it takes none; TLS is rediss:"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs is empty"),
        ("rediss://h?ssl_check_hostname=2", "ssl_check_hostname is true or false"),
        ("rediss://h?ssl_cert_reqs=2", "ssl_cert_reqs is one of required, optional, none"),
        ("redis+sentinel://h", "names no service"),
        ("redis+cluster://h/1", "a Cluster has no databases"),
        ("redis:///1", "is not followed by what it needs; give it a host"),
        ("redis:h", "is not followed by what it needs; give it a host"),
        ("unix://", "is not followed by what it needs; give it a path"),
        ("unix://h/p", "is not followed by what it needs; give it a path"),
        ("redis://:hun ter2@h", "holds white space"),
    ],
)
def test_urls_refused(url, words):
    """What is no URL of a store is refused by a sentence that repeats no password."""
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        parse(url)
    assert "hun" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address(kind="single", hosts=(("h", 6379),))),
        ("redis://[::1]:7/2", Address(kind="single", hosts=(("::1", 7),), db=2)),
        ("redis://u:p%40@h", Address(kind="single", hosts=(("h", 6379),), username="u", password="p@")),
        ("rediss://:p@h", Address(kind="single", hosts=(("h", 6379),), password="p", tls={})),
        (
            "rediss://h?ssl_ca_certs=ca&ssl_check_hostname=false",
            Address(kind="single", hosts=(("h", 6379),), tls={"ssl_ca_certs": "ca", "ssl_check_hostname": False}),
        ),
        (
            "redis+sentinel://a,b:1/main/3?sentinel_password=s",
            Address(kind="sentinel", hosts=(("a", 26379), ("b", 1)), service="main", db=3, sentinel={"password": "s"}),
        ),
        ("redis+cluster://a,b:1", Address(kind="cluster", hosts=(("a", 6379), ("b", 1)))),
        ("unix://:p@/r/s?db=1", Address(kind="socket", path="/r/s", db=1, password="p")),
    ],
)
def test_urls(url, address):
    """Every form of URL names its place; a password is not in the address's repr."""
    assert address == parse(url)
    assert "p@" not in repr(parse(url))


def test_the_scripts_that_there_are_can_be_loaded():
    """A script's digest is that of its source."""
    script = Script("pulse")
    assert 40 == len(script.sha)
    assert "redis.call('TIME')" in script.source
