"""Real servers for tests of what is kept in a store.

`server` is one for the whole run, Valkey from its wheel; `store` a store that is empty when a test begins. A suite that
shall hold on every kind of store asks for `every_store` in place of `store`: without further ado that is Valkey on a
socket and on a port, and with `-m system` Debian's Redis too: alone, with TLS, behind Sentinel, as a Cluster.

A module whose `store` shall be of every kind says so once: `store = every_store`, from `conftest`'s fixture of that name
(see `test_store.py`).
"""

import pytest
import redis
from servers import KINDS, scripted, valkey

from relay.store.address import parse
from relay.store.redis import RedisStore

# What a test may wait for a command: this machine is busy with other tests too.
TIMEOUT_S = 2.0
PATIENT_S = 20.0
WHEELS = ("socket", "tcp")


@pytest.fixture(scope="session")
def server():
    """The path of its socket."""
    with valkey() as running:
        yield running.main.address


@pytest.fixture
async def store(server):
    """A store of the relay's; `redis.Redis(unix_socket_path=server)` is a way to look into it from outside."""
    with redis.Redis(unix_socket_path=server) as client:
        client.flushall()
    opened = RedisStore.on_socket(server, timeout_s=TIMEOUT_S)
    yield opened
    await opened.aclose()


@pytest.fixture(
    scope="session",
    params=[pytest.param(kind, marks=() if kind in WHEELS else pytest.mark.system) for kind in KINDS],
)
def kind(request):
    """A server of every kind, one of each for the whole run."""
    with KINDS[request.param]() as running:
        running.kind = request.param
        yield running


@pytest.fixture
async def every_store(kind):
    """A store of every kind, empty."""
    kind.empty()
    opened = RedisStore.at(parse(kind.url), timeout_s=TIMEOUT_S)
    await opened.open()
    yield opened
    await opened.aclose()


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(kind, marks=() if kind == "socket" else pytest.mark.system) for kind in KINDS if kind != "tcp"
    ],
)
def place(request):
    """As `kind`, without the second one of the wheel's: for suites that take longer."""
    with KINDS[request.param]() as running:
        running.kind = request.param
        yield running


@pytest.fixture
async def another(place):
    """Makes stores at the place, which is empty when the test begins. They wait for hundreds of scripts."""
    place.empty()
    made = []

    async def make():
        opened = RedisStore.at(parse(place.url), timeout_s=PATIENT_S)
        made.append(opened)
        await opened.open()
        return opened

    yield make
    for opened in made:
        await opened.aclose()


@pytest.fixture
def outside(place):
    """A client for looking into the place from outside."""
    with place.look() as client:
        yield client


@pytest.fixture(scope="session")
def count():
    """A script that counts, and gives what it has come to."""
    return scripted("return redis.call('INCR', KEYS[1])")
