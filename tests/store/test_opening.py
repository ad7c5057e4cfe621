"""From a configuration to a store: what cannot be right stops the start, what may become right does not."""

import asyncio
import io
import json
from pathlib import Path

import pytest
from servers import PASSWORD, free_ports, valkey, valkey_tcp

from relay.config import Store
from relay.log import configure
from relay.metrics import Metrics
from relay.options import ConfigError
from relay.secret import Secret
from relay.store.opening import borrowed, opened
from relay.store.port import StoreError

TIMEOUT_MS = 2000


@pytest.fixture
def written():
    return io.BytesIO()


@pytest.fixture
def metrics():
    return Metrics((), ())


@pytest.fixture
def opening(tmp_path, written, metrics):
    """`opening(url)`: the context of a relay's store."""

    def open_(url, **options):
        table = Store(url=Secret(url), timeout_ms=TIMEOUT_MS)
        data = table.data(tmp_path)
        return opened(table, folder=tmp_path, data=data, log=configure(written), metrics=metrics, **options)

    return open_


def said(written):
    return [json.loads(line) for line in written.getvalue().splitlines()]


def value(metrics, name):
    lines = metrics.render()[0].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_memory(opening):
    """`memory:` is no store."""
    async with opening("memory:") as store:
        assert store is None


async def test_embedded(opening, metrics, count):
    """The relay's own server is there when the block begins; its metrics say so, and count what is asked."""
    async with opening("embedded:") as store:
        assert 1 == await store.run(count, [store.key("t", "n")])
        assert store.reached
        assert (1, 1) == (value(metrics, "relay_store_up"), value(metrics, 'relay_store_commands_total{outcome="ok"}'))
        assert 1 == value(metrics, "relay_store_seconds_count")


async def test_a_worker_shares_the_embedded_one(opening, count):
    """A worker finds the server of its supervisor, and there is none without one."""
    async with opening("embedded:") as store:
        assert 1 == await store.run(count, [store.key("t", "n")])
        async with opening("embedded:", own=False) as shared:
            assert 2 == await shared.run(count, [store.key("t", "n")])
    with pytest.raises(ConfigError, match="no store runs in"):
        async with opening("embedded:", own=False):
            pass


async def test_the_prefix(opening, tmp_path, metrics, written, count):
    """Two relays with prefixes of their own do not meet on one server."""
    with valkey() as running:
        for prefix in ("one", "two"):
            table = Store(url=Secret(running.url), prefix=prefix, timeout_ms=TIMEOUT_MS)
            async with opened(table, folder=tmp_path, data=tmp_path, log=configure(written), metrics=metrics) as store:
                assert 1 == await store.run(count, [store.key("t", "n")])
        with running.main.connect() as client:
            assert {b"one:{t}:n", b"two:{t}:n"} == set(client.keys())


async def test_a_password_and_a_database(opening, count):
    """A server on a port, with a password and in a database of its own."""
    with valkey_tcp() as running:
        async with opening(running.url) as store:
            assert 1 == await store.run(count, [store.key("t", "n")])
        assert b"1" == running.main.connect(db=1).get("relay:{t}:n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace(PASSWORD, "wrong"), "takes no such user or password, or wants one"),
        (lambda url: url.replace(f":{PASSWORD}@", ""), "takes no such user or password, or wants one"),
        (lambda url: url.replace("/1", "/99"), "the server refuses|DB index is out of range"),
        (lambda url: url.replace("redis:", "redis+cluster:").replace("/1", ""), r"this is no Cluster; write redis://"),
        (
            lambda url: url.replace("redis:", "rediss:") + "?ssl_ca_certs=no.crt",
            "ssl_ca_certs: there is no file .*no.crt",
        ),
    ],
)
async def test_what_waiting_does_not_mend(opening, change, words):
    """The start is refused by a sentence that holds no password."""
    with valkey_tcp() as running:
        with pytest.raises(ConfigError, match=words) as refused:
            async with opening(change(running.url)):
                pass
        assert PASSWORD not in str(refused.value)
        assert "wrong" not in str(refused.value)


async def test_what_is_no_redis(opening):
    """A server that speaks something else is told so."""

    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ConfigError, match="what answers there is no Redis"):
        async with opening(f"redis://:x@127.0.0.1:{port}"):
            pass
    server.close()


async def test_a_store_that_is_away(opening, written, metrics, count):
    """It does not stop the start; it is told in the log and the metrics, and found when it is there."""
    (port,) = free_ports(1)
    async with opening(f"redis://127.0.0.1:{port}") as store:
        assert (False, False, 0) == (store.reached, store.up, value(metrics, "relay_store_up"))
        assert [("store away", "warning")] == [(line["event"], line["level"]) for line in said(written)]
        with pytest.raises(StoreError):
            await store.run(count, [store.key("t", "n")])
        with valkey(port=port, bind="127.0.0.1"):
            async with asyncio.timeout(20):
                while not store.up:
                    try:
                        await store.run(count, [store.key("t", "n")])
                    except StoreError:
                        await asyncio.sleep(0.02)
            assert store.reached
            assert 1 == value(metrics, "relay_store_up")


async def test_one_that_may_forget(opening, written):
    """A server that evicts what it has no room for is worth a warning: balances are kept there."""
    with valkey(maxmemory_policy="allkeys-lru") as running:
        async with opening(running.url):
            assert "store may forget" in [line["event"] for line in said(written) if line["level"] == "warning"]


async def test_borrowed(tmp_path, written, count):
    """A command beside the relay works on its store, and is told where that is not to be had."""
    log = configure(written)
    (port,) = free_ports(1)
    for url, found in (("memory:", None), ("embedded:", 1), ("embedded:", 2)):
        table = Store(url=Secret(url))
        async with borrowed(table, folder=tmp_path, data=table.data(tmp_path), log=log) as store:
            assert found == (None if store is None else await store.run(count, [store.key("t", "n")]))
    with pytest.raises(ConfigError, match="cannot be reached"):
        async with borrowed(Store(url=Secret(f"redis://127.0.0.1:{port}")), folder=Path(), data=Path(), log=log):
            pass
